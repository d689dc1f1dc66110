"""Knows how arms of an experiment are compared over seeds: means, ranges, and the difference seed by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


Figures = Mapping[str, float]


def format_comparison(results: Sequence[Mapping[str, Figures]], arms: Sequence[str]) -> str:
    """Figures of every arm, mean and range over the seeds, and what the last arm gains over each other one.

    The range is the smallest and the largest value of a seed; the gain is taken seed by seed, in points (hundredths).

    Args:
        results (`list[dict]`): One per seed: arm → name of the figure → value.
        arms (`list[str]`): Which arms, in the order of the columns.

    Example:

    ```python
    >>> results = [{"a": {"hit@1": 0.5}, "b": {"hit@1": 0.6}}, {"a": {"hit@1": 0.7}, "b": {"hit@1": 0.7}}]
    >>> print(format_comparison(results, ["a", "b"]))
    | 2 seeds, mean (range) | a | b | b - a, points |
    |---|---|---|---|
    | hit@1 | 0.600 (0.500 to 0.700) | 0.650 (0.600 to 0.700) | +5.0 (+0.0 to +10.0) |

    ```
    """
    *others, last = arms
    gains = [f"{last} - {other}, points" for other in others]
    lines = [
        "| " + " | ".join([f"{len(results)} seeds, mean (range)", *arms, *gains]) + " |",
        "|---" * (1 + len(arms) + len(gains)) + "|",
    ]
    for name in results[0][last]:
        values = {arm: [result[arm][name] for result in results] for arm in arms}
        cells = [_spread(values[arm], ".3f" if max(values[arm]) <= 1 else ".0f") for arm in arms]
        for other in others:
            gained = [100 * (new - old) for new, old in zip(values[last], values[other], strict=True)]
            cells.append(_spread(gained, "+.1f") if max(values[last]) <= 1 else "")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def write_results(path: Path, results: Sequence[Mapping[str, Figures]], **settings: object) -> None:
    """Everything as JSON, so that a table can be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "results": list(results)}, indent=2) + "\n", encoding="utf-8")


def _spread(values: Sequence[float], form: str) -> str:
    return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"
