"""`hf-ravlm evaluate`: questions in, tables and replies out."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import InvalidInputError
from ..evaluation.model_evaluation import evaluate_model
from .models import check_model
from .outcome import Outcome


def evaluate(arguments: argparse.Namespace) -> Outcome:
    """`evaluate`: asks, judges and reports."""
    columns = _columns(arguments.columns)
    check_model(arguments.model)
    found = evaluate_model(
        arguments.model,
        arguments.data,
        arguments.output,
        arms=arguments.arms,
        columns=columns,
        split=arguments.split,
        limit=arguments.limit,
        metrics=arguments.metrics,
        knowledge=arguments.knowledge,
        k=arguments.k,
        policy=arguments.policy,
        channels=arguments.channels,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        device=arguments.device,
        distractors=arguments.distractors,
        factors=arguments.factors,
        max_new_tokens=arguments.max_new_tokens,
    )
    growth = found.growth
    record: dict[str, Any] = {
        "report": found.report.to_dict(),
        "growth": None if growth is None else _with_nulls(growth.to_dict()),
        "files": [str(path) for path in found.files],
    }
    tables = [found.report.to_markdown(), *([] if growth is None else [growth.to_markdown()])]
    return Outcome(record, "\n".join([*tables, "Written:", *(f"  {path}" for path in record["files"])]))


def _columns(pairs: list[str]) -> dict[str, str] | None:
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, parts in zip(pairs, split, strict=True) if not all(parts)]
    if wrong:
        raise InvalidInputError(f"--columns {wrong[0]}: expected NAME=COLUMN, such as answers=answer.")
    return {name: column for name, _, column in split} or None


def _with_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """JSON values, with `None` for what is not a number.

    >>> _with_nulls({"mean": float("nan"), "size": 3})
    {'mean': None, 'size': 3}
    """
    plain: dict[str, Any] = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return plain
