"""Two processes with uneven shares of a batch have the gradient of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_alignment import CASES, build_batch, build_model, build_trainer, step_gradients


pytestmark = pytest.mark.slow


@pytest.fixture
def two_processes(written_by_two) -> Path:
    """The folder that two processes have written to."""
    return written_by_two / "tiny_alignment"


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_joined_batch(name, two_processes, tmp_path):
    settings, queries, hard = CASES[name]
    trainer = build_trainer(tmp_path, build_model(), use_cpu=True, **settings)
    _, expected = step_gradients(trainer, build_batch(sum(queries), sum(hard)))
    for rank in range(2):
        found = load_file(two_processes / f"{name}_{rank}.safetensors")
        used = {key for key, gradient in found.items() if gradient.any()}
        assert {key for key, gradient in expected.items() if gradient.any()} == used
        for key in used:
            scale = expected[key].abs().max().clamp(min=1e-2)
            assert (found[key] - expected[key]).abs().max() / scale < 1e-4, key


def test_inputs_of_unlike_processes_are_joined(two_processes):
    for rank in range(2):
        joined = load_file(two_processes / f"inputs_{rank}.safetensors")
        assert joined["image_mask"].tolist() == [True, True, False]
        assert joined["text_mask"].tolist() == [False, False, True]
        assert joined["input_ids"][2].tolist() == [9, 9, 9]
        assert joined["attention_mask"].any(dim=1).all()
        # positives of process 0 and 1, then their hard negatives
        expected = [[5, 5, 0], [5, 5, 0], [6, 6, 6], [5, 5, 0], [6, 6, 6]]
        assert joined["passage_input_ids"].tolist() == expected
        assert joined["passage_attention_mask"].sum(dim=1).tolist() == [2, 2, 3, 2, 3]


def test_training_keeps_the_processes_together(two_processes):
    first, second = (load_file(two_processes / f"trained_{rank}.safetensors") for rank in range(2))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    before = build_model().state_dict()
    assert any(not torch.equal(first[name], before[name]) for name in first)
    logs = load_file(two_processes / "logs_0.safetensors")
    assert torch.allclose(logs["itc_loss"] + logs["itm_loss"], logs["loss"], atol=1e-3)


@torch.no_grad()
def test_recall_is_that_of_the_whole_set_without_the_rows_that_fill_up_the_last_batch(two_processes):
    model, batch = build_model().eval(), build_batch(7)
    model.load_state_dict(load_file(two_processes / "trained_0.safetensors"))
    inputs = {name: batch[name] for name in ("pixel_values", "passage_input_ids", "passage_attention_mask")}
    outputs, labels = model(**inputs), batch["query_labels"]
    distinct = torch.tensor([row for row in range(7) if labels[row] not in labels[:row]])
    scores = outputs.query_embeds @ outputs.passage_embeds[distinct].T
    own = scores.gather(1, (labels[:, None] == labels[distinct]).int().argmax(dim=1, keepdim=True))
    ranks = 1 + (scores > own).sum(dim=1)
    logs = load_file(two_processes / "logs_1.safetensors")
    assert logs["eval_mrr"].item() == pytest.approx((1 / ranks).mean().item(), abs=1e-5)
    assert logs["eval_recall@1"].item() == pytest.approx((ranks == 1).float().mean().item(), abs=1e-5)
