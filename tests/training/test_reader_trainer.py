"""The reader's trainer on rows: what is counted, what is frozen, what is measured, and what stops it."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig

from hf_ravlm import InvalidInputError, RavlmEncoder, UnsafeInputError
from hf_ravlm.images import encoded_image
from hf_ravlm.model.loading import without_adapters
from hf_ravlm.training.batches.evidence_mixing import EvidenceMix
from hf_ravlm.training.trainers import RavlmTrainer, freeze
from reading_world import COLOURS, THINGS, arguments, colour_retriever, rows
from tiny import picture, tiny_model, tiny_processor


def trainer_for(folder, model=None, processor=None, retriever=True, train=None, changes=None, **options):
    model = tiny_model() if model is None else model
    processor = tiny_processor() if processor is None else processor
    return RavlmTrainer(
        model,
        arguments(folder, **(changes or {})),
        train_dataset=rows() if train is None else train,
        processing_class=processor,
        retriever=colour_retriever(model, processor) if retriever is True else retriever,
        **options,
    )


def gradients(trainer, steps: int) -> dict[str, torch.Tensor]:
    """The gradients of the first optimizer step, in as many parts as `gradient_accumulation_steps` says."""
    kept = {}

    def keep(*_):
        named = trainer.model.named_parameters()
        kept.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return kept


@pytest.mark.parametrize("marginalization", ["none", "sequence", "token"])
def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path, marginalization):
    """Answers differ in length, and batches in the number of passages per question."""
    train = [
        {"question": "what ?", "answer": "of the capital of Norway", "evidence": ["red", "white", "Oslo"]},
        {"question": "which ?", "answer": "Chad", "evidence": []},
        {"question": "is it ?", "answer": "red white", "evidence": ["of Chad"]},
        {"question": "what of it ?", "answer": "is", "evidence": ["Oslo is"]},
    ]
    results = []
    for size in (4, 1):
        trainer = trainer_for(
            tmp_path / str(size),
            tiny_model(marginalization=marginalization),
            retriever=None,
            train=train,
            changes={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": 4 // size,
                "max_steps": 1,
                "max_grad_norm": 0.0,
            },
        )
        results.append(gradients(trainer, 1))
    large, small = results
    assert set(small) <= set(large)
    for name, gradient in large.items():
        torch.testing.assert_close(small.get(name, torch.zeros_like(gradient)), gradient, atol=2e-6, rtol=1e-3)


def test_only_answers_are_learned(tmp_path):
    trainer = trainer_for(tmp_path)
    inputs = trainer.training_inputs(rows(4))
    tokenizer = trainer.processing_class.tokenizer
    for row, labels in zip(rows(4), inputs["labels"]):
        learned = [int(token) for token in labels if token != -100]
        assert tokenizer.decode(learned, skip_special_tokens=True).strip() == row["answer"]


def test_the_retrievers_encoder_stays_as_it_is(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    retriever = colour_retriever(model, processor)
    before = retriever.encoder.fingerprint
    trainer = trainer_for(tmp_path, model, processor, retriever, changes={"max_steps": 3})
    reader = model.language_model.lm_head.weight.clone()
    trainer.train()
    assert retriever.encoder.fingerprint == before
    assert not torch.equal(reader, model.language_model.lm_head.weight)


def test_towers_that_another_reader_shares_with_the_retriever_stay_as_they_are(tmp_path):
    """Towers taken out of one reader, whose index is searched, and put into another."""
    first, processor = tiny_model(), tiny_processor(fusion="concat")
    retriever = colour_retriever(first, tiny_processor())
    second = tiny_model(seed=1, fusion="concat")
    second.model.vision_tower, second.model.text_encoder = first.model.vision_tower, first.model.text_encoder
    before = retriever.encoder.fingerprint
    fusion = {name: parameter.clone() for name, parameter in second.fusion.named_parameters()}
    trainer_for(tmp_path, second, processor, retriever, changes={"max_steps": 3}).train()
    assert retriever.encoder.fingerprint == before
    assert any(not torch.equal(fusion[name], parameter) for name, parameter in second.fusion.named_parameters())


def test_gold_passages_that_nobody_reads_are_told(tmp_path, caplog):
    train = [{"question": "what ?", "answer": "red", "gold_ids": ["robin"]}]
    trainer_for(tmp_path, retriever=None, train=train)
    assert "not read without a `retriever`" in caplog.text
    caplog.clear()
    trainer_for(tmp_path, retriever=None, train=[{**train[0], "evidence": ["red"]}])
    assert not caplog.records


def test_evaluation_reports_answers_with_and_without_evidence_and_the_ranking(tmp_path):
    trainer = trainer_for(
        tmp_path,
        changes={
            "max_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "metric_for_best_model": "token_f1",
            "load_best_model_at_end": True,
        },
        eval_dataset=rows(6),
        generation={"max_new_tokens": 2, "do_sample": False},
    )
    trainer.train()
    metrics = trainer.evaluate()
    names = [
        "exact_match",
        "token_f1",
        "closed_book_exact_match",
        "rescued",
        "harmed",
        "hit@1",
        "hit@4",
        "mrr",
        "loss",
    ]
    assert {f"eval_{name}" for name in names} <= set(metrics)
    found, _ = trainer.batches.find(trainer.batches.opened(rows(6)), 4)
    ids = trainer.retriever.knowledge_base.ids
    hits = [row["gold_ids"][0] in [ids[place] for place in places] for row, places in zip(rows(6), found)]
    assert metrics["eval_hit@4"] == np.mean(hits)
    assert trainer.state.best_global_step in (1, 2)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("adapts", [False, True])
def test_the_model_of_the_best_answers_is_kept_and_not_the_last(tmp_path, monkeypatch, adapts):
    """What generated answers are worth decides, here 0.2, 0.9 and 0.5 of four rows after three steps."""
    measured, seen = iter([0.2, 0.9, 0.5]), []

    def sums(reader, batches, batch, **generation):
        assert generation == {"max_new_tokens": 2}
        assert not reader.training
        assert reader is without_adapters(trainer.model)
        seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
        return {"num_rows": 4.0, "exact_match": 4 * next(measured)}

    monkeypatch.setattr("hf_ravlm.training.measures.reader_sums", sums)
    steps = {f"{name}_steps": 1 for name in ("eval", "save")} | dict.fromkeys(
        ("eval_strategy", "save_strategy"), "steps"
    )
    trainer = trainer_for(
        tmp_path,
        changes={"max_steps": 3, **steps, "metric_for_best_model": "exact_match", "load_best_model_at_end": True},
        eval_dataset=rows(4),
        generation={"max_new_tokens": 2},
        peft_config=LoraConfig(r=2) if adapts else None,
    )
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (2, pytest.approx(0.9))
    kept = dict(trainer.model.named_parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(kept[name], tensor) for name, tensor in seen[2].items())


def test_a_batch_of_one_and_the_same_passage_twice_are_learned_from(tmp_path):
    train = [{**row, "evidence": ["kite : red", "kite : red"]} for row in rows(3)]
    once = {"per_device_train_batch_size": 1, "num_train_epochs": 1}
    for own, retriever in ((train, None), (rows(3), True)):
        trainer = trainer_for(
            tmp_path, train=own, retriever=retriever, changes=once, evidence=EvidenceMix(2, dropout=0.5)
        )
        assert np.isfinite(trainer.train().training_loss)
        assert trainer.state.global_step == 3
    for marginalization in ("sequence", "token"):  # a passage that is read twice says no more than once
        model = tiny_model(marginalization=marginalization)
        trainer = trainer_for(tmp_path, model, train=train, retriever=None)
        single = [{**row, "evidence": row["evidence"][:1]} for row in train]
        losses = []
        for asked in (train, single):
            inputs = trainer.training_inputs(asked)
            inputs.pop("row_names")
            with torch.no_grad():
                losses.append(trainer.model.eval()(**inputs).loss)
        torch.testing.assert_close(*losses)


def test_a_gold_passage_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(InvalidInputError, match="'eagle' \\(row 1\\)"):
        trainer_for(tmp_path, train=[rows(1)[0], {**rows(1)[0], "gold_ids": ["eagle"]}])


def test_a_data_set_without_rows_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no rows"):
        trainer_for(tmp_path, train=[]).train()


def test_rows_of_a_data_set_are_grouped_by_their_length(tmp_path):
    plain = [{name: row[name] for name in ("question", "answer", "gold_ids")} for row in rows(32)]
    asked = [{**row, "question": row["question"] + " red" * (9 * (number % 2))} for number, row in enumerate(plain)]
    tokenizer = tiny_processor().tokenizer
    train = datasets.Dataset.from_list(
        [{**row, "length": len(tokenizer(row["question"] + " " + row["answer"])["input_ids"])} for row in asked]
    )
    changes = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "max_steps": 2}
    trainer = trainer_for(tmp_path, train=train, changes=changes)
    batches = [[row["length"] > 9 for row in batch] for batch in trainer.get_train_dataloader()]
    assert sum(0 < sum(batch) < 2 for batch in batches) <= 4  # one in eight rows that are sorted together
    trainer.train()


def test_a_loss_that_is_no_number_stops_with_step_and_rows(tmp_path):
    trainer = trainer_for(tmp_path, changes={"max_steps": 3, "per_device_train_batch_size": 2})
    with torch.no_grad():
        trainer.model.language_model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 1 is nan .*'q\d+', 'q\d+'"):
        trainer.train()


def test_passages_stand_best_first_or_in_any_order(tmp_path):
    orders = {}
    for share in (0.0, 1.0):
        trainer = trainer_for(tmp_path, evidence=EvidenceMix(3, shuffled=share))
        opened = trainer.batches.opened(rows(12))
        chosen = [trainer.batches.evidence_for(opened, trainer.batches.mix, step) for step in range(5)]
        orders[share] = [[item["score"] for item in items] for batch in chosen for items in batch]
        texts = [[item["text"] for item in items] for batch in chosen for items in batch]
        orders[share, "texts"] = [sorted(items) for items in texts]
    assert all(scores == sorted(scores, reverse=True) for scores in orders[0.0])
    assert orders[0.0, "texts"] == orders[1.0, "texts"]
    first = np.mean([scores[0] == max(scores) for scores in orders[1.0]])
    assert first == pytest.approx(1 / 3, abs=0.2)


def broken_rows() -> list[dict]:
    return [{**row, "image": b"no picture"} if n in (2, 5) else row for n, row in enumerate(rows(8))]


def test_broken_pictures_are_refused_or_replaced_or_left_out_and_counted(tmp_path):
    once = {"num_train_epochs": 1}
    with pytest.raises(UnsafeInputError, match="'q[25]'"):
        trainer_for(tmp_path, train=broken_rows(), changes=once).train()
    for policy in ("blank", "skip"):
        trainer = trainer_for(tmp_path, train=broken_rows(), changes=once, on_error=policy, max_broken=2)
        trainer.train()
        assert trainer.batches.num_broken == 2
        trainer = trainer_for(tmp_path, train=broken_rows(), changes=once, on_error=policy, max_broken=1)
        with pytest.raises(UnsafeInputError, match="2 broken"):
            trainer.train()
    with pytest.raises(InvalidInputError, match="None of the 1 rows"):
        trainer_for(tmp_path, train=broken_rows(), on_error="skip").training_inputs(broken_rows()[2:3])


def test_what_is_left_out_is_neither_learned_nor_measured(tmp_path):
    trainer = trainer_for(
        tmp_path, on_error="skip", eval_dataset=broken_rows(), generation={"max_new_tokens": 2, "do_sample": False}
    )
    inputs, whole = trainer.training_inputs(broken_rows()), trainer.training_inputs(rows(8))
    kept = [number for number in range(8) if number not in (2, 5)]
    assert inputs["row_names"] == [whole["row_names"][number] for number in kept]
    torch.testing.assert_close(inputs["pixel_values"], whole["pixel_values"][kept])
    without = trainer_for(
        tmp_path,
        trainer.model,
        eval_dataset=[rows(8)[number] for number in kept],
        generation={"max_new_tokens": 2, "do_sample": False},
    )
    told, expected = trainer.evaluate(), without.evaluate()
    for name in ("eval_hit@1", "eval_exact_match", "eval_token_f1", "eval_closed_book_exact_match"):
        assert told[name] == pytest.approx(expected[name])


def test_a_data_set_with_a_broken_picture_goes_by_the_policy(tmp_path):
    """`datasets` decodes pictures when a row is taken: the policy must come first."""
    table = {key: [row[key] for row in broken_rows()] for key in ("id", "question", "answer", "gold_ids")}
    images = [{"bytes": encoded_image(row["image"]), "path": None} for row in rows(8)]
    images[2] = {"bytes": b"no picture", "path": None}
    dataset = datasets.Dataset.from_dict({**table, "image": images}).cast_column("image", datasets.Image())
    trainer = trainer_for(tmp_path, train=dataset, changes={"num_train_epochs": 1}, on_error="skip")
    trainer.train()
    assert trainer.batches.num_broken == 1
    assert trainer.state.global_step == 2


def test_columns_of_other_names_are_told(tmp_path):
    unlike = [{"foto": row["image"], "asked": row["question"], "answer": row["answer"]} for row in rows(4)]
    with pytest.raises(InvalidInputError, match=r"`question` nor `image`; it has \['answer', 'asked', 'foto'\]"):
        trainer_for(tmp_path, train=unlike).train()
    nameless = [{"image": row["image"], "question": row["question"], "label": row["answer"]} for row in rows(4)]
    with pytest.raises(InvalidInputError, match=r"no answer to learn.*it has \['image', 'label', 'question'\]"):
        trainer_for(tmp_path, train=nameless).train()


def test_options_for_rows_need_a_processor_and_no_collator(tmp_path):
    with pytest.raises(InvalidInputError, match="processing_class"):
        RavlmTrainer(tiny_model(), arguments(tmp_path), data_collator=list, evidence=EvidenceMix())


@pytest.mark.parametrize("fusion", ["in_context", "gated"])
def test_with_no_passages_at_all_a_batch_is_closed_book(tmp_path, fusion):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion)
    trainer = trainer_for(tmp_path, model, processor, evidence=EvidenceMix(num_passages=0))
    inputs = trainer.training_inputs(rows(2))
    names = inputs.pop("row_names")
    assert names == ["'q0'", "'q1'"]
    alone = processor(
        images=[row["image"] for row in rows(2)],
        text=[row["question"] for row in rows(2)],
        answers=[row["answer"] for row in rows(2)],
    )
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).loss, model(**alone).loss)
    assert (len(THINGS), len(COLOURS)) == (6, 6)


def test_training_the_reader_leaves_the_encoder_untouched_and_lowers_the_loss(tmp_path):
    tower = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}  # with batch norm
    model, processor = tiny_model(vision_config={"model_type": "resnet", **tower}), tiny_processor()
    before = RavlmEncoder(model.model, processor).fingerprint
    freeze(model.model)
    asked = [
        {"image": picture(n), "question": "what is red ?", "evidence": ["red white"], "answer": ["white", "of"][n % 2]}
        for n in range(8)
    ]

    def collate(batch):
        return processor(
            images=[row["image"] for row in batch],
            text=[row["question"] for row in batch],
            evidence=[row["evidence"] for row in batch],
            answers=[row["answer"] for row in batch],
        )

    settings = arguments(tmp_path, num_train_epochs=15, per_device_train_batch_size=8, remove_unused_columns=False)
    with torch.no_grad():
        first = model(**collate(asked)).loss.item()
    RavlmTrainer(model=model, args=settings, train_dataset=asked, data_collator=collate).train()
    with torch.no_grad():
        last = model.eval()(**collate(asked)).loss.item()
    assert last < first / 2
    assert RavlmEncoder(model.model, processor).fingerprint == before


def mixed_rows() -> list[dict]:
    """Every second question has no image."""
    return [{**row, "image": row["image"] if place % 2 else None} for place, row in enumerate(rows())]


@pytest.mark.parametrize("fusion", ["in_context", "concat", "cross_attention"])
def test_questions_with_and_without_an_image_are_learned_in_one_batch(tmp_path, fusion):
    assert mixed_rows()[1]["image"] is not None
    trainer = trainer_for(
        tmp_path,
        tiny_model(fusion=fusion),
        tiny_processor(fusion=fusion),
        train=mixed_rows(),
        changes={"max_steps": 1, "per_device_train_batch_size": 4},
    )
    trainer.train()
    assert np.isfinite(trainer.evaluate(mixed_rows()[:4])["eval_loss"])


def test_a_fusion_that_reads_images_and_words_together_refuses_mixed_rows_in_words(tmp_path):
    trainer = trainer_for(tmp_path, tiny_model(fusion="gated"), tiny_processor(fusion="gated"), train=mixed_rows()[:4])
    with pytest.raises(InvalidInputError, match="fusion='gated' cannot read together"):
        trainer.train()
