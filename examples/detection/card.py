"""The card of what `examples/train_detector.py` measured with one or several seeds; nothing in it is typed by hand.

python examples/detection/card.py runs/detector0 runs/detector1 runs/detector2 --out model_cards
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


PARTS = ("base", "novel", "all", "objects")


def write_card(folder: Path) -> None:
    """Writes `detection.md` beside a report, which holds the runs of one or several seeds."""
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
        "`examples/detection/card.py`.",
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
    lines += ["", "![Scenes with their surest boxes, and below each the entry that it rests on](detection.png)"]
    (folder / "detection.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def spread(values: list[float]) -> str:
    """The mean, with lowest and highest of several.

    >>> spread([0.5]), spread([0.25, 0.75])
    ('0.500', '0.500 (0.250-0.750)')
    """
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def join_runs(folders: Sequence[Path], out: Path) -> None:
    """Writes one report of several runs, its card, and the picture of the first run."""
    out.mkdir(parents=True, exist_ok=True)
    runs = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in folders]
    (out / "report.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    Image.open(folders[0] / "boxes.png").quantize(256).save(out / "detection.png", optimize=True)
    write_card(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="what --output_dir was of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/detection"), help="where report and card go")
    arguments = parser.parse_args()
    join_runs(arguments.folders, arguments.out)
