"""Losses of memory pretraining against loops written out."""

from __future__ import annotations

import math

import pytest
import torch

from hf_ravlm.training.losses.memory import answer_logits, hard_token_loss, next_token_distillation_loss


def given(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([[-100, -100, 3, 1], [-100, 2, 0, -100]])


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("number", [None, 7])
def test_hard_tokens_weigh_by_what_is_missing(focus, number):
    logits, labels = given()
    loss = hard_token_loss({"logits": logits}, labels, number, focus=focus)
    total = 0.0
    for row in range(2):
        for at in range(1, 4):
            if labels[row, at] != -100:
                p = torch.softmax(logits[row, at - 1], dim=0)[labels[row, at]].item()
                total -= (1 - p) ** focus * math.log(p)
    assert math.isclose(loss.item(), total / (number or 4), rel_tol=1e-5)
    loss.backward()
    assert logits.grad[0, 0].abs().max() == 0  # predicts no answer


def test_without_focus_it_is_cross_entropy():
    logits, labels = given()
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(hard_token_loss({"logits": logits}, labels, focus=0.0).double(), expected.double())


def test_distillation_is_the_written_out_divergence():
    (student, labels), (teacher, _) = given(0), given(1)
    memory, words = answer_logits(student, labels)[0], answer_logits(teacher, labels)[0]
    loss = next_token_distillation_loss(memory, words)
    total = 0.0
    for s, t in zip(memory.double(), words.double(), strict=True):
        p, q = torch.softmax(t, 0), torch.softmax(s, 0)
        total += (p * (p / q).log()).sum().item()
    assert math.isclose(loss.item(), total / 4, rel_tol=1e-4)
    assert math.isclose(next_token_distillation_loss(memory, words, 8).item(), total / 8, rel_tol=1e-4)
    loss.backward()
    assert student.grad.abs().max() > 1e-3
    assert teacher.grad is None
    assert abs(next_token_distillation_loss(memory, memory).item()) < 1e-6


def test_answers_line_up_whatever_stands_before_them():
    logits, labels = given()
    moved = torch.cat([torch.zeros(2, 3, 5, dtype=torch.float64), logits], dim=1)
    padded = torch.cat([torch.full((2, 3), -100), labels], dim=1)
    for ours, theirs in zip(answer_logits(logits, labels), answer_logits(moved, padded), strict=True):
        assert torch.equal(ours, theirs)
