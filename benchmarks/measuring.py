"""Two ways of doing the same, compared on a busy machine, and the table of what came out.

All sides run in turns, round after round; what counts is the least CPU time of the process, and the ratio of two sides
of one run. Absolute times of different runs or machines say little.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Times(NamedTuple):
    """Seconds of one call: CPU time of the process, and wall time."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        section: Which part of the benchmark.
        what: What was compared with what.
        goal: The goal in words; empty where there is none.
        seen: What was seen, in words.
        met: Whether the goal is met; `None` where there is none.
        details: Everything else, as JSON values.
    """

    section: str
    what: str
    goal: str
    seen: str
    met: bool | None
    details: dict[str, Any] = field(default_factory=dict)


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, Times]:
    """The least times of one call of every side, over rounds in which the sides take turns."""
    best = {name: Times(float("inf"), float("inf")) for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            best[name] = Times(min(best[name].cpu, cpu / repeats), min(best[name].wall, wall / repeats))
    return best


def markdown(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table."""
    lines = ["| section | what | goal | seen | met |", "|---|---|---|---|---|"]
    marks = {None: "", True: "yes", False: "**no**"}
    lines += [f"| {row.section} | {row.what} | {row.goal} | {row.seen} | {marks[row.met]} |" for row in findings]
    return "\n".join(lines)


def write_json(path: Path, facts: dict[str, Any], findings: Sequence[Finding]) -> None:
    """Writes the findings, with the facts of the run, as JSON."""
    path.write_text(json.dumps({**facts, "findings": [asdict(row) for row in findings]}, indent=1) + "\n")
