"""Losses and likelihoods as pure functions of tensors, computed in float32.

They know no model. Formulas and the identities that their tests check are named with each function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def info_nce(
    query_embeds: torch.Tensor,
    passage_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    query_labels: torch.Tensor | None = None,
    passage_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE of queries against passages, with passages of the query's own label masked out.

    In plain terms: query `i` shall prefer passage `i` to all others. `L = mean_i [-s_ii + logsumexp_j s_ij]` with
    `s = logit_scale * cosine`; columns `j != i` that carry the query's label are no negatives and are left out.

    Inputs: `query_embeds (B, D)` and `passage_embeds (N, D)` of unit length, `N >= B`, passage `i` positive for query
    `i`, the rest hard negatives; `logit_scale` is `1 / temperature`; labels `(B,)` and `(N,)` are whole numbers.

    Recommendations: give labels whenever a batch can hold one thing twice; unmasked, such rows have the floor `log 2`.

    Relations: `logit_scale=20` is `temperature=0.05`, the `scale=20` of sentence-transformers.

    References: van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021 (arXiv 2103.00020).

    Example:

    >>> same = torch.eye(2)
    >>> round(info_nce(same, same, 1.0).item(), 4)  # log(1 + exp(-1))
    0.3133
    """
    scores = query_embeds.float() @ passage_embeds.float().mT * logit_scale  # (B, N)
    positives = torch.arange(len(query_embeds), device=scores.device)
    if query_labels is not None and passage_labels is not None:
        killed = query_labels[:, None] == passage_labels[None, :]  # (B, N)
        killed[positives, positives] = False
        scores = scores.masked_fill(killed, float("-inf"))
    return F.cross_entropy(scores, positives)


def answer_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each labelled answer under a causal language model.

    `log p(y) = sum_t log softmax(logits_{t-1})[y_t]` over positions whose label is not -100.

    Args:
        logits (`torch.Tensor` of shape `(N, L, V)`): as the model returns them (position `t` predicts `t + 1`).
        labels (`torch.LongTensor` of shape `(N, L)`): aligned with the inputs; -100 is ignored.

    Returns:
        `torch.FloatTensor` of shape `(N,)`, at most 0.

    Example:

    >>> logits = torch.zeros(1, 3, 4)  # uniform over 4 tokens
    >>> round(answer_log_likelihood(logits, torch.tensor([[-100, 1, 2]])).item(), 4)  # 2 * log(1/4)
    -2.7726
    """
    targets = labels[:, 1:]
    keep = targets != -100
    log_probs = logits[:, :-1].float().log_softmax(dim=-1)
    picked = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (N, L - 1)
    return (picked * keep).sum(dim=-1)


def passage_posterior(
    log_likelihood: torch.Tensor, scores: torch.Tensor, logit_scale: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Which passage carries the answer: `p(z_k | x, y) = softmax_k(log p(y | x, z_k) + log p(z_k | x))`.

    Args:
        log_likelihood (`torch.Tensor` of shape `(B, K)`): of the answer under each passage alone.
        scores (`torch.Tensor` of shape `(B, K)`): retrieval scores; `p(z | x) = softmax(logit_scale * scores)`.
        logit_scale (`float`): `1 / temperature` of the retriever.

    Returns:
        `torch.FloatTensor` of shape `(B, K)`; rows sum to 1. Lewis et al. 2020 (arXiv 2005.11401), RAG-sequence.

    Example:

    >>> passage_posterior(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]])).tolist()
    [[0.5, 0.5]]
    """
    prior = (scores.float() * logit_scale).log_softmax(dim=-1)
    return (log_likelihood.float() + prior).softmax(dim=-1)
