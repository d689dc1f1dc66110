"""Every argument of transformers' Trainer: applied by our trainers, or refused when they are made."""

from __future__ import annotations

from dataclasses import fields

import datasets
import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hf_ravlm import InvalidInputError
from hf_ravlm.training import RavlmPreTrainer, RavlmPreTrainingArguments, RavlmTrainer, RetrievalCollator
from hf_ravlm.training.batches.evidence_mixing import EvidenceMix
from hf_ravlm.training.joint_trainer import RavlmJointTrainer
from hf_ravlm.training.trainers import freeze
from reading_world import arguments, colour_retriever, rows
from tiny import picture, tiny_model, tiny_processor


# Applied by the loops of transformers' Trainer, which ours run as they are.
INHERITED = """output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules
    gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 torch_compile torch_compile_backend torch_compile_mode
    auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica
    disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy
    eval_steps eval_delay per_device_eval_batch_size eval_on_start eval_use_gather_object eval_accumulation_steps
    batch_eval_metrics bf16_full_eval fp16_full_eval save_strategy save_steps save_on_each_node hub_token
    hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision metric_for_best_model greater_is_better
    ignore_data_skip restore_callback_states_from_checkpoint full_determinism use_cpu dataloader_drop_last
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_backend ddp_timeout deepspeed debug skip_memory_metrics local_rank warmup_ratio logging_dir ray_scope
    push_to_hub_model_id push_to_hub_organization push_to_hub_token use_mps_device no_cuda jit_mode_eval torchdynamo
    mp_parameters overwrite_output_dir save_safetensors include_inputs_for_metrics tpu_num_cores past_index
    hub_config fp16_backend half_precision_backend fp16_opt_level fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap place_model_on_device""".split()
# Applied by ourselves, with the test that shows it.
APPLIED = {
    "average_tokens_across_devices": "test_two_processes.py",
    "label_smoothing_factor": "test_smoothed_labels_are_those_of_the_answer",
    "activation_checkpointing": "test_lora.py, test_grad_cache.py",
    "activation_checkpointing_kwargs": "test_processes.py",
    "gradient_checkpointing": "an older name of activation_checkpointing",
    "gradient_checkpointing_kwargs": "an older name of activation_checkpointing_kwargs",
    "use_cache": "test_the_cache_is_that_of_the_arguments",
    "neftune_noise_alpha": "test_noise_reaches_frozen_embeddings",
    "torch_empty_cache_steps": "also after a step in chunks",
    "optim": "test_what_has_no_effect_is_refused",
    "logging_nan_inf_filter": "in evaluation; in training a loss that is no number is an error",
    "include_num_input_tokens_seen": "test_tokens_of_queries_and_passages_are_counted",
    "prediction_loss_only": "measures of answers are asked for by `generation`",
    "eval_do_concat_batches": "test_batches_that_are_kept_apart_give_the_same_recall",
    "save_only_model": "test_checkpoints.py",
    "save_total_limit": "test_checkpoints.py",
    "enable_jit_checkpoint": "test_checkpoints.py",
    "push_to_hub": "only when a checkpoint is complete",
    "load_best_model_at_end": "test_reader_trainer.py",
    "seed": "test_checkpoints.py",
    "data_seed": "draws of evidence",
    "accelerator_config": "test_what_has_no_effect_is_refused",
    "remove_unused_columns": "rows keep theirs: they are read by name",
    "train_sampling_strategy": "test_reader_trainer.py",
    "length_column_name": "test_reader_trainer.py",
    "ddp_find_unused_parameters": "test_processes.py",
    "fsdp": "test_processes.py",
    "fsdp_config": "test_processes.py",
}
REFUSED = {  # by the row-reading trainers and by the alignment, with a value that is refused
    "use_liger_kernel": True,
    "liger_kernel_config": "part of use_liger_kernel",
    "label_names": ["answers"],
    "include_for_metrics": ["inputs"],
    "parallelism_config": "several devices",
}
NO_EFFECT = {  # by their nature: for programs around the Trainer
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
}


def test_every_argument_has_its_fate():
    known = {*INHERITED, *APPLIED, *REFUSED, *NO_EFFECT}
    new = [field.name for field in fields(TrainingArguments) if field.name not in known]
    assert not new, f"new arguments of the Trainer: say what becomes of them, here and in applied_arguments.py: {new}"


def reader(folder, changes=None, model=None, **options):
    model, processor = model or tiny_model(), tiny_processor()
    settings = {"args": arguments(folder, max_steps=2, **(changes or {})), "train_dataset": rows(8), **options}
    return RavlmTrainer(model, processing_class=processor, retriever=colour_retriever(model, processor), **settings)


def joint(folder, changes=None, **options):
    model, processor = tiny_model(marginalization="sequence"), tiny_processor()
    settings = {"train_dataset": rows(8), "evidence": EvidenceMix(num_passages=3), **options}
    retriever = colour_retriever(model, processor)
    args = arguments(folder, max_steps=2, **(changes or {}))
    return RavlmJointTrainer(model, args, processing_class=processor, retriever=retriever, **settings)


def pairs(number: int = 6) -> list[dict]:
    return [{"image": picture(n), "caption": f"red {n}"} for n in range(number)]


def aligner(folder, changes=None, **options):
    settings = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 1, "use_cpu": True}
    args = RavlmPreTrainingArguments(str(folder), **{**settings, "per_device_eval_batch_size": 4, **(changes or {})})
    collator = RetrievalCollator(processor=tiny_processor(), query_image="image", passage_text="caption")
    settings = {"train_dataset": pairs(), "eval_dataset": pairs(), "data_collator": collator, **options}
    return RavlmPreTrainer(tiny_model().model, args, **settings)


@pytest.mark.parametrize("build", [reader, joint, aligner])
def test_what_has_no_effect_is_refused(tmp_path, build):
    for name, value in REFUSED.items():
        if not isinstance(value, str):
            with pytest.raises(InvalidInputError, match=f"^{name}="):
                build(tmp_path, {name: value})
    with pytest.raises(InvalidInputError, match="a column 'length'"):
        build(tmp_path, {"train_sampling_strategy": "group_by_length"})
    if build is aligner:
        with pytest.raises(InvalidInputError, match="'lomo' with grad_cache_chunk_size=2"):
            build(tmp_path, {"optim": "lomo", "grad_cache_chunk_size": 2})
        with pytest.raises(InvalidInputError, match="^debug="):
            build(tmp_path, {"debug": "underflow_overflow"})
    else:
        with pytest.raises(InvalidInputError, match="dispatch"):
            build(tmp_path, {"accelerator_config": {"dispatch_batches": True}})


@pytest.mark.parametrize(
    "build", [joint, aligner, lambda *a, **o: reader(*a, model=tiny_model(marginalization="token"), **o)]
)
def test_a_loss_outside_the_model_is_refused_where_the_model_has_one_of_its_own(tmp_path, build):
    with pytest.raises(InvalidInputError, match="label_smoothing_factor has no meaning here: the loss is .*Leave it"):
        build(tmp_path, changes={"label_smoothing_factor": 0.1})
    with pytest.raises(InvalidInputError, match="compute_loss_func has no meaning here"):
        build(tmp_path, compute_loss_func=lambda *given, **_: None)


def test_smoothed_labels_are_those_of_the_answer(tmp_path):
    """Against the smoother of transformers, told to shift; and accumulated as one batch."""
    trainer = reader(tmp_path, changes={"label_smoothing_factor": 0.3})
    inputs = trainer.training_inputs(rows(4))
    inputs.pop("row_names")
    model = trainer.model.eval()
    with torch.no_grad():
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        expected = LabelSmoother(0.3)(outputs, inputs["labels"], shift_labels=True)
        plain = model(**inputs).loss
        torch.testing.assert_close(trainer.compute_loss(model, dict(inputs)), expected)
        assert not torch.isclose(expected, plain)
        count = (inputs["labels"] != -100).sum()
        halves = [{name: value[place] for name, value in inputs.items()} for place in (slice(2), slice(2, None))]
        losses = [trainer.compute_loss(model, half, num_items_in_batch=count) for half in halves]
        torch.testing.assert_close(sum(losses), expected)
    trainer.train()
    assert set(trainer.evaluate(rows(4))) >= {"eval_loss"}
    with pytest.raises(InvalidInputError, match="exclude each other"):
        reader(tmp_path, changes={"label_smoothing_factor": 0.3}, compute_loss_func=print)


def test_a_loss_given_from_outside_gets_logits_labels_and_their_number(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append((outputs.logits.shape[:2] == labels.shape, (labels != -100).sum(), num_items_in_batch))
        return outputs.logits.square().sum() / num_items_in_batch

    reader(tmp_path, compute_loss_func=loss).train()
    assert len(seen) == 2
    assert all(fits and counted == given for fits, counted, given in seen)


def test_noise_reaches_frozen_embeddings(tmp_path):
    """NEFTune is a hook that is silent in eval mode, which frozen parts are in."""
    model = tiny_model()
    freeze(model.language_model)
    trainer = reader(tmp_path, model=model, changes={"neftune_noise_alpha": 5.0})
    noisy = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, *_: noisy.append(module.training))
    trainer.train()
    hook.remove()
    assert len(noisy) == 2
    assert all(noisy)


def test_the_cache_is_that_of_the_arguments(tmp_path):
    for use_cache in (False, True):
        trainer = reader(tmp_path, changes={"use_cache": use_cache})
        inputs = trainer.training_inputs(rows(2))
        inputs.pop("row_names")
        assert (trainer.model(**inputs).past_key_values is not None) == use_cache


def test_tokens_of_queries_and_passages_are_counted(tmp_path):
    trainer = aligner(tmp_path, {"include_num_input_tokens_seen": "non_padding", "per_device_train_batch_size": 6})
    batch = trainer.data_collator(pairs())
    trainer.train()
    assert trainer.state.num_input_tokens_seen == int(batch["passage_attention_mask"].sum())
    asked = reader(tmp_path, changes={"include_num_input_tokens_seen": "all"})
    asked.train()
    assert asked.state.num_input_tokens_seen > 0


def test_batches_that_are_kept_apart_give_the_same_recall(tmp_path):
    figures = [aligner(tmp_path, {"eval_do_concat_batches": together}).evaluate() for together in (True, False)]
    for name in ("eval_recall@1", "eval_mrr", "eval_num_passages", "eval_loss"):
        assert figures[0][name] == pytest.approx(figures[1][name])
    assert figures[0]["eval_num_passages"] == 6


@pytest.mark.parametrize("full", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_in_half_precision(tmp_path, full):
    metrics = reader(tmp_path, changes={full: True}, eval_dataset=rows(4), generation={"max_new_tokens": 2}).evaluate()
    assert metrics["eval_num_passages"] == 6
    assert metrics["eval_loss"] > 0


class Stream(torch.utils.data.IterableDataset):
    """Rows one after the other; `__getitem__` is that of torch, which fails."""

    def __init__(self, given):
        self.given = given

    def __iter__(self):
        return iter(self.given)


@pytest.mark.parametrize("kind", [Stream, lambda given: datasets.IterableDataset.from_generator(lambda: iter(given))])
def test_streams_train_and_are_measured(tmp_path, kind):
    words = [{name: row[name] for name in ("question", "answer", "gold_ids")} for row in rows(8)]
    generation, steps = {"max_new_tokens": 2}, {"per_device_train_batch_size": 3}
    for build, own in ((reader, {"generation": generation}), (joint, {"generation": generation})):
        listed = build(tmp_path, changes=steps, train_dataset=words, eval_dataset=words, **own)
        stream = build(tmp_path, changes=steps, train_dataset=kind(words), eval_dataset=kind(words), **own)
        assert stream.train().global_step == 2
        expected, found = listed.evaluate(), build(tmp_path, eval_dataset=kind(words), **own).evaluate()
        for name in ("eval_exact_match", "eval_token_f1", "eval_hit@1", "eval_mrr"):
            assert found[name] == pytest.approx(expected[name])
    images = [{"image": row["image"], "caption": row["caption"]} for row in pairs()]
    aligned = aligner(tmp_path, train_dataset=Stream(images), eval_dataset=Stream(images))
    aligned.train()
    assert aligned.evaluate()["eval_num_passages"] == 6


def test_what_is_neither_a_data_set_nor_a_stream_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="expected a list, a data set with a length, or a stream"):
        reader(tmp_path, train_dataset=iter(rows(4))).get_train_dataloader()
    lengths = {"train_sampling_strategy": "group_by_length"}
    with pytest.raises(InvalidInputError, match="got a Stream"):
        reader(tmp_path, changes=lengths, train_dataset=Stream(rows(4)))


def test_evaluation_is_greedy_whatever_the_generation_config_says(tmp_path):
    model = tiny_model()
    model.generation_config.update(do_sample=True, temperature=5.0, num_beams=2)
    trainer = reader(tmp_path, model=model, eval_dataset=rows(4), generation={"max_new_tokens": 3})
    asked = []
    generate = model.generate
    model.generate = lambda **given: asked.append((given["do_sample"], given["num_beams"])) or generate(**given)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_token_f1"] == second["eval_token_f1"]
    assert set(asked) == {(False, 1)}
