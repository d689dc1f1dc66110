"""The alignment learns, stops where it must, and goes on after an interruption as if there had been none."""

from __future__ import annotations

import math

import pytest
import torch

from hf_ravlm import InvalidInputError, RavlmModel
from hf_ravlm.training import RavlmPreTrainer, RavlmPreTrainingArguments, RetrievalCollator, freeze
from hf_ravlm.training.pretrainer import dual_encoder
from reading_world import STEADY, assert_same_weights
from tiny import picture, tiny_config, tiny_processor
from tiny_alignment import ALL, build_batch, build_model, build_trainer, step_gradients


COLOURS = ["red", "white", "of", "capital", "Oslo", "this", "Norway", "Chad"]


def rows(num_rows: int = 8) -> list[dict]:
    return [{"id": f"Q{n}", "image": picture(n), "caption": f"{COLOURS[n]} {n}"} for n in range(num_rows)]


def masking_processor():
    processor = tiny_processor()
    processor.text_tokenizer.add_special_tokens({"mask_token": "<pad>"})
    return processor


def trainer_of(folder, model, data=None, on_error="raise", **settings) -> RavlmPreTrainer:
    processor = masking_processor()
    defaults = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    collator = RetrievalCollator(
        processor=processor, query_image="image", passage_text="caption", id="id", on_error=on_error
    )
    data = rows() if data is None else data
    return RavlmPreTrainer(
        model=model,
        args=RavlmPreTrainingArguments(str(folder), **{**defaults, **settings}),
        data_collator=collator,
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
    )


def test_pictures_find_their_captions_and_the_objectives_are_logged(tmp_path):
    settings = {"num_train_epochs": 25, "learning_rate": 3e-3, "per_device_train_batch_size": 8, **ALL}
    trainer = trainer_of(tmp_path, build_model(), **settings)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_recall@1"] == 1.0 > before["eval_recall@1"]
    assert after["eval_recall@10"] == before["eval_recall@10"] == 1.0
    log = trainer.state.log_history[1]
    parts = sum(ALL[f"{name}_weight"] * log[f"{name}_loss"] for name in ("itc", "itm", "mlm", "triplet"))
    assert parts == pytest.approx(log["loss"], rel=1e-3)
    assert 0.01 <= log["temperature"] <= 1
    assert after["eval_loss"] < before["eval_loss"]


def test_a_dual_encoder_alone_is_aligned_and_frozen_parts_stay(tmp_path):
    torch.manual_seed(0)
    model = RavlmModel(tiny_config())
    freeze(model.vision_tower)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer_of(tmp_path, model, num_train_epochs=1, learning_rate=1e-2, symmetric=True).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("text_encoder.") for name in changed)
    assert not any(name.startswith("vision_tower.") for name in changed)


@pytest.mark.parametrize("chunk", [None, pytest.param(2, marks=pytest.mark.slow)], ids=["whole", "in_chunks"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(chunk, tmp_path):
    steps = {"max_steps": 12, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 6, "eval_steps": 6}
    settings = {**ALL, **steps, **STEADY, "per_device_train_batch_size": 3, "learning_rate": 1e-2}

    def run():
        return trainer_of(tmp_path, build_model(dropout=0.1), grad_cache_chunk_size=chunk, **settings)

    whole = run()
    whole.train()
    resumed = run()
    torch.rand(5)  # another past
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.state.global_step == 12
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())


def test_the_temperature_comes_back_from_beyond_its_limit(tmp_path):
    trainer = build_trainer(tmp_path, build_model(), use_cpu=True)
    scale = dual_encoder(trainer.model).logit_scale
    scale.data.fill_(5.0)
    _, gradients = step_gradients(trainer, build_batch(6))
    assert scale.item() == pytest.approx(math.log(100), abs=1e-6)
    assert gradients["model.logit_scale"].item() > 0  # a random model wants it warmer


def test_a_loss_that_is_no_number_stops_with_step_and_rows(tmp_path):
    model = build_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_processor().text_tokenizer("Oslo")["input_ids"][-1]] = math.nan
    trainer = trainer_of(tmp_path, model, num_train_epochs=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"step 1 .*Q4.*the vectors of \[.*'Q4'.*\] are not finite"):
        trainer.train()
    after = model.state_dict()
    assert all(torch.equal(tensor.nan_to_num(), after[name].nan_to_num()) for name, tensor in before.items())


def test_a_batch_of_one_is_refused_but_a_last_row_alone_is_not(tmp_path, caplog):
    with pytest.raises(InvalidInputError, match="per_device_train_batch_size to 2 or more"):
        trainer_of(tmp_path, build_model(), per_device_train_batch_size=1, max_steps=1).train()
    trainer = trainer_of(tmp_path, build_model(), rows(3), per_device_train_batch_size=2, num_train_epochs=1, **ALL)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "holds no negative" in caplog.text
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_the_same_passage_twice_is_no_negative(tmp_path):
    twice = [{**row, "caption": "red"} for row in rows(4)]
    trainer = trainer_of(tmp_path, build_model(), twice)
    loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(twice))
    assert loss.item() == 0
    assert trainer.evaluate()["eval_recall@1"] == 1.0


def test_what_cannot_be_trained_is_refused_at_once(tmp_path):
    with pytest.raises(InvalidInputError, match=r"RavlmModel has no head.*from_dual_encoder"):
        build_trainer(tmp_path, RavlmModel(tiny_config()), itm_weight=1.0)
    arguments = RavlmPreTrainingArguments(str(tmp_path), mlm_weight=1.0, report_to="none")
    with pytest.raises(InvalidInputError, match="the text tokenizer has none"):
        RavlmPreTrainer(model=build_model(), args=arguments, processing_class=tiny_processor(), data_collator=list)
    with pytest.raises(InvalidInputError, match="at least one of them above 0"):
        RavlmPreTrainingArguments(str(tmp_path), itc_weight=0.0)
    with pytest.raises(InvalidInputError, match="data_collator is missing"):
        RavlmPreTrainer(model=build_model(), args=arguments, processing_class=tiny_processor())
    with pytest.raises(InvalidInputError, match="RavlmPreTrainingArguments, which name the objectives"):
        RavlmPreTrainer(model=build_model())


def test_settings_that_do_not_fit_the_batch_are_refused(tmp_path):
    trainer = build_trainer(tmp_path, build_model(), use_cpu=True, symmetric=True)
    with pytest.raises(InvalidInputError, match="3 queries and 5 passages: expected one passage per query"):
        step_gradients(trainer, build_batch(3, 2))
    trainer = build_trainer(tmp_path, build_model(), use_cpu=True, matryoshka_dims=[8, 32])
    with pytest.raises(InvalidInputError, match=r"\[32\]: expected widths from 1 to projection_dim=16"):
        step_gradients(trainer, build_batch(3))
    batch = build_batch(3)
    batch["passage_input_ids"] = batch["passage_input_ids"][:2]
    batch["passage_attention_mask"] = batch["passage_attention_mask"][:2]
    with pytest.raises(InvalidInputError, match="expected a positive passage for each query"):
        step_gradients(trainer, batch)
