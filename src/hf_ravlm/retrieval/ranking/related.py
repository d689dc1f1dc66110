"""One hop further: passages that were found name related ones, by their ids, which are returned behind them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ..passage import rows_at
from .filters import matching_rows
from .fusion import Ranking


def with_related(
    knowledge: Any, ranking: Ranking, expand: int, key: str = "related", where: Any | None = None
) -> Ranking:
    """A ranking with at most `expand` passages more per query: those that the found ones name, in their order.

    They stand at the end, with the score of the last that was found. A name that no passage has, one that `where`
    leaves out, and one that was found already, add nothing.

    Args:
        knowledge: One state of a knowledge base (`KnowledgeState`).
        key: Of the metadata, which holds an id or a list of ids.

    Raises:
        InvalidInputError: If no passage has this key, or it holds no ids.
    """
    metadata = knowledge.decoded_metadata
    if key not in metadata.column_names:
        raise InvalidInputError(
            f"expand={expand}: no passage names related ones: expected a list of ids in the metadata under {key!r}; "
            "`related_key=` names another key."
        )
    found = np.unique(ranking.rows[ranking.rows >= 0])
    told = rows_at(knowledge.table.select(["metadata"]), found)["metadata"].to_pylist()
    named = [_ids(json.loads(one).get(key) if one else None, key) for one in told]
    together = [name for names in named for name in names]
    rows = knowledge.rows_of(together) if together else np.zeros(0, np.int64)
    if where is not None and len(rows):
        allowed = np.append(matching_rows(knowledge.table, where, metadata), False)  # row -1 is the last
        rows = np.where(allowed[rows], rows, -1)
    ends = np.cumsum([len(names) for names in named])
    rows_of = dict(zip(found.tolist(), np.split(rows, ends[:-1]) if len(named) else [], strict=True))
    more = np.full((len(ranking.rows), expand), -1, np.int64)
    for query, own in enumerate(ranking.rows.tolist()):
        there = [row for row in own if row >= 0]
        candidates = [int(row) for one in there for row in rows_of[one] if row >= 0]
        new = [row for row in dict.fromkeys(candidates) if row not in set(there)][:expand]
        more[query, : len(new)] = new
    return _joined(ranking, more)


def _joined(ranking: Ranking, more: np.ndarray) -> Ranking:
    """Both side by side, what is there first."""
    lowest = np.where(ranking.rows >= 0, ranking.scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    scores = np.where(more >= 0, np.where(np.isfinite(lowest), lowest, 0), -np.inf)
    rows = np.concatenate([ranking.rows, more], axis=1)
    order = np.argsort(rows < 0, axis=1, kind="stable")
    scores = np.concatenate([ranking.scores, scores], axis=1).astype(np.float32)
    return Ranking(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


def _ids(value: Any, key: str) -> list[str]:
    """Ids as texts.

    >>> _ids(["wren", 7], "related"), _ids(None, "related"), _ids("wren", "related")
    (['wren', '7'], [], ['wren'])
    """
    values = [] if value is None else value if isinstance(value, list) else [value]
    if wrong := [one for one in values if isinstance(one, bool) or not isinstance(one, (str, int))]:
        raise InvalidInputError(f"{key!r} of a passage holds {wrong[0]!r}. Expected ids of passages.")
    return [str(one) for one in values]
