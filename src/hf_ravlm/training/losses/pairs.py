"""Pairs for the matching objective, drawn from the joined batch of all processes.

Each row gives three: query and positive; the query with a similar passage; its passage with a similar query. A
process, or a chunk of its rows, reads the pairs of its own rows, and with them the few rows of others that they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...model.heads.matching import SIDE
from .contrast import draw_hard_negatives, left_out_negatives


@dataclass(frozen=True)
class Pairs:
    """`n` pairs of the joined batch; all tensors are `(n,)`.

    Args:
        rows: the row of the batch that a pair belongs to.
        queries, passages: their places in the joined batch.
        labels: 1.0 where the two belong together, else 0.0.
    """

    rows: torch.Tensor
    queries: torch.Tensor
    passages: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def of_rows(self, rows: range) -> Pairs:
        """The pairs of some rows."""
        kept = (self.rows >= rows.start) & (self.rows < rows.stop)
        return Pairs(self.rows[kept], self.queries[kept], self.passages[kept], self.labels[kept])


@torch.no_grad()
def draw_pairs(
    query_embeds: torch.Tensor,
    passage_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    labels: tuple[torch.Tensor, torch.Tensor] | None = None,
    ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> Pairs:
    """The positive pairs, and up to two per row with negatives drawn with probability `softmax(logit_scale * cosine)`.

    Args:
        query_embeds (`(B, D)`), passage_embeds (`(N, D)`): of the joined batch, passage `i` positive for query `i`.
        labels (*optional*), ratio: of queries and passages; what is no negative, as in `left_out_negatives`.
        generator (`torch.Generator`, *optional*): in the same state in all processes, or they draw different pairs.

    >>> pairs = draw_pairs(torch.eye(2), torch.eye(2), 1.0)
    >>> list(zip(pairs.queries.tolist(), pairs.passages.tolist(), pairs.labels.tolist()))
    [(0, 0, 1.0), (1, 1, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 0, 0.0), (0, 1, 0.0)]
    """
    rows = torch.arange(len(query_embeds), device=query_embeds.device)
    left_out = left_out_negatives(query_embeds, passage_embeds, rows, *(labels or (None, None)), ratio)
    left_out[rows, rows] = True
    scores = query_embeds.float() @ passage_embeds.float().mT * logit_scale  # (B, N)
    other_passages = draw_hard_negatives(scores, left_out, generator)
    other_queries = draw_hard_negatives(scores[:, : len(rows)].mT, left_out[:, : len(rows)].mT, generator)
    owners, queries = rows.repeat(3), torch.cat([rows, rows, other_queries])
    passages = torch.cat([rows, other_passages, rows])
    belong = torch.cat([torch.ones(len(rows)), torch.zeros(2 * len(rows))]).to(rows.device)
    drawn = (queries >= 0) & (passages >= 0)
    return Pairs(owners[drawn], queries[drawn], passages[drawn], belong[drawn])


def pair_inputs(
    pairs: Pairs, queries: Sequence[int], passages: Sequence[int], pool: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor | dict[str, torch.Tensor]]:
    """The arguments with which a model reads `pairs` beside its own rows.

    Args:
        pairs: to read.
        queries, passages: the places of the model's own rows in the joined batch.
        pool: inputs of the joined batch, from which rows that are not its own are taken.
    """
    query_rows, further_queries = _local_rows(pairs.queries, queries)
    passage_rows, further_passages = _local_rows(pairs.passages, passages)
    further: dict[str, torch.Tensor] = {}
    for prefix, places in (("", further_queries), ("passage_", further_passages)):
        names = [prefix + name for name in SIDE if places and pool.get(prefix + name) is not None]
        further |= {name: pool[name][torch.tensor(places, device=pairs.rows.device)] for name in names}
    return {"match_queries": query_rows, "match_passages": passage_rows, "match_inputs": further}


def no_pairs(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments with which a model reads no pairs beside `inputs`."""
    none = torch.empty(0, dtype=torch.long, device=next(iter(inputs.values())).device)
    return {"match_queries": none, "match_passages": none}


def _local_rows(places: torch.Tensor, own: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """The row of each place, where the rows are the own ones and behind them further ones, which come second."""
    wanted = places.tolist()
    further = sorted(set(wanted) - set(own))
    row_of = {place: row for row, place in enumerate([*own, *further])}
    return torch.tensor([row_of[place] for place in wanted], dtype=torch.long, device=places.device), further
