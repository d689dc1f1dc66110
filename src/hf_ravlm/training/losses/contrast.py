"""Losses that align two towers, one number per anchor, in float32: `b` anchors, `N` candidates, width `D`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from ...model.modeling_ravlm import belong_together


def info_nce_rows(
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    positives: torch.Tensor,
    logit_scale: torch.Tensor | float,
    left_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE of each anchor, `(b,)`: `-s_p + logsumexp_j s_j` over the candidates that are not left out.

    In plain terms: the positive should have the highest cosine, by a margin that the temperature sets.

    Inputs: `anchors (b, D)` and `candidates (N, D)` of unit length; `positives (b,)`, the candidate that belongs to
    each anchor; `logit_scale` is `1 / temperature`; `left_out (b, N)` of `left_out_negatives`.

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
    """Triplet loss of each anchor, `(b,)`: `max(0, margin - s_p + s_n)`, `s` the cosine, `n` a semi-hard negative.

    In plain terms: the positive should be nearer than one negative, by a margin. That is the nearest of those that are
    farther than the positive, or where none is, the farthest: the nearest of all would make the towers collapse.

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
    """Which candidates are no negatives of an anchor, bool `(b, N)`: further positives, and what looks too much alike.

    Args:
        anchors, candidates, positives: as in `info_nce_rows`; the positive itself is not left out.
        anchor_labels, candidate_labels (*optional*): what belongs together, see `belong_together`.
        ratio (`float`, *optional*): leaves out candidates with a cosine above `ratio` times the positive's, if that is
            above 0 (NV-Retriever's TopK-PercPos, arXiv 2407.15831). Only for trained towers: in others all cosines
            are alike, and everything would be left out.

    >>> labels = torch.tensor([7, 7, 8])
    >>> left_out_negatives(torch.eye(3), torch.eye(3), torch.arange(3), labels, labels).tolist()
    [[False, True, False], [True, False, False], [False, False, False]]
    """
    left_out = torch.zeros(len(anchors), len(candidates), dtype=torch.bool, device=anchors.device)
    if anchor_labels is not None and candidate_labels is not None:
        left_out |= belong_together(anchor_labels, candidate_labels)
    if ratio is not None:
        cosines = anchors.float() @ candidates.float().mT
        own = cosines.gather(1, positives[:, None])
        left_out |= (cosines > ratio * own) & (own > 0)
    return left_out.scatter(1, positives[:, None], False)


def matryoshka_views(
    first: torch.Tensor, second: torch.Tensor, dims: Sequence[int] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both sets of vectors cut to their first `d` numbers and normalised, for every `d` of `dims`; as is for `None`.

    Kusupati et al. 2022 (arXiv 2205.13147).

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
    """One column per row, drawn with probability `softmax(scores)` of those not left out: `(b,)`, -1 where none is.

    ALBEF's in-batch hard negatives (Li et al. 2021, arXiv 2107.07651).

    Args:
        scores (`(b, N)`): cosines over the temperature.
        left_out (`(b, N)`, bool): no negatives; here the positive must be among them.
        generator (`torch.Generator`, *optional*): on the device of `scores`.

    >>> left_out = torch.tensor([[True, False, False], [True, True, True]])
    >>> draw_hard_negatives(torch.tensor([[0.0, 99.0, 0.0], [0.0, 0.0, 0.0]]), left_out).tolist()
    [1, -1]
    """
    some = ~left_out.all(dim=1)
    scores = scores.detach().float().masked_fill(left_out & some[:, None], float("-inf"))
    # Gumbel's trick: the largest of `score + noise`. `torch.multinomial` would refuse more than 2 ** 24 columns.
    noise = torch.empty_like(scores).exponential_(generator=generator).clamp(min=1e-30).log()
    return torch.where(some, (scores - noise).argmax(dim=1), -1)
