"""Memory pretraining in the reader's trainer: what is asked, what it costs, what is refused."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import InvalidInputError
from hf_ravlm.training import MemoryTraining, RavlmTrainer
from hf_ravlm.training.batches.rows import TrainingRow
from hf_ravlm.training.memory import ASKED, IN_WORDS, REPEAT, beginning
from hf_ravlm.training.trainers import freeze
from reading_world import arguments
from tiny import tiny_model, tiny_processor


ROWS = [
    {"question": "what ?", "answer": "Oslo", "evidence": ["the capital of Norway is Oslo", "red white"]},
    {"question": "which ?", "answer": "Chad is", "evidence": ["Chad is red"]},
    {"question": "is it ?", "answer": "white", "evidence": []},
    {"question": "what of it ?", "answer": "red", "evidence": ["red", "of Norway", "is"]},
]


def trainer_for(folder, memory, fusion="concat", rows=ROWS, changes=None, **options) -> RavlmTrainer:
    settings = {"max_steps": 2, "learning_rate": 1e-3, **(changes or {})}
    return RavlmTrainer(
        tiny_model(fusion=fusion, **options),
        arguments(folder, **settings),
        train_dataset=rows,
        processing_class=tiny_processor(fusion=fusion),
        memory=memory,
    )


def asked_for(trainer, inputs) -> list[str]:
    tokenizer = trainer.processing_class.tokenizer
    return [
        tokenizer.decode([int(id) for id in labels if id != -100], skip_special_tokens=True).strip()
        for labels in inputs["labels"]
    ]


def test_rows_ask_for_one_of_their_passages(tmp_path):
    trainer = trainer_for(tmp_path, MemoryTraining(reconstruction=1.0))
    inputs = trainer.training_inputs(ROWS)
    for row, answer in zip(ROWS, asked_for(trainer, inputs), strict=True):
        assert answer in row["evidence"] if row["evidence"] else answer == row["answer"]
    assert inputs["evidence_mask"].sum(1).tolist() == [1, 1, 0, 1]  # the passage itself, and no other
    assert IN_WORDS not in inputs


def test_the_share_runs_from_start_to_end_and_draws_are_of_the_seed():
    rows = [TrainingRow.parse({**row, "row_number": n}) for n, row in enumerate(ROWS * 50)]
    evidence = [row.evidence for row in rows]
    memory = MemoryTraining(reconstruction=(1.0, 0.0))
    shares = []
    for progress in (0.0, 0.5, 1.0):
        asked, given, kept = memory.repeated(rows, evidence, progress, [3, 7])
        assert memory.repeated(rows, evidence, progress, [3, 7])[2] == kept
        assert all((row.question == REPEAT) != is_kept for row, is_kept in zip(asked, kept, strict=True))
        assert all(len(items) == 1 for items, is_kept in zip(given, kept, strict=True) if not is_kept)
        shares.append(1 - sum(kept) / len(kept))
    assert shares[0] == 0.75  # a row without a passage stays a question
    assert 0.2 < shares[1] < 0.55
    assert shares[2] == 0


def test_long_passages_are_repeated_from_their_beginning():
    text = "word " * 100
    assert len(beginning(text)) <= 256
    assert text.startswith(beginning(text))
    assert not beginning(text).endswith(" ")


@pytest.mark.parametrize("fusion", ["concat", "product", "attention", "gated", "cross_attention"])
def test_the_reader_of_words_teaches_the_reader_of_memory(tmp_path, fusion):
    """Its loss is that of the answers and the divergence, by hand."""
    trainer = trainer_for(tmp_path, MemoryTraining(reconstruction=0.0, distillation=0.5), fusion)
    inputs = trainer.training_inputs(ROWS)
    assert inputs[ASKED].tolist() == [True] * 4
    words = dict(inputs[IN_WORDS])
    assert not any(name.startswith("evidence_input_ids") for name in words)
    names = {name: value for name, value in inputs.items() if name not in (IN_WORDS, ASKED, "row_names")}
    model = trainer.model.eval()
    with torch.no_grad():
        memory = model(**names)
        loss = trainer.compute_loss(model, {**names, IN_WORDS: words, ASKED: inputs[ASKED]})
        teacher = model(**words)
    divergence, number = 0.0, 0
    for row in range(4):
        answers = [
            outputs.logits[row, [at - 1 for at in torch.nonzero(labels[row] != -100).flatten()]].log_softmax(-1)
            for outputs, labels in ((memory, names["labels"]), (teacher, words["labels"]))
        ]
        assert answers[0].shape == answers[1].shape
        divergence += (answers[1].exp() * (answers[1] - answers[0])).sum()
        number += len(answers[0])
    torch.testing.assert_close(loss, memory.loss + 0.5 * divergence / number, rtol=1e-4, atol=1e-5)
    assert divergence > 0


def test_steps_in_parts_are_those_of_the_large_batch(tmp_path):
    rows = [row for row in ROWS if row["evidence"]] + ROWS[:1]
    found = []
    for size in (4, 1):
        changes = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 4 // size,
            "max_steps": 1,
            "max_grad_norm": 0.0,
        }
        memory = MemoryTraining(reconstruction=0.5, distillation=1.0, focus=1.0)
        trainer, kept = trainer_for(tmp_path / str(size), memory, rows=rows, changes=changes), {}
        freeze(trainer.model.model)  # no dropout
        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, kept=kept: kept.update(
                {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
            )
        )
        trainer.train()
        found.append(kept)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=2e-6, rtol=1e-3)


def test_what_has_no_memory_and_what_has_no_meaning_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="fusion='in_context'.*expected a fusion with weights"):
        trainer_for(tmp_path, MemoryTraining(), "in_context")
    with pytest.raises(InvalidInputError, match="marginalization='sequence'"):
        trainer_for(tmp_path, MemoryTraining(), marginalization="sequence")
    with pytest.raises(InvalidInputError, match="exclude each other"):
        trainer_for(tmp_path, MemoryTraining(focus=1.0), changes={"label_smoothing_factor": 0.1})
    with pytest.raises(InvalidInputError, match="memory and generation are for rows"):
        RavlmTrainer(tiny_model(), arguments(tmp_path), data_collator=list, memory=MemoryTraining())
    with pytest.raises(InvalidInputError, match="memory=0.5: expected a MemoryTraining"):
        trainer_for(tmp_path, 0.5)
    with pytest.raises(InvalidInputError, match="learns from passages, and there are none"):
        trainer_for(tmp_path, MemoryTraining(), rows=[{"question": "is it ?", "answer": "white", "gold_ids": ["a"]}])
    for wrong in (
        {"reconstruction": 1.5},
        {"reconstruction": "0.5"},
        {"reconstruction": (0, 1, 1)},
        {"distillation": -1.0},
        {"focus": -0.1},
        {"focus": "1"},
    ):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            MemoryTraining(**wrong)
