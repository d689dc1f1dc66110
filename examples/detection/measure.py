"""What a detector finds of base and novel classes, alone and with its entries; boxes with their evidence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from detection.scenes import Scenes, Things
from hf_ravlm.metrics.detection import mean_average_precision
from hf_ravlm.saving.drawing import INK, canvas, write


ARMS = {"detector alone": {"k": 0}, "with entries": {}}
THRESHOLD = 0.01  # of what is counted
SHOWN, PLACE, CROP = 6, 320, 64


def measured(detect: Any, tests: Scenes, things: Things, folder: Path) -> dict[str, Any]:
    """COCO's measures in both arms, and `boxes.png` beside them."""
    rows = [tests[number] for number in range(len(tests))]
    objects = [row["objects"] for row in rows]
    report: dict[str, Any] = {"scenes": len(rows), "base": len(things.base), "novel": len(things.novel), "arms": {}}
    for arm, options in ARMS.items():
        found = detect([row["image"] for row in rows], threshold=THRESHOLD, batch_size=8, **options)
        parts = {"base": things.base, "novel": things.novel, "all": None}
        report["arms"][arm] = {name: mean_average_precision(objects, found, part) for name, part in parts.items()}
        anything = [[{**entry, "label": "object"} for entry in row] for row in found]
        there = [[{**entry, "label": "object"} for entry in row] for row in objects]
        report["arms"][arm]["objects"] = mean_average_precision(there, anything)
    boxes_picture(rows[:SHOWN], found[:SHOWN], detect, things).save(folder / "boxes.png")
    return report


def boxes_picture(rows: list[dict], found: list[list[dict]], detect: Any, things: Things) -> Image.Image:
    """Scenes with the surest boxes, and under each box the entry that it rests on most."""
    sheet, pen = canvas(3 * (PLACE + 24) + 24, 2 * (PLACE + CROP + 64) + 24)
    images = {entry: place for place, entry in enumerate(detect.retriever.knowledge_base.ids)}
    for number, (row, detections) in enumerate(zip(rows, found, strict=True)):
        left, top = 24 + number % 3 * (PLACE + 24), 24 + number // 3 * (PLACE + CROP + 64)
        scale = PLACE / row["image"].width
        sheet.paste(row["image"].resize((PLACE, PLACE)), (left, top))
        for place, one in enumerate(surest(detections)):
            colour = "#1a7f37" if one["label"] in things.novel else "#0969da"
            corners = [round(one["box"][edge] * scale) for edge in ("xmin", "ymin", "xmax", "ymax")]
            pen.rectangle(
                [corners[0] + left, corners[1] + top, corners[2] + left, corners[3] + top], outline=colour, width=3
            )
            at = (left + place * (PLACE // 3), top + PLACE + 6)
            if one["evidence"]:
                [passage] = detect.retriever.knowledge_base.passages([images[one["evidence"][0]["id"]]])
                with Image.open(io.BytesIO(passage.image_bytes)) as picture:
                    picture.thumbnail((CROP, CROP))
                    sheet.paste(picture.convert("RGB"), at)
            write(pen, at[0], at[1] + CROP, f"{one['label'][:14]} {one['score']:.2f}", 12, colour)
    write(
        pen,
        24,
        4,
        "blue: classes of the detector; green: classes that came with entries; below: the nearest entry",
        13,
        INK,
    )
    return sheet


def surest(detections: list[dict]) -> list[dict]:
    """At most three boxes of a scene, none less than half as sure as the first.

    >>> [one["score"] for one in surest([{"score": 0.2}, {"score": 0.5}, {"score": 0.3}])]
    [0.5, 0.3]
    """
    best = sorted(detections, key=lambda one: -one["score"])[:3]
    return [one for one in best if one["score"] >= best[0]["score"] / 2]
