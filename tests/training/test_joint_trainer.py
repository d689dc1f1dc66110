"""Reader and retriever together: what the towers learn from, which index serves, and that the right passage rises."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hf_ravlm import InvalidInputError, RavlmEncoder
from hf_ravlm.model.reader.likelihoods import passage_log_prior
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.training.batches.evidence_mixing import EvidenceMix
from hf_ravlm.training.joint_trainer import JointSettings, RavlmJointTrainer
from hf_ravlm.training.losses.distillation import emdr2_loss
from hf_ravlm.training.trainers import RavlmTrainer
from reading_world import COLOURS, THINGS, arguments, colour_retriever, passages, rows
from tiny import tiny_model, tiny_processor
from tiny_backbones import multimodal_model, reader_of_kind, with_towers
from tiny_joint import adapted_trainer, sighted_trainer, step_gradients


class OracleReader:
    """Gives an answer a high likelihood exactly where it stands in the passage; the towers are the tiny ones."""

    @staticmethod
    def teach(model, processor):
        tokenizer = processor.tokenizer
        plain = model.forward

        def forward(*args, **inputs):
            outputs = plain(*args, **inputs)
            labels = inputs["labels"]
            holds = []
            for prompt, label in zip(inputs["input_ids"], labels):
                told = tokenizer.decode(prompt[label == -100], skip_special_tokens=True)
                answer = tokenizer.decode(label[label != -100], skip_special_tokens=True).strip()
                holds.append(0.0 if f": {answer}" in told else -5.0)
            shape = outputs.passage_log_likelihood.shape
            outputs.passage_log_likelihood = torch.tensor(holds).reshape(shape)
            prior = passage_log_prior(
                inputs["evidence_scores"], inputs.get("evidence_mask"), model.model.get_logit_scale()
            )
            outputs.loss = -(outputs.passage_log_likelihood + prior).logsumexp(dim=-1).mean()
            return outputs

        model.forward = forward


def joint_trainer(folder, settings=None, model=None, images=True, num_passages=3, train=None, **changes):
    settings = JointSettings() if settings is None else settings
    kind = "token" if settings.objective == "rag_token" else "sequence"
    model = tiny_model(marginalization=kind) if model is None else model
    processor = tiny_processor()
    return RavlmJointTrainer(
        model,
        arguments(folder, **{"max_steps": 2, **changes}),
        train_dataset=rows(images=images) if train is None else train,
        processing_class=processor,
        retriever=colour_retriever(model, processor),
        evidence=EvidenceMix(num_passages=num_passages),
        settings=settings,
    )


def hit_at_1(trainer, asked=None) -> float:
    asked = rows(len(THINGS), images=False) if asked is None else asked
    found, _ = trainer.batches.find(trainer.batches.opened(asked), 1)
    ids = trainer.retriever.knowledge_base.ids
    return float(np.mean([ids[places[0]] == row["gold_ids"][0] for row, places in zip(asked, found)]))


@pytest.mark.parametrize("objective", ["rag_sequence", "rag_token", "perplexity_distillation", "emdr2"])
def test_hit_at_1_rises_as_answers_tell_which_passages_were_worth_finding(tmp_path, objective):
    settings = JointSettings(
        objective,
        side="passage",
        refresh_every=5,
        reader_learns=objective == "rag_token",  # the marginal likelihood is one where the reader has a gradient
    )
    trainer = joint_trainer(tmp_path, settings, images=False, num_passages=6, max_steps=30, learning_rate=3e-3)
    OracleReader.teach(trainer.model, trainer.processing_class)
    before = hit_at_1(trainer)
    trainer.train()
    assert hit_at_1(trainer) > max(before, 0.6)
    assert trainer.index_version == 6  # after 5, 10, ..., 25 steps, and at the end


@pytest.mark.parametrize("side", ["query", "passage"])
def test_scores_of_the_step_are_those_of_the_index_and_carry_gradient(tmp_path, side):
    trainer = joint_trainer(tmp_path, JointSettings(side=side))
    inputs = trainer.training_inputs(rows(4))
    expected = inputs["evidence_scores"].clone()
    model = trainer._wrap_model(trainer.model).eval()
    joint = inputs.pop("joint")
    joint.pop("has_answer")
    inputs.pop("row_names")
    outputs = model(**joint, **inputs)
    torch.testing.assert_close(outputs.scores.detach(), expected, atol=1e-5, rtol=0)
    outputs.loss.backward()
    towers = trainer.model.model
    assert towers.image_projection.weight.grad.abs().max() > 0
    if side == "query":  # passages are texts, so their tower is frozen and the index exact
        assert towers.text_projection.weight.grad is None
    else:
        assert towers.text_projection.weight.grad.abs().max() > 0


def test_the_reader_that_is_held_fixed_gets_no_gradient_and_the_retriever_that_of_emdr2(tmp_path):
    trainer = joint_trainer(tmp_path, JointSettings("rag_sequence", side="passage", reader_learns=False))
    trainer._num_queries = 4
    inputs = trainer.training_inputs(rows(4))
    inputs.pop("row_names")
    model = trainer._wrap_model(trainer.model).eval()
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    expected = emdr2_loss(outputs.passage_log_likelihood, outputs.scores, None, outputs.logit_scale)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in trainer.model.language_model.parameters())
    assert trainer.model.model.text_projection.weight.grad.abs().max() > 0


def test_accumulated_gradients_of_a_distillation_are_those_of_the_large_batch(tmp_path):
    results = []
    for size in (4, 1):
        trainer = joint_trainer(
            tmp_path / str(size),
            JointSettings("perplexity_distillation", side="passage"),
            tiny_model(marginalization="sequence").requires_grad_(True),
            train=rows(4),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=1,
            max_grad_norm=0.0,
        )
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.create_optimizer()
        kept = {}

        def keep(*_, kept=kept, model=trainer.model):
            kept.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        trainer.optimizer.register_step_pre_hook(keep)
        trainer.train()
        results.append(kept)
    assert set(results[0]) == set(results[1])
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_the_retriever_waits_while_the_reader_warms_up(tmp_path):
    trainer = joint_trainer(tmp_path, JointSettings(side="passage", warmup_steps=2), max_steps=2)
    towers = {name: p.clone() for name, p in trainer.model.model.named_parameters()}
    reader = trainer.model.language_model.lm_head.weight.clone()
    trainer.train()
    assert all(torch.equal(p, towers[name]) for name, p in trainer.model.model.named_parameters())
    assert not torch.equal(reader, trainer.model.language_model.lm_head.weight)


def test_the_old_index_serves_until_the_new_one_is_complete(tmp_path):
    trainer = joint_trainer(tmp_path, JointSettings(side="passage", refresh_every=1), max_steps=4)
    seen, stop = [], threading.Event()
    query = np.eye(16, dtype=np.float32)[:1]

    def search():
        while not stop.is_set():
            retriever = trainer.retriever
            scores, places = retriever.search_vectors(query, 6)
            seen.append(np.allclose(scores[0], retriever.vectors[places[0]] @ query[0], atol=1e-5))

    thread = threading.Thread(target=search)
    thread.start()
    trainer.train()
    stop.set()
    thread.join()
    assert len(seen) > 3
    assert all(seen)
    assert trainer.index_version == 4
    fresh = RavlmRetriever.build(
        KnowledgeBase.from_dicts(passages()), RavlmEncoder(trainer.model.model, tiny_processor())
    )
    np.testing.assert_allclose(trainer.retriever.vectors, fresh.vectors, atol=1e-6)
    assert trainer.retriever.encoder_fingerprint == fresh.encoder.fingerprint


def test_an_index_that_stays_exact_is_not_encoded_again_and_fits_the_trained_model(tmp_path):
    trainer = joint_trainer(tmp_path, JointSettings(side="query"), max_steps=3)
    before = trainer.retriever
    trainer.train()
    assert trainer.retriever.vectors is before.vectors or np.array_equal(trainer.retriever.vectors, before.vectors)
    assert trainer.retriever.encoder_fingerprint == trainer.retriever.encoder.fingerprint
    trainer.retriever.save_pretrained(tmp_path / "saved")
    opened = RavlmRetriever.from_pretrained(tmp_path / "saved", trainer.retriever.encoder)
    fresh = RavlmRetriever.build(opened.knowledge_base, trainer.retriever.encoder)
    np.testing.assert_allclose(opened.vectors, fresh.vectors, atol=1e-6)


def test_what_cannot_be_trained_is_refused(tmp_path):
    processor, plain = tiny_processor(), tiny_model()
    for model, retriever, settings, told in (
        (plain, colour_retriever(plain, processor), JointSettings(), "marginalization"),
        (tiny_model(marginalization="sequence"), colour_retriever(plain, processor), JointSettings(), "own towers"),
        (tiny_model(marginalization="sequence"), None, JointSettings(), "own towers"),
        (tiny_model(marginalization="sequence"), None, JointSettings("rag_token"), "token"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            RavlmJointTrainer(
                model,
                arguments(tmp_path),
                train_dataset=rows(),
                processing_class=processor,
                retriever=retriever,
                settings=settings,
            )
    with pytest.raises(InvalidInputError, match="rag_seq"):
        JointSettings("ppmean")
    assert len(COLOURS) == len(THINGS)


def test_a_reader_that_has_learned_to_read_teaches_the_retriever_what_to_find(tmp_path):
    """Questions share no word with their passages: only the answers can tell which belongs to which."""
    draw = np.random.default_rng(0)
    told = [(THINGS[thing], COLOURS[colour]) for thing, colour in draw.integers(6, size=(256, 2))]
    lessons = [{"question": "that ?", "answer": said, "evidence": [f"{thing} : {said}"]} for thing, said in told]
    model, processor = tiny_model(marginalization="sequence"), tiny_processor()
    reading = arguments(
        tmp_path, max_steps=150, per_device_train_batch_size=16, learning_rate=5e-3, lr_scheduler_type="constant"
    )
    RavlmTrainer(model, reading, train_dataset=lessons, processing_class=processor).train()

    names = ["one", "two", "three", "four", "five", "six"]
    asked = [
        {"question": f"{name} ?", "answer": colour, "gold_ids": [thing]}
        for name, thing, colour in zip(names, THINGS, COLOURS)
    ]
    trainer = joint_trainer(
        tmp_path,
        JointSettings("rag_sequence", side="passage", refresh_every=5),
        model,
        num_passages=6,
        train=asked * 2,
        max_steps=60,
        per_device_train_batch_size=6,
        learning_rate=3e-3,
    )
    before = hit_at_1(trainer, asked)
    trainer.train()
    assert before < 0.5
    assert hit_at_1(trainer, asked) == 1.0


def test_questions_with_and_without_an_image_are_learned_together(tmp_path):
    mixed = [{**row, "image": row["image"] if place % 2 else None} for place, row in enumerate(rows(images=True))]
    trainer = joint_trainer(tmp_path, train=mixed, per_device_train_batch_size=4)
    assert np.isfinite(trainer.train().training_loss)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_adapters_on_both_sides_learn_and_are_saved_with_all_that_learned(tmp_path):
    trainer = adapted_trainer(tmp_path / "run", max_steps=3)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("language_model" in name and "lora_" in name for name in changed)
    assert any("text_encoder" in name and "lora_" in name for name in changed)
    assert all("lora_" in name or "image_projector" in name for name in changed)
    trainer.save_model(str(tmp_path / "adapters"))
    trainer.retriever.save_pretrained(tmp_path / "index")

    base = tiny_model(marginalization="sequence")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, trainer.model.get_parameter(name)), name
    encoder = RavlmEncoder(loaded.get_base_model().model, trainer.processing_class)
    opened = RavlmRetriever.from_pretrained(tmp_path / "index", encoder=encoder)
    np.testing.assert_allclose(opened.vectors, trainer.retriever.vectors)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_that_would_lose_what_learned_are_refused(tmp_path):
    processor = tiny_processor()
    model = tiny_model(marginalization="sequence")
    parts = {"processing_class": processor, "retriever": colour_retriever(model, processor)}
    with pytest.raises(InvalidInputError, match="All of `model.model` is frozen"):
        RavlmJointTrainer(model, arguments(tmp_path), train_dataset=rows(), peft_config=LoraConfig(r=2), **parts)
    model = tiny_model(marginalization="sequence")
    retriever = colour_retriever(model, processor)
    adapted = get_peft_model(model, LoraConfig(r=2))
    model.model.requires_grad_(True)
    parts = {"processing_class": processor, "retriever": retriever}
    with pytest.raises(InvalidInputError, match="trained whole"):
        RavlmJointTrainer(adapted, arguments(tmp_path), train_dataset=rows(), **parts)

    model = tiny_model(marginalization="sequence")
    parts["retriever"] = colour_retriever(model, processor)
    whole = LoraConfig(r=2, modules_to_save=["model"])
    with pytest.raises(InvalidInputError, match="modules_to_save names `model`"):
        RavlmJointTrainer(model, arguments(tmp_path), train_dataset=rows(), peft_config=whole, **parts)


OBJECTIVES = ["rag_sequence", "rag_token", "perplexity_distillation", "emdr2"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_reader_that_sees_images_learns_with_its_towers_from_one_passage_at_a_time(tmp_path, objective):
    trainer = sighted_trainer(tmp_path / "run", JointSettings(objective, side="passage"), max_steps=1)
    inputs = trainer.training_inputs(rows(3))
    asked = trainer.processing_class.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert len(asked) == 12  # a prompt for each of four passages
    assert all(sum(f"{thing} :" in text for thing in THINGS) == 1 for text in asked)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("language_model" in name for name in changed)
    assert any("text_encoder" in name for name in changed)
    assert all("lora_" in name for name in changed)
    trainer.save_model(str(tmp_path / "adapters"))
    base, _ = with_towers(*multimodal_model("llava"), projection_dim=16)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapters")
    assert all(torch.equal(loaded.get_parameter(name), trainer.model.get_parameter(name)) for name in changed)


def test_the_likelihood_under_a_passage_is_that_of_a_prompt_with_it_alone(tmp_path):
    model, processor = with_towers(*multimodal_model("llava"), projection_dim=16)
    retriever = colour_retriever(model, processor)
    trainer = RavlmJointTrainer(
        model,
        arguments(tmp_path),
        train_dataset=rows(),
        processing_class=processor,
        retriever=retriever,
        evidence=EvidenceMix(num_passages=3),
    )
    inputs = trainer.training_inputs(rows(2))
    joint = {name: value for name, value in inputs.pop("joint").items() if name != "has_answer"}
    del inputs["row_names"]
    with torch.no_grad():
        found = trainer._wrap_model(model).eval()(**joint, **inputs)
    asked = [(row, k) for row in range(2) for k in range(3)]
    evidence = trainer.batches.evidence_for(trainer.batches.opened(rows(2)), trainer.batches.mix)
    for row, k in asked:
        one = rows(2)[row]
        alone = {"images": [one["image"]], "text": [one["question"]], "answers": [one["answer"]]}
        prompt = processor(**alone, evidence=[[evidence[row][k]]])
        with torch.no_grad():
            expected = -model(**prompt).loss * (prompt["labels"] != -100).sum()
        torch.testing.assert_close(found.passage_log_likelihood[row, k], expected, atol=1e-4, rtol=0)
    prior = (found.scores * found.logit_scale).log_softmax(dim=-1)
    marginal = (found.passage_log_likelihood + prior).logsumexp(dim=-1).sum()
    torch.testing.assert_close(found.loss, -marginal / found.num_tokens.sum(), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("sees", [False, True])
def test_a_budget_of_tokens_reads_part_by_part_with_the_gradient_of_the_whole(tmp_path, sees):
    found = []
    for budget in (None, 1):
        settings = JointSettings("rag_sequence", side="passage", tokens_at_once=budget)
        if sees:
            trainer = sighted_trainer(tmp_path / str(budget), settings, max_steps=1, max_grad_norm=0.0)
        else:
            model = tiny_model(marginalization="sequence", fusion="gated").requires_grad_(True)
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            processor = tiny_processor(fusion="gated")
            trainer = RavlmJointTrainer(
                model,
                arguments(tmp_path / str(budget), max_steps=1, max_grad_norm=0.0),
                train_dataset=rows(),
                processing_class=processor,
                retriever=colour_retriever(model, processor),
                evidence=EvidenceMix(num_passages=3),
                settings=settings,
            )
        parts = trainer.training_inputs(rows(4))["joint"].get("parts")
        assert (None if parts is None else len(parts)) == (None if budget is None else 4)
        found.append(step_gradients(trainer))
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_what_a_sighted_reader_lacks_for_joint_training_is_told(tmp_path):
    model, processor = reader_of_kind("image_text")
    with pytest.raises(InvalidInputError, match=r"no towers.*from_backbones\(encoder="):
        RavlmJointTrainer(model, arguments(tmp_path), train_dataset=rows(), processing_class=processor)
    model, processor = with_towers(*multimodal_model("llava"), projection_dim=16)
    parts = {"processing_class": processor, "retriever": colour_retriever(model, processor), "train_dataset": rows()}
    with pytest.raises(InvalidInputError, match="label_smoothing_factor"):
        RavlmJointTrainer(model, arguments(tmp_path, label_smoothing_factor=0.1), **parts)
    with pytest.raises(InvalidInputError, match="tokens_at_once=0"):
        JointSettings(tokens_at_once=0)
