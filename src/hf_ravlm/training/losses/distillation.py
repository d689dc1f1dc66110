"""Losses through which the retriever learns from the reader, in float32; the gradient reaches the scores alone.

`log_likelihood (B, K)` is that of the answer under each passage, `scores (B, K)` are the retriever's, and
`evidence_mask (B, K)` says which passages count; `None` means all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...model.reader.likelihoods import passage_log_prior


def perplexity_distillation_loss(
    log_likelihood: torch.Tensor,
    num_tokens: torch.Tensor,
    scores: torch.Tensor,
    evidence_mask: torch.Tensor | None = None,
    temperature: float = 0.1,
    target_temperature: float = 0.1,
) -> torch.Tensor:
    """Perplexity distillation: the retriever learns to rank passages as the reader's perplexity of the answer does.

    In plain terms: passages under which the answer is likely get a high target, which the scores are pulled towards.
    `L = 1/B sum_b KL(softmax_k(a_k / T_target) || softmax_k(s_k / T))`, `a_k` the mean log-probability of an answer
    token under passage `k`.

    Inputs: `log_likelihood (B, K)`, summed over the answer of `num_tokens (B,)` or `(B, K)`; `scores (B, K)`.

    Recommendations: let the reader be in eval mode for the targets; start with 0.1 for both temperatures.

    Relations: the loss of REPLUG-LSR. The sum over passages is averaged over queries (`batchmean`); torch's `"mean"`
    would be smaller by the factor `K`.

    References: Izacard et al. 2022 (arXiv 2208.03299), Perplexity Distillation; Shi et al. 2023 (arXiv 2301.12652).

    >>> scores = torch.tensor([[-1.0, -2.0]])
    >>> perplexity_distillation_loss(scores, torch.tensor([1]), scores).item()  # the retriever agrees
    0.0
    """
    num_tokens = num_tokens.clamp(min=1).reshape(len(scores), -1)
    mean = log_likelihood.detach().float() / num_tokens
    target = passage_log_prior(mean, evidence_mask, 1 / target_temperature)
    given = passage_log_prior(scores, evidence_mask, 1 / temperature)
    return F.kl_div(given, target, reduction="batchmean", log_target=True)


def emdr2_loss(
    log_likelihood: torch.Tensor,
    scores: torch.Tensor,
    evidence_mask: torch.Tensor | None = None,
    logit_scale: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """EMDR2: raises the score of passages under which the reader, held fixed, finds the answer.

    In plain terms: the RAG-sequence likelihood with the reader's part frozen. `L = -1/B sum_b log sum_k p(z_k | x)
    p(y | x, z_k)`.

    Inputs: `log_likelihood (B, K)`, `scores (B, K)`; `logit_scale` is `1 / temperature`.

    Recommendations: the reader trains beside it on its own likelihood.

    Relations: its gradient in the scores is that of RAG-sequence.

    References: Sachan et al. 2021 (arXiv 2106.05346).

    >>> round(emdr2_loss(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[3.0, 1.0]])).exp().item(), 4)
    2.0
    """
    prior = passage_log_prior(scores, evidence_mask, logit_scale)
    return -(log_likelihood.detach().float() + prior).logsumexp(dim=-1).mean()


def pseudo_relevance_loss(
    scores: torch.Tensor,
    has_answer: torch.Tensor,
    reader_is_right: torch.Tensor,
    evidence_mask: torch.Tensor | None = None,
    logit_scale: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Binary cross-entropy on passages whose worth two weak witnesses agree on.

    In plain terms: a passage that holds the answer string and under which the reader answers right is positive; one
    with neither is negative; where they disagree nothing is learned. `p_k = softmax_k(logit_scale * s_k)`.

    Inputs: `scores (B, K)`; `has_answer (B, K)` and `reader_is_right (B, K)`, bool.

    Recommendations: add it to RAG-sequence with a weight.

    Relations: the mean runs over the passages that are labelled; 0 where there is none. A passage that is alone has
    `p = 1` whatever its score, and is never a negative one.

    References: Lin and Byrne 2022 (arXiv 2210.03809), RA-VQA.

    >>> agree = torch.tensor([[True, False]])
    >>> loss = pseudo_relevance_loss(torch.tensor([[0.0, 0.0]]), agree, agree)
    >>> round(loss.item(), 4)  # log 2: both passages at 1/2
    0.6931
    """
    log_p = passage_log_prior(scores, evidence_mask, logit_scale)
    counts = torch.ones_like(log_p, dtype=torch.bool) if evidence_mask is None else evidence_mask.bool()
    positive = has_answer.bool()
    labelled = (positive == reader_is_right.bool()) & counts
    labelled = labelled & (positive | (counts.sum(dim=-1, keepdim=True) > 1))
    # log(1 - p_k) as log(sum of the other p): exact also where p_k rounds to 1, and its gradient with it
    own = torch.eye(log_p.shape[-1], dtype=torch.bool, device=log_p.device)
    log_rest = log_p.unsqueeze(-2).masked_fill(own, torch.finfo(torch.float32).min).logsumexp(dim=-1)  # (B, K)
    terms = torch.where(labelled, torch.where(positive, log_p, log_rest), 0.0)
    return -terms.sum() / labelled.sum().clamp(min=1)
