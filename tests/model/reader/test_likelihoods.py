"""Likelihoods of answers against brute force in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from hf_ravlm.model.reader.likelihoods import answer_log_likelihood, passage_posterior


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
