"""The card and the charts of `report.json`: nothing in them is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

from hf_ravlm.evaluation.charts import curves_chart


WAYS = ["zero-shot", "linear probe", "neighbours", "head", "names + neighbours", "head + neighbours"]
MEASURES = {"top1": "top-1", "top5": "top-5", "macro_recall": "macro recall"}


def write_card(folder: Path) -> None:
    """Writes `few_shot.md` and a chart per set beside the report."""
    report = json.loads((folder / "report.json").read_text())
    lines = [
        "# Few labelled images: heads, neighbours, and both",
        "",
        f"EfficientNet-Lite0 (ImageNet, frozen) sees, MiniLM reads names; {report['k']} neighbours; seeds "
        f"{', '.join(map(str, report['seeds']))}. A figure is the mean over the seeds, with lowest and highest. "
        "*Linear probe* is logistic regression. Written by `examples/few_shot/curves.py` "
        "from `examples/few_shot/report.json`.",
    ]
    for name, found in report["sets"].items():
        ticks = [str(shots or "all") for shots in found["shots"]]
        curves = {way: [spread(found["runs"], place, way, "top1") for place in range(len(ticks))] for way in WAYS}
        title = f"{name}: top-1 of {found['sizes']['test']} test images, {found['sizes']['classes']} classes"
        curves_chart(curves, ticks, title, "labelled images of each class").save(folder / f"few_shot_{name}.png")
        sizes = ", ".join(f"{number} {part}" for part, number in found["sizes"].items())
        lines += ["", f"## {name}", "", f"{sizes}.", "", f"![{title}](few_shot_{name}.png)"]
        for measure, written in MEASURES.items():
            lines += ["", "| " + " | ".join([written, *ticks]) + " |", "|---" * (len(ticks) + 1) + "|"]
            for way in WAYS:
                cells = [spread(found["runs"], place, way, measure) for place in range(len(ticks))]
                lines.append("| " + " | ".join([way, *(f"{m:.3f} ({a:.3f}-{b:.3f})" for m, a, b in cells)]) + " |")
        gains = [gain(found["runs"], place) for place in range(len(ticks))]
        told = ", ".join(f"{value:+.1f} ({tick})" for value, tick in zip(gains, ticks, strict=True))
        lines += ["", f"Head + neighbours against the best of zero-shot, linear probe and neighbours, points: {told}."]
    lines += ["", *why(report)]
    (folder / "few_shot.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def why(report: dict) -> list[str]:
    """Why both together are no better than a head alone, in the figures of the report."""
    told = []
    for name, found in report["sets"].items():
        place = found["shots"].index(4)
        ways = ("zero-shot", "neighbours", "head")
        zero, near, head = (spread(found["runs"], place, way, "top1")[0] for way in ways)
        held = found["sizes"]["validation"]
        told.append(f"{name}: zero-shot {zero:.3f}, neighbours {near:.3f}, head {head:.3f}, set on {held} images")
    return [
        "## Why both together gain little here",
        "",
        f"At 4 images of each class: {'; '.join(told)}. Tip-Adapter's gain is that of two sources that err apart: a "
        "strong zero-shot head, trained on image-text pairs, and images. Lite0 and MiniLM never learned together, "
        "so names say nearly nothing here; and a head that was trained on the very images that are the entries, over "
        "the same frozen vectors, has read what the neighbours say. What `α`, `β` and `γ` are set by is a few dozen "
        "images, on which an accuracy is known to some points only. Entries keep what a head lacks: classes that come "
        "and go without training, and evidence. With a dual encoder that was trained on pairs (CLIP, SigLIP) begin "
        "with the names, as `train_classifier.py` does.",
    ]


def spread(runs: list, place: int, way: str, measure: str) -> tuple[float, float, float]:
    """Mean, lowest and highest over the seeds."""
    values = [run[place][way][measure] for run in runs]
    return sum(values) / len(values), min(values), max(values)


def gain(runs: list, place: int) -> float:
    """Points of top-1 by which both together are above the best of what is there without."""
    mean = {way: spread(runs, place, way, "top1")[0] for way in WAYS}
    return 100 * (mean["head + neighbours"] - max(mean[way] for way in WAYS[:3]))
