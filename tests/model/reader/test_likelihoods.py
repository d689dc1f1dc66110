"""Losses and likelihoods against brute force in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hf_ravlm.model.reader.likelihoods import answer_log_likelihood, info_nce, passage_posterior


def test_info_nce_equals_the_sum_written_out():
    torch.manual_seed(0)
    queries = F.normalize(torch.randn(4, 8, dtype=torch.float64), dim=-1)
    passages = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=-1)
    labels, passage_labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 0, 5])
    total = 0.0
    for i in range(4):
        terms = [
            math.exp(7.0 * float(queries[i] @ passages[j]))
            for j in range(6)
            if j == i or labels[i] != passage_labels[j]
        ]
        total -= math.log(math.exp(7.0 * float(queries[i] @ passages[i])) / sum(terms))
    loss = info_nce(queries, passages, 7.0, labels, passage_labels)
    assert loss.item() == pytest.approx(total / 4, abs=1e-5)


def test_duplicates_cost_half_log_two_unless_masked():
    embeds = torch.eye(4)[[0, 0, 1, 2]]
    labels = torch.tensor([0, 0, 1, 2])
    assert info_nce(embeds, embeds, 1000.0).item() == pytest.approx(0.5 * math.log(2), abs=1e-6)
    assert info_nce(embeds, embeds, 1000.0, labels, labels).item() == pytest.approx(0.0, abs=1e-6)


def test_answer_log_likelihood_and_posterior_equal_brute_force():
    torch.manual_seed(1)
    logits = torch.randn(3, 5, 7, dtype=torch.float64)  # three passages
    labels = torch.tensor([[-100, -100, 2, 4, -100]] * 3)
    likelihoods = []
    for k in range(3):
        probability = 1.0
        for t in (2, 3):
            row = logits[k, t - 1].exp()
            probability *= float(row[labels[k, t]] / row.sum())
        likelihoods.append(probability)
    ours = answer_log_likelihood(logits, labels)
    assert ours.exp().tolist() == pytest.approx(likelihoods, rel=1e-5)
    scores = torch.tensor([[0.3, -0.2, 0.9]])
    prior = [math.exp(5 * score) for score in scores[0].tolist()]
    joint = [p * q for p, q in zip(prior, likelihoods)]
    expected = [value / sum(joint) for value in joint]
    posterior = passage_posterior(ours[None], scores, 5.0)
    assert posterior[0].tolist() == pytest.approx(expected, rel=1e-5)
    order = torch.tensor([2, 0, 1])
    permuted = passage_posterior(ours[None][:, order], scores[:, order], 5.0)
    torch.testing.assert_close(permuted, posterior[:, order])
