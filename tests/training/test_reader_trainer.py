"""The reader's trainer on rows: what is counted, what is frozen, what is measured, and what stops it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ravlm import InvalidInputError, UnsafeInputError
from hf_ravlm.training.evidence_mixing import EvidenceMix
from hf_ravlm.training.trainers import RavlmTrainer
from reading_world import COLOURS, THINGS, arguments, colour_retriever, rows
from tiny import tiny_model, tiny_processor


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


def test_a_gold_passage_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(InvalidInputError, match="'eagle' \\(row 1\\)"):
        trainer_for(tmp_path, train=[rows(1)[0], {**rows(1)[0], "gold_ids": ["eagle"]}])


def test_a_loss_that_is_no_number_stops_with_step_and_rows(tmp_path):
    trainer = trainer_for(tmp_path, changes={"max_steps": 3, "per_device_train_batch_size": 2})
    with torch.no_grad():
        trainer.model.language_model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 1 is nan .*'q\d+', 'q\d+'"):
        trainer.train()


def test_broken_pictures_are_refused_or_replaced_and_counted(tmp_path):
    train = [{**row, "image": b"no picture"} if n in (2, 5) else row for n, row in enumerate(rows(8))]
    with pytest.raises(UnsafeInputError, match="'q[25]'"):
        trainer_for(tmp_path, train=train, changes={"num_train_epochs": 1}).train()
    trainer = trainer_for(tmp_path, train=train, changes={"num_train_epochs": 1}, on_broken="blank", max_broken=2)
    trainer.train()
    assert trainer.batches.num_broken == 2
    trainer = trainer_for(tmp_path, train=train, changes={"num_train_epochs": 1}, on_broken="blank", max_broken=1)
    with pytest.raises(UnsafeInputError, match="2 broken"):
        trainer.train()


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
