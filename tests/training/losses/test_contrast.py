"""The losses that align two towers against loops over single numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hf_ravlm.model.modeling_ravlm import info_nce
from hf_ravlm.training.losses.contrast import (
    draw_hard_negatives,
    info_nce_rows,
    left_out_negatives,
    matryoshka_views,
    triplet_rows,
)


def unit_vectors(num_rows: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_rows_are_the_terms_of_the_mean_also_block_by_block():
    queries, passages = unit_vectors(5), unit_vectors(8, seed=1)
    labels = torch.tensor([0, 1, 1, 2, 3, 0, 9, 9])
    places = torch.arange(5)
    left_out = left_out_negatives(queries, passages, places, labels[:5], labels)
    rows = info_nce_rows(queries, passages, places, 7.0, left_out)
    assert torch.allclose(rows.mean(), info_nce(queries, passages, 7.0, labels[:5], labels), atol=1e-6)
    block = info_nce_rows(queries[3:], passages, places[3:], 7.0, left_out[3:])
    assert torch.allclose(block, rows[3:], atol=1e-6)


def test_info_nce_equals_brute_force():
    queries, passages = unit_vectors(4).double(), unit_vectors(6, seed=1).double()
    left_out = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.3
    left_out[torch.arange(4), torch.arange(4)] = False
    for row, loss in enumerate(info_nce_rows(queries, passages, torch.arange(4), 5.0, left_out)):
        terms = [math.exp(5 * float(queries[row] @ passages[j])) for j in range(6) if not left_out[row, j]]
        assert loss.item() == pytest.approx(math.log(sum(terms)) - 5 * float(queries[row] @ passages[row]), abs=1e-5)


def test_the_same_passage_twice_has_a_floor_that_its_label_takes_away():
    passages = torch.eye(4)[[0, 0, 1, 2]]
    labels, places = torch.tensor([0, 0, 1, 2]), torch.arange(4)
    unmasked = info_nce_rows(passages, passages, places, 100.0)
    assert unmasked.mean().item() == pytest.approx(math.log(2) / 2, abs=1e-5)
    left_out = left_out_negatives(passages, passages, places, labels, labels)
    assert info_nce_rows(passages, passages, places, 100.0, left_out).mean().item() == pytest.approx(0, abs=1e-5)


def test_without_a_negative_there_is_neither_loss_nor_gradient():
    query = unit_vectors(1).requires_grad_()
    loss = info_nce_rows(query, unit_vectors(1, seed=1), torch.tensor([0]), 20.0)
    loss = loss + triplet_rows(query, unit_vectors(1, seed=1), torch.tensor([0]), 0.2)
    loss.sum().backward()
    assert loss.item() == 0
    assert query.grad.abs().max() == 0


def test_what_looks_too_much_like_the_positive_is_no_negative():
    query = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.5, 0.3, 0.6, 1.5, 2.5])  # the positive first
    passages = torch.stack([angles.cos(), angles.sin()], dim=1)
    left_out = left_out_negatives(query, passages, torch.tensor([0]), ratio=0.95)
    own = math.cos(0.5)
    expected = [False] + [math.cos(angle) > 0.95 * own for angle in angles[1:].tolist()]
    assert left_out.tolist() == [expected]
    assert left_out.any()
    opposite = left_out_negatives(-query, passages, torch.tensor([0]), ratio=0.95)  # the rule needs a positive cosine
    assert not opposite.any()


def test_triplets_are_semi_hard():
    queries, passages = unit_vectors(7), unit_vectors(12, seed=1)
    passages[3] = -queries[3]  # all negatives are nearer than this positive
    labels = torch.arange(12) % 9
    places = torch.arange(7)
    left_out = left_out_negatives(queries, passages, places, labels[:7], labels)
    kinds = set()
    for row, loss in enumerate(triplet_rows(queries, passages, places, 0.3, left_out).tolist()):
        cosines = (queries[row] @ passages.T).tolist()
        negatives = [cosines[j] for j in range(12) if labels[j] != labels[row]]
        farther = [cosine for cosine in negatives if cosine < cosines[row]]
        chosen = max(farther) if farther else min(negatives)
        kinds.add(bool(farther))
        assert loss == pytest.approx(max(0.0, 0.3 - cosines[row] + chosen), abs=1e-5)
    assert kinds == {True, False}  # both rules were used


def test_every_width_is_normalised_anew():
    vectors = unit_vectors(3)
    for (cut, other), dim in zip(matryoshka_views(vectors, vectors, [2, 6]), [2, 6], strict=True):
        assert cut.shape == (3, dim)
        assert torch.allclose(cut, F.normalize(vectors[:, :dim], dim=-1))
        assert torch.equal(cut, other)


def test_negatives_are_drawn_as_often_as_their_softmax_says():
    scores = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    left_out = torch.tensor([[False, False, False, True]])
    drawn = draw_hard_negatives(
        scores.expand(20_000, -1), left_out.expand(20_000, -1), torch.Generator().manual_seed(0)
    )
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares[:3], scores[0, :3].softmax(-1), atol=0.015)
    assert shares[3] == 0
