"""Losses that teach the retriever, against loops written out, and the laws between them."""

from __future__ import annotations

import math

import pytest
import torch

from hf_ravlm.model.reader.likelihoods import passage_log_prior, rag_sequence_log_likelihood
from hf_ravlm.training.losses.distillation import emdr2_loss, perplexity_distillation_loss, pseudo_relevance_loss


def given(seed=0, batch=3, passages=4):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, passages, generator=generator, dtype=torch.float64)
    log_likelihood = -5 * torch.rand(batch, passages, generator=generator, dtype=torch.float64)
    return log_likelihood.requires_grad_(), scores.requires_grad_()


def softmax(values):
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("mask", [None, [[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]])
def test_perplexity_distillation_is_the_written_out_divergence(mask):
    log_likelihood, scores = given()
    num_tokens = torch.tensor([2, 3, 5])
    evidence_mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    loss = perplexity_distillation_loss(log_likelihood, num_tokens, scores, evidence_mask, 0.5, 0.2)
    total = 0.0
    for b in range(3):
        kept = [k for k in range(4) if mask is None or mask[b][k]]
        target = softmax([log_likelihood[b, k].item() / num_tokens[b].item() / 0.2 for k in kept])
        own = softmax([scores[b, k].item() / 0.5 for k in kept])
        total += sum(p * math.log(p / q) for p, q in zip(target, own))
    assert math.isclose(loss.item(), total / 3, rel_tol=1e-5)
    loss.backward()
    assert scores.grad.abs().max() > 1e-3
    assert log_likelihood.grad is None


def test_perplexity_distillation_is_zero_where_retriever_and_reader_agree():
    log_likelihood, _ = given()
    told = log_likelihood.detach() / 2 + 7
    loss = perplexity_distillation_loss(log_likelihood, torch.tensor([2, 2, 2]), told, None, 0.3, 0.3)
    assert abs(loss.item()) < 1e-6


def test_emdr2_has_the_gradient_of_rag_sequence_and_spares_the_reader():
    log_likelihood, scores = given()
    emdr2_loss(log_likelihood, scores, logit_scale=3.0).backward()
    assert log_likelihood.grad is None
    ours, scores.grad = scores.grad, None
    (-rag_sequence_log_likelihood(log_likelihood, passage_log_prior(scores, logit_scale=3.0)).mean()).backward()
    torch.testing.assert_close(ours, scores.grad)
    by_hand = [
        -math.log(sum(p * math.exp(a) for p, a in zip(softmax([3 * s for s in row]), told)))
        for row, told in zip(scores.tolist(), log_likelihood.tolist())
    ]
    assert math.isclose(emdr2_loss(log_likelihood, scores, logit_scale=3.0).item(), sum(by_hand) / 3, rel_tol=1e-5)


def test_pseudo_relevance_learns_where_both_witnesses_agree_alone():
    _, scores = given()
    has_answer = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    right = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    loss = pseudo_relevance_loss(scores, has_answer, right, logit_scale=2.0)
    terms = []
    for b in range(3):
        p = softmax([2 * s for s in scores[b].tolist()])
        for k in range(4):
            if has_answer[b, k] == right[b, k]:
                terms.append(-math.log(p[k] if has_answer[b, k] else 1 - p[k]))
    assert math.isclose(loss.item(), sum(terms) / len(terms), rel_tol=1e-5)
    loss.backward()
    torch.testing.assert_close(scores.grad[2], torch.zeros_like(scores.grad[2]))  # nothing labelled there


def test_extreme_scores_stay_finite():
    scores = torch.tensor([[200.0, -200.0]], requires_grad=True)
    labels = torch.tensor([[False, True]])
    loss = pseudo_relevance_loss(scores, labels, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()
    nothing = pseudo_relevance_loss(scores, labels, ~labels)
    assert nothing.item() == 0
    for loss in (emdr2_loss, lambda a, s: perplexity_distillation_loss(a, torch.ones(1), s)):
        assert torch.isfinite(loss(torch.tensor([[-1e4, -1e5]]), scores))


def test_pseudo_relevance_is_exact_where_the_retriever_is_sure():
    """In double precision by hand; in float32 `1 - p` is 0 for the first passage, and its gradient must not be."""
    scores = torch.tensor([[30.0, 0.0, -5.0], [90.0, 1.0, 2.0]], requires_grad=True)
    wrong = torch.zeros(2, 3, dtype=torch.bool)
    loss = pseudo_relevance_loss(scores, wrong, wrong)
    loss.backward()
    exact = scores.detach().double().requires_grad_()
    rest = [exact[:, [j for j in range(3) if j != k]].logsumexp(1) - exact.logsumexp(1) for k in range(3)]
    expected = -torch.stack(rest, dim=1).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected)
    torch.testing.assert_close(scores.grad.double(), exact.grad, atol=1e-6, rtol=1e-4)


def test_a_passage_that_is_alone_is_no_negative():
    scores, wrong = torch.tensor([[3.0, 1.0]], requires_grad=True), torch.zeros(1, 2, dtype=torch.bool)
    loss = pseudo_relevance_loss(scores, wrong, wrong, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == 0.0
    assert not scores.grad.any()
