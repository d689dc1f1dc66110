"""Losses that align two towers, one number per anchor, so that a batch may be any number of blocks of anchors.

They are functions of vectors alone: over the gathered candidates of all processes they are the loss of the joined
batch. Everything is computed in float32. `b` anchors of a block, `N` candidates, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F


def info_nce_rows(
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    positives: torch.Tensor,
    logit_scale: torch.Tensor | float,
    left_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE of each anchor: `-s_p + logsumexp_j s_j` over the candidates that are not left out.

    In plain terms: the cosine of the positive should be the highest of all candidates, by a margin that the
    temperature sets.

    Inputs: `anchors (b, D)` and `candidates (N, D)` of unit length; `positives (b,)`, the column of each anchor's own
    positive; `logit_scale` is `1 / temperature`; `left_out (b, N)` of `left_out_negatives`.

    Recommendations: 64 candidates at least; leave out what is no negative.

    Relations: its mean over a batch whose positives are `0 .. b - 1` is `info_nce`; with the roles exchanged it is the
    other half of CLIP's symmetric loss. An anchor without a negative has loss 0 and no gradient.

    References: van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021 (arXiv 2103.00020).

    >>> same = torch.eye(2)
    >>> [round(loss, 4) for loss in info_nce_rows(same, same, torch.arange(2), 1.0).tolist()]  # log(1 + exp(-1))
    [0.3133, 0.3133]
    """
    scores = anchors.float() @ candidates.float().mT * logit_scale  # (b, N)
    if left_out is not None:
        scores = scores.masked_fill(left_out, float("-inf"))
    return F.cross_entropy(scores, positives, reduction="none")


def triplet_rows(
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    positives: torch.Tensor,
    margin: float,
    left_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Triplet loss of each anchor with its semi-hard negative: `max(0, margin - s_p + s_n)`, `s` the cosine.

    In plain terms: the positive should be nearer than one negative, by a margin. That negative is the hardest of those
    that are still farther than the positive; where all are nearer, the farthest of them. The hardest of all would make
    the towers collapse.

    Inputs: as `info_nce_rows`; `margin` in cosine, from 0 to 2.

    Recommendations: a margin of 0.1 to 0.3, beside InfoNCE rather than in its place.

    Relations: TripletSemiHardLoss of TensorFlow Addons, on cosines instead of distances. An anchor without a negative
    has loss 0.

    References: Schroff et al. 2015, FaceNet (arXiv 1503.03832).

    >>> anchor, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> round(triplet_rows(anchor, candidates, torch.tensor([0]), margin=0.5).item(), 4)  # 0.5 - 0.8 + 0.6
    0.3
    """
    cosines = anchors.float() @ candidates.float().mT  # (b, N)
    own = cosines.gather(1, positives[:, None])  # (b, 1)
    negative = torch.ones_like(cosines, dtype=torch.bool) if left_out is None else ~left_out
    negative = negative.scatter(1, positives[:, None], False)
    with torch.no_grad():
        farther = negative & (cosines < own)
        hardest = cosines.masked_fill(~farther, -torch.inf).argmax(dim=1)
        easiest = cosines.masked_fill(~negative, torch.inf).argmin(dim=1)
        chosen = torch.where(farther.any(dim=1), hardest, easiest)
    losses = (margin - own + cosines.gather(1, chosen[:, None])).clamp(min=0).squeeze(1)
    return losses * negative.any(dim=1)


@torch.no_grad()
def left_out_negatives(
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    positives: torch.Tensor,
    anchor_labels: torch.Tensor | None = None,
    candidate_labels: torch.Tensor | None = None,
    ratio: float | None = None,
) -> torch.Tensor:
    """Candidates that are no negatives of an anchor: the same thing once more, and what looks too much like it.

    Args:
        anchors (`(b, D)`), candidates (`(N, D)`), positives (`(b,)`): as in `info_nce_rows`.
        anchor_labels (`(b,)`), candidate_labels (`(N,)`), *optional*: equal where a candidate belongs to an anchor.
        ratio (`float`, *optional*):
            leaves out candidates with a cosine above `ratio` times the positive's, where that one is positive
            (NV-Retriever's TopK-PercPos, arXiv 2407.15831). In an untrained tower all cosines are alike, and this rule
            would leave out everything: train without it first.

    Returns:
        `torch.BoolTensor` of shape `(b, N)`; never the positive itself.

    >>> labels = torch.tensor([7, 7, 8])
    >>> left_out_negatives(torch.eye(3), torch.eye(3), torch.arange(3), labels, labels).tolist()
    [[False, True, False], [True, False, False], [False, False, False]]
    """
    left_out = torch.zeros(len(anchors), len(candidates), dtype=torch.bool, device=anchors.device)
    if anchor_labels is not None and candidate_labels is not None:
        left_out |= anchor_labels[:, None] == candidate_labels[None, :]
    if ratio is not None:
        cosines = anchors.float() @ candidates.float().mT
        own = cosines.gather(1, positives[:, None])
        left_out |= (cosines > ratio * own) & (own > 0)
    return left_out.scatter(1, positives[:, None], False)


def matryoshka_views(
    first: torch.Tensor, second: torch.Tensor, dims: Sequence[int] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both sets of vectors cut to their first `d` numbers and normalised anew, for every `d` of `dims`.

    Kusupati et al. 2022 (arXiv 2205.13147). `None` gives the vectors as they are.

    >>> vectors = torch.tensor([[0.6, 0.0, 0.8]])
    >>> [cut.tolist() for cut, _ in matryoshka_views(vectors, vectors, [1, 2])]
    [[[1.0]], [[1.0, 0.0]]]
    """
    if dims is None:
        yield first, second
        return
    for dim in dims:
        yield F.normalize(first[:, :dim].float(), dim=-1), F.normalize(second[:, :dim].float(), dim=-1)


def draw_hard_negatives(
    scores: torch.Tensor, left_out: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """One negative per row, drawn with probability `softmax(scores)` from the columns that are not left out.

    ALBEF's in-batch hard negatives (Li et al. 2021, arXiv 2107.07651).

    Args:
        scores (`torch.Tensor` of shape `(b, N)`): cosines over the temperature.
        left_out (`torch.BoolTensor` of shape `(b, N)`): no negatives; here the positive must be among them.
        generator (`torch.Generator`, *optional*): on the device of `scores`.

    Returns:
        `torch.LongTensor` of shape `(b,)`; -1 where no column remains.

    >>> left_out = torch.tensor([[True, False, False], [True, True, True]])
    >>> draw_hard_negatives(torch.tensor([[0.0, 99.0, 0.0], [0.0, 0.0, 0.0]]), left_out).tolist()
    [1, -1]
    """
    some = ~left_out.all(dim=1)
    scores = scores.detach().float().masked_fill(left_out & some[:, None], float("-inf"))
    # Gumbel's trick: the largest of `score + noise`. `torch.multinomial` would refuse more than 2 ** 24 columns.
    noise = torch.empty_like(scores).exponential_(generator=generator).clamp(min=1e-30).log()
    return torch.where(some, (scores - noise).argmax(dim=1), -1)
