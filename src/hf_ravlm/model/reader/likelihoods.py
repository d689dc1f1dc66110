"""Likelihoods of answers over latent passages: pure functions of tensors, computed in float32."""

from __future__ import annotations

import torch


NUMBERS_PER_PIECE = 1 << 23  # of logits that are turned into log-probabilities at once: 32 MB in float32


def _columns_per_piece(logits: torch.Tensor) -> int:
    return max(NUMBERS_PER_PIECE // max(logits.shape[0] * logits.shape[-1], 1), 1)


def target_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`log softmax(logits)[target]` at each place, piece by piece, as a vocabulary is large.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`), targets (`torch.LongTensor` of shape `(N, T)`): -100 for none.

    Returns:
        `(N, T)` in float32, 0 where there is no target.

    >>> target_log_probs(torch.zeros(1, 2, 4), torch.tensor([[3, -100]])).exp().tolist()
    [[0.25, 1.0]]
    """
    columns, pieces = _columns_per_piece(logits), []
    for some, wanted in zip(logits.split(columns, dim=1), targets.split(columns, dim=1), strict=True):
        some = some.float()
        chosen = some.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        pieces.append(chosen - some.logsumexp(dim=-1))
    return torch.cat(pieces, dim=1).masked_fill(targets == -100, 0)


def answer_token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every token of the labelled answers under a causal language model, answers flush left.

    `log softmax(logits_{t-1})[y_t]` at each position `t` whose label is not -100. Answers that stand at different
    places of their rows come out aligned: column `i` is the `i`-th answer token of each row.

    Args:
        logits (`torch.Tensor` of shape `(N, L, V)`): as the model returns them (position `t` predicts `t + 1`).
        labels (`torch.LongTensor` of shape `(N, L)`): aligned with the inputs; -100 is ignored.

    Returns:
        Log-probabilities `(N, T)` in float32, 0 where a row has no token, and the mask `(N, T)` of real tokens; `T`
        is the length of the longest answer.

    >>> logits = torch.zeros(2, 3, 4)  # uniform over 4 tokens
    >>> log_probs, mask = answer_token_log_probs(logits, torch.tensor([[-100, 1, 2], [-100, -100, 3]]))
    >>> mask.tolist(), round(log_probs[1, 0].item(), 4)
    ([[True, True], [True, False]], -1.3863)
    """
    targets = labels[:, 1:]
    keep = targets != -100
    longest = int(keep.sum(dim=1).max()) if keep.numel() else 0
    places = (~keep).long().argsort(dim=1, stable=True)[:, :longest]  # (N, T), answer tokens in their order first
    keep = keep.gather(1, places)
    found = [
        target_log_probs(
            logits.gather(1, some.unsqueeze(-1).expand(-1, -1, logits.shape[-1])), targets.gather(1, some)
        )
        for some in places.split(_columns_per_piece(logits), dim=1)
    ]
    log_probs = torch.cat(found, dim=1)
    return log_probs.masked_fill(~keep, 0), keep


def answer_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability `(N,)` of each labelled answer: the sum over `answer_token_log_probs`, at most 0.

    >>> logits = torch.zeros(1, 3, 4)  # uniform over 4 tokens
    >>> round(answer_log_likelihood(logits, torch.tensor([[-100, 1, 2]])).item(), 4)  # 2 * log(1/4)
    -2.7726
    """
    return answer_token_log_probs(logits, labels)[0].sum(dim=-1)


def passage_log_prior(
    scores: torch.Tensor, evidence_mask: torch.Tensor | None = None, logit_scale: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """What the retriever believes before an answer is read: `log p(z_k | x) = log softmax_k(logit_scale * score_k)`.

    Args:
        scores (`torch.Tensor` of shape `(B, K)`): retrieval scores.
        evidence_mask (`torch.BoolTensor` of shape `(B, K)`, *optional*):
            passages that count; the others get the smallest finite number. Where none of a row counts, all are alike.
        logit_scale (`float`): `1 / temperature` of the retriever.

    Raises:
        `ValueError`: if a score that counts is NaN or infinite.

    >>> passage_log_prior(torch.tensor([[0.5, 0.5, 9.0]]), torch.tensor([[True, True, False]])).exp().tolist()
    [[0.5, 0.5, 0.0]]
    """
    scores = scores.float()
    if evidence_mask is not None:  # before anything is multiplied: what is left out may be NaN
        scores = scores.masked_fill(~evidence_mask.bool(), 0)
    scores = scores * logit_scale
    if evidence_mask is not None:
        scores = scores.masked_fill(~evidence_mask.bool(), torch.finfo(torch.float32).min)
    if not torch.isfinite(scores).all():
        rows = (~torch.isfinite(scores)).any(dim=-1).nonzero().flatten().tolist()
        raise ValueError(
            f"evidence_scores are NaN or infinite in rows {rows[:5]}: expected finite retrieval scores; leave those "
            "without a score out by evidence_mask"
        )
    return scores.log_softmax(dim=-1)


def rag_sequence_log_likelihood(log_likelihood: torch.Tensor, log_prior: torch.Tensor) -> torch.Tensor:
    """Likelihood of a whole answer over latent passages: `log sum_k p(z_k | x) prod_t p(y_t | x, z_k, y_<t)`.

    In plain terms: one passage explains the whole answer, we do not know which; each counts by its prior. The negative
    is RAG-sequence's loss. Identity: `d loss / d score_k = p(z_k | x) - p(z_k | x, y)`, also for an answer of one
    token.

    Inputs: `log_likelihood (B, K)`, of the answer under each passage alone (`answer_log_likelihood`); `log_prior
    (B, K)` (`passage_log_prior`). Returns `(B,)`.

    Recommendations: scores of unit vectors need a temperature, or the prior is almost uniform.

    Relations: with one passage it is the plain log-likelihood; for answers of one token it is RAG-token's.

    References: Lewis et al. 2020 (arXiv 2005.11401), RAG-Sequence.

    >>> both = torch.tensor([[0.5, 0.1]]).log()  # p(answer) under two passages
    >>> round(rag_sequence_log_likelihood(both, torch.tensor([[0.25, 0.75]]).log()).exp().item(), 4)
    0.2
    """
    return (log_likelihood.float() + log_prior.float()).logsumexp(dim=-1)


def rag_token_log_likelihood(
    token_log_probs: torch.Tensor, token_mask: torch.Tensor, log_prior: torch.Tensor
) -> torch.Tensor:
    """Likelihood of an answer whose every token may rest on another passage: `sum_t log sum_k p(z_k) p(y_t | z_k)`.

    In plain terms: at each token the passages vote, weighted by their prior. Its negative is the loss of RAG-token.

    Inputs: `token_log_probs (B, K, T)` and `token_mask (B, T)`, answers flush left (`answer_token_log_probs`);
    `log_prior (B, K)`. Returns `(B,)`.

    Recommendations: answers put together from several passages; where one passage must hold the whole answer,
    RAG-sequence attributes more sharply.

    Relations: for answers of one token it equals `rag_sequence_log_likelihood`.

    References: Lewis et al. 2020 (arXiv 2005.11401), RAG-Token.

    >>> tokens = torch.tensor([[[0.5, 1.0], [0.5, 0.5]]]).log()
    >>> even = torch.tensor([[0.5, 0.5]]).log()
    >>> round(rag_token_log_likelihood(tokens, torch.ones(1, 2, dtype=torch.bool), even).exp().item(), 4)
    0.375
    """
    mixed = (token_log_probs.float() + log_prior.float().unsqueeze(-1)).logsumexp(dim=1)  # (B, T)
    return (mixed * token_mask).sum(dim=-1)


def passage_posterior(
    log_likelihood: torch.Tensor,
    scores: torch.Tensor,
    logit_scale: torch.Tensor | float = 1.0,
    evidence_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which passage carries the answer: `p(z_k | x, y) = softmax_k(log p(y | x, z_k) + log p(z_k | x))`.

    Args:
        log_likelihood (`torch.Tensor` of shape `(B, K)`): of the answer under each passage alone.
        scores, logit_scale, evidence_mask: as in `passage_log_prior`.

    Returns:
        `torch.FloatTensor` of shape `(B, K)`; rows sum to 1. Lewis et al. 2020 (arXiv 2005.11401), RAG-sequence.

    >>> passage_posterior(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]])).tolist()
    [[0.5, 0.5]]
    """
    prior = passage_log_prior(scores, evidence_mask, logit_scale)
    return (log_likelihood.float() + prior).softmax(dim=-1)


def leave_one_out(
    log_likelihood: torch.Tensor, log_prior: torch.Tensor, evidence_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """What each passage adds to an answer: `log p(y | x, Z) - log p(y | x, Z without z_k)` under RAG-sequence.

    Args:
        log_likelihood, log_prior, evidence_mask: `(B, K)`, as above; the prior is normalised anew over what stays.

    Returns:
        `torch.FloatTensor` of shape `(B, K)`; above 0 where the passage helped; 0 where nothing would stay without it,
        and for passages that do not count.

    >>> both = torch.tensor([[0.5, 0.25]]).log()
    >>> leave_one_out(both, torch.tensor([[0.5, 0.5]]).log()).exp().tolist()
    [[1.5, 0.75]]
    """
    num_passages = log_prior.shape[-1]
    counts = torch.ones_like(log_prior, dtype=torch.bool) if evidence_mask is None else evidence_mask.bool()
    others = ~torch.eye(num_passages, dtype=torch.bool, device=log_prior.device)  # (K, K): row k leaves k out
    stays = others & counts.unsqueeze(-2)  # (B, K, K)
    lowest = torch.finfo(torch.float32).min
    kept = log_prior.float().unsqueeze(-2).masked_fill(~stays, lowest).log_softmax(dim=-1)
    without = (log_likelihood.float().unsqueeze(-2) + kept).logsumexp(dim=-1)  # (B, K)
    change = rag_sequence_log_likelihood(log_likelihood, log_prior).unsqueeze(-1) - without
    return change.masked_fill(~(counts & stays.any(dim=-1)), 0)
