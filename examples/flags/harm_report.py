"""Knows what the figures of doing no harm are, and how they are told: tables, JSON and a curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flags.measure import Task
from flags.wrong_knowledge import is_about
from hf_ravlm.evaluation import abstention, area_under_risk_coverage, auroc, exact_match, expected_calibration_error
from hf_ravlm.evaluation.charts import coverage_chart
from hf_ravlm.evaluation.report import markdown_table


LEVELS = (0.5, 0.8)  # of a calibrated confidence: where a wrong answer costs 1 or 4, and a right one earns 1

COLUMNS = (
    ("could be found", "no policy", "read", "given"),
    ("coverage", "answerable given", "right of given", "abstention precision", "abstention recall"),
    ("AUROC before", "AUROC", "ECE before", "ECE", "AURC before", "AURC"),
)


def outcome(tasks: Sequence[Task], found: Sequence[Sequence], plain: Sequence, guarded: Sequence) -> dict[str, Any]:
    """Per question, what each system said was worth, how sure it was, and whether the answer could be found."""
    said = [answer.text if answer.decision.withheld is None else answer.decision.withheld for answer in guarded]
    return {
        "plain": [exact_match(answer.text, task.answers) for task, answer in zip(tasks, plain, strict=True)],
        "plain sure": [answer.decision.confidence for answer in plain],
        "said": [exact_match(text, task.answers) for task, text in zip(tasks, said, strict=True)],
        "sure": [answer.decision.confidence for answer in guarded],
        "answered": [not answer.decision.abstained for answer in guarded],
        "answerable": [
            any(is_about(passage, task.entity) and passage.metadata["kind"] == task.kind for passage in row)
            for task, row in zip(tasks, found, strict=True)
        ],
    }


def figures(told: dict[str, list]) -> dict[str, float | None]:
    """One world's figures; exact match counts a withheld answer as wrong, "read" as if it had been given."""
    said, answered = np.array(told["said"]), np.array(told["answered"])
    answerable = np.array(told["answerable"])
    held = abstention(answered, said >= 0.5)
    return {
        "could be found": float(np.mean(told["answerable"])),
        "no policy": float(np.mean(told["plain"])),
        "read": float(said.mean()),
        "given": float((said * answered).mean()),
        "coverage": held.coverage,
        "answerable given": float(answered[answerable].mean()) if answerable.any() else None,
        "right of given": held.accuracy,
        "abstention precision": held.precision,
        "abstention recall": held.recall,
        "AUROC before": auroc(told["plain sure"], np.array(told["plain"]) >= 0.5),
        "AUROC": auroc(told["sure"], said >= 0.5),
        "ECE before": expected_calibration_error(told["plain sure"], told["plain"]),
        "ECE": expected_calibration_error(told["sure"], said),
        "AURC before": area_under_risk_coverage(told["plain sure"], told["plain"]),
        "AURC": area_under_risk_coverage(told["sure"], said),
    }


def withheld_below(told: dict[str, list], least: float) -> list[str]:
    """Coverage, accuracy, precision and recall, all seeds together, were answers below a confidence withheld."""
    answered = np.array(told["answered"]) & (np.array(told["sure"]) >= least)
    held = abstention(answered, np.array(told["said"]) >= 0.5)
    return ["–" if v is None else f"{v:.3f}" for v in (held.coverage, held.accuracy, held.precision, held.recall)]


def mean_of_seeds(rows: Sequence[dict], key: str) -> str:
    """Of the seeds, with the lowest and the highest; a dash where nothing was withheld, say."""
    values = [row[key] for row in rows if row[key] is not None and not np.isnan(row[key])]
    if not values:
        return "–"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def write_report(output: Path, table: dict[str, list[dict]], pooled: dict[str, dict], seconds: dict) -> None:
    """Four Markdown tables, all figures as JSON, and the curve."""
    held = [[name, f"{least:.2f}", *withheld_below(pooled[name], least)] for name in pooled for least in LEVELS]
    record = {"seconds": seconds, "worlds": table, "withheld": held}
    (output / "harm.md").write_text("\n".join(report_lines(record)) + "\n", encoding="utf-8")
    (output / "harm.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    curves = {}
    for name in ("clean", "half gone"):
        curves[f"{name}, policy"] = (pooled[name]["sure"], pooled[name]["said"])
        curves[f"{name}, no policy"] = (pooled[name]["plain sure"], pooled[name]["plain"])
    coverage_chart(curves, "Exact match, if only the surest answers are given").save(output / "coverage.png")
    print("\n".join(report_lines(record)))


def report_lines(record: dict[str, Any]) -> list[str]:
    """The tables of `harm.json` in Markdown."""
    table, seconds = record["worlds"], record["seconds"]
    lines = [f"{seconds['questions']} questions, {seconds['all']:.0f} s in all, {seconds['fit']:.0f} s to fit", ""]
    for keys in COLUMNS:
        rows = [[name, *(mean_of_seeds(table[name], key) for key in keys)] for name in table]
        lines += [*markdown_table(["world", *keys], rows), ""]
    heads = ["world", "withheld below", "coverage", "right of given", "abstention precision", "abstention recall"]
    return [*lines, *markdown_table(heads, record["withheld"])]
