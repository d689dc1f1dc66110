"""The card of `report.json`: nothing in it is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


PARTS = ("base", "novel", "all", "objects")


def write_card(folder: Path) -> None:
    """Writes `detection.md` beside the report, which holds the runs of one or several seeds."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    runs: list[dict[str, Any]] = report["runs"]
    first, seeds = runs[0], ", ".join(str(run["seed"]) for run in runs)
    scenes = f"{first['scenes']} scenes, {first['base']} base and {first['novel']} novel classes"
    lines = [
        "# Boxes of classes that were never trained: a small detector with labelled entries",
        "",
        f"A small RT-DETR learns scenes composed of flags in {first['steps']} steps of one "
        f"processor core; the shipped towers look its boxes up. {scenes}; novel countries stand in no training scene "
        f"of the detector or of the towers, and tests are drawn in styles that no entry and no training scene has. "
        f"Seeds: {seeds}. COCO's measures by pycocotools. *Objects*: all classes taken for one. Written by "
        "`examples/train_detector.py`.",
        "",
        "| | classes | mAP | mAP50 | recall |",
        "|---|---|---|---|---|",
    ]
    for arm in first["arms"]:
        for part in PARTS:
            cells = [
                spread([run["arms"][arm][part][measure] for run in runs]) for measure in ("map", "map50", "recall")
            ]
            lines.append(f"| {arm} | {part} | {' | '.join(cells)} |")
    told = ", ".join(f"{name} {spread([run['fit'][name] for run in runs])}" for name in first["fit"])
    lines += ["", f"Set on base classes alone: {told}."]
    (folder / "detection.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def spread(values: list[float]) -> str:
    """The mean, with lowest and highest of several.

    >>> spread([0.5]), spread([0.25, 0.75])
    ('0.500', '0.500 (0.250-0.750)')
    """
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"
