"""The objectives of the alignment; the mean of each over the processes is the loss of the joined batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ...errors import InvalidInputError
from ..arguments import RavlmPreTrainingArguments
from .contrast import info_nce_rows, left_out_negatives, matryoshka_views, triplet_rows
from .joined_batch import world_size


Labels = tuple[torch.Tensor, torch.Tensor]


def contrast(
    query_embeds: torch.Tensor,
    passage_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    labels: Labels | None,
    args: RavlmPreTrainingArguments,
    rows: slice = slice(None),
) -> dict[str, torch.Tensor]:
    """The objectives between vectors (`itc`, `triplet`), as far as they have a weight.

    Args:
        query_embeds (`(B, D)`), passage_embeds (`(N, D)`): of the joined batch, passage `i` positive for query `i`.
        labels (*optional*): of queries `(B,)` and passages `(N,)`; equal where a passage is no negative of a query.
        rows (`slice`): whose share to return; the shares of all rows add up to the mean.

    Raises:
        InvalidInputError: If `symmetric` meets more passages than queries, or one of `matryoshka_dims` is not in
            1..D.
    """
    if args.symmetric and len(passage_embeds) != len(query_embeds):
        raise InvalidInputError(
            f"symmetric=True with {len(query_embeds)} queries and {len(passage_embeds)} passages: expected one "
            "passage per query; leave the hard negatives out of the batch, or symmetric out of the arguments"
        )
    width = query_embeds.shape[1]
    if wrong := [dim for dim in args.matryoshka_dims or [] if not 1 <= dim <= width]:
        raise InvalidInputError(f"matryoshka_dims holds {wrong}: expected widths from 1 to projection_dim={width}")
    places = torch.arange(len(query_embeds), device=query_embeds.device)[rows]
    forward = (None, None) if labels is None else (labels[0][rows], labels[1])
    backward = (None, None) if labels is None else (labels[1][rows], labels[0])
    losses: dict[str, torch.Tensor] = {}
    if args.itc_weight:
        weights = args.matryoshka_weights or [1.0] * len(args.matryoshka_dims or [0])
        views = matryoshka_views(query_embeds, passage_embeds, args.matryoshka_dims)
        total = query_embeds.new_zeros(())
        for weight, (queries, passages) in zip(weights, views, strict=True):
            left_out = left_out_negatives(queries[rows], passages, places, *forward, args.false_negative_ratio)
            per_row = info_nce_rows(queries[rows], passages, places, logit_scale, left_out)
            if args.symmetric:
                left_out = left_out_negatives(passages[rows], queries, places, *backward, args.false_negative_ratio)
                per_row = (per_row + info_nce_rows(passages[rows], queries, places, logit_scale, left_out)) / 2
            total = total + weight * per_row.sum() / len(query_embeds)
        losses["itc"] = total
    if args.triplet_weight:
        left_out = left_out_negatives(query_embeds[rows], passage_embeds, places, *forward, args.false_negative_ratio)
        per_row = triplet_rows(query_embeds[rows], passage_embeds, places, args.triplet_margin, left_out)
        losses["triplet"] = per_row.sum() / len(query_embeds)
    return losses


def matching(logits: torch.Tensor, labels: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Binary cross-entropy of this process's pairs `(n,)`, of `num_pairs` in all processes."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") * world_size() / max(num_pairs, 1)


def hidden_words(logits: torch.Tensor, labels: torch.Tensor, num_words: int) -> torch.Tensor:
    """Cross-entropy of this process's hidden words, of `num_words` in all; `labels (n, L)` are -100 elsewhere."""
    return F.cross_entropy(logits, labels[labels != -100], reduction="sum") * world_size() / max(num_words, 1)


def weighted_sum(losses: Mapping[str, torch.Tensor], args: RavlmPreTrainingArguments) -> torch.Tensor:
    """`L = L_MLM + α L_ITM + β L_ITC + ...`, with the weights of the arguments."""
    return sum(args.objectives[name] * loss for name, loss in losses.items())
