"""Knows how the description of a stored index is read back, though it may come from a stranger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from .index_tuning import EffortTable
from .index_types import index_type


_MAX_EFFORT = 1_000_000


def parsed_spec(path: str | os.PathLike[str], spec: Mapping[str, Any]) -> tuple[EffortTable, dict[str, Any]]:
    """The parts of a spec, which may come from a stranger: every number is checked, nothing in it is executed."""
    try:
        facts = dict(spec)
        index_type(facts["kind"])
        rows = [tuple(map(float, row)) for row in facts.pop("effort")]
        depths, efforts, costs = (tuple(column) for column in zip(*rows, strict=True))
        table = EffortTable(
            int(facts.pop("candidates")),
            depths,
            tuple(int(min(max(effort, 1), _MAX_EFFORT)) for effort in efforts),
            costs,
            float(facts["recall"]["measured"]),
        )
        sound = 1 <= table.candidates <= 1000 and depths[0] == 1 and np.isfinite(rows).all() and np.min(rows) > 0
        sound = sound and bool((np.diff(depths) > 0).all()) and 0 < float(facts["recall"]["wanted"]) <= 1
        facts["built_rows"], facts["seed"] = int(facts["built_rows"]), int(facts["seed"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise KnowledgeBaseCorruptError(
            f"{path}: the description of the index cannot be used ({error!r}). Build it again with `build_index`."
        ) from error
    if not sound:
        raise KnowledgeBaseCorruptError(
            f"{path}: the description of the index holds numbers that cannot be. Build it again with `build_index`."
        )
    return table, facts
