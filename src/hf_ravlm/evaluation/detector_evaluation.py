"""Evaluates a saved detector on annotated images, with and without its entries; behind `hf-ravlm evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidInputError
from ..metrics.detection import mean_average_precision
from ..saving.durable import replace_file


THRESHOLD = 0.01  # detections less sure are not counted, and their boxes not looked up
ARMS = {"detector": "detector alone", "neighbors": "with entries"}


class DetectorEvaluation(NamedTuple):
    """What `evaluate_detector` found and where it is written."""

    report: dict[str, Any]
    files: list[Path]

    def to_markdown(self) -> str:
        """The figures as a table."""
        lines = [
            f"{self.report['num_images']} images, {self.report['num_objects']} objects of "
            f"{self.report['num_classes']} classes, {len(self.report['new_classes'])} of them new to the detector",
            "",
            "| | classes | mAP | mAP50 | recall |",
            "|---|---|---|---|---|",
        ]
        for name, parts in self.report["arms"].items():
            for part, figures in parts.items():
                cells = " | ".join(f"{figures[measure]:.3f}" for measure in ("map", "map50", "recall"))
                lines.append(f"| {ARMS[name]} | {part} | {cells} |")
        return "\n".join(lines)


def evaluate_detector(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str = "test",
    limit: int | None = None,
    k: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> DetectorEvaluation:
    """Detects in annotated images by the detector alone and with entries, and writes `report.json` and `report.md`.

    Args:
        model: The folder or Hub id of a `RavlmForObjectDetection`, with its image processor and labelled entries.
        data: Annotated images, see `read_annotated`.
        output: The folder for the report.
        split: Of a data set with several.
        limit: Only the first so many images.
        k: Entries that a box is compared with; as the model was made by default.
        batch_size, device: As of `evaluate_classifier`.

    Raises:
        InvalidInputError: If the model is no detector, the data have no objects, or a box lies outside of its image.
    """
    from transformers import pipeline

    from ..pipelines.object_detection import class_names, labelled_box

    rows = read_annotated(data, split)[:limit]
    objects: list[list[dict[str, Any]]] = []
    for row in rows:
        told = [labelled_box(entry, row["image"].size) for entry in row["objects"]]
        edges = ("xmin", "ymin", "xmax", "ymax")
        objects.append([{"label": label, "box": dict(zip(edges, box, strict=True))} for label, box in told])
    detect = pipeline("object-detection", model=os.fspath(model), device=device)
    if not hasattr(detect, "retriever"):
        raise InvalidInputError(f"{os.fspath(model)}: this is no detector of hf_ravlm, so there is nothing to compare")
    settings = {"threshold": THRESHOLD, "batch_size": batch_size}
    images = [row["image"] for row in rows]
    found = {"detector": detect(images, k=0, **settings)}
    if detect.retriever is not None and k != 0:
        found["neighbors"] = detect(images, **settings, **({} if k is None else {"k": k}))
    there = {entry["label"] for row in objects for entry in row}
    new = sorted(there - set(class_names(detect.model)))
    parts = {"all": there} | ({"known": there - set(new), "new": set(new)} if new else {})
    report = {
        "task": "object-detection",
        "num_images": len(rows),
        "num_objects": sum(map(len, objects)),
        "num_classes": len(there),
        "new_classes": new,
        "arms": {
            arm: {part: mean_average_precision(objects, told, names) for part, names in parts.items() if names}
            for arm, told in found.items()
        },
    }
    evaluation = DetectorEvaluation(report, [])
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"report.json": json.dumps(report, indent=1), "report.md": evaluation.to_markdown()}.items():
        replace_file(folder / name, f"{text}\n".encode())
        evaluation.files.append(folder / name)
    return evaluation


def read_annotated(source: str | os.PathLike[str], split: str = "test") -> list[dict[str, Any]]:
    """Rows `{"image", "objects": [{"label", "box"}]}` of annotated images.

    Args:
        source: A folder of images with `metadata.jsonl`, or a data set of the Hub, with a column `objects`, of which
            `bbox` has `[x, y, width, height]` in pixels and `category` the names of classes.
        split: Of a data set with several; where it has one, that is taken.

    Raises:
        InvalidInputError: If there is no such split or column, or `bbox` and `category` differ in number.
    """
    import datasets

    folder = Path(source).expanduser()
    found = datasets.load_dataset("imagefolder", data_dir=str(folder)) if folder.is_dir() else None
    found = datasets.load_dataset(os.fspath(source)) if found is None else found
    if split not in found and len(found) > 1:
        raise InvalidInputError(f"There is no split {split!r} in {source}; there is {', '.join(found)}.")
    rows = found[split if split in found else next(iter(found))]
    if missing := {"image", "objects"} - set(rows.column_names):
        raise InvalidInputError(
            f"{source}: there is no column {sorted(missing)[0]!r}. Expected `image` and `objects` with `bbox` ([x, y, "
            f"width, height] in pixels) and `category`; there is {', '.join(rows.column_names)}."
        )
    told = []
    for place, row in enumerate(rows):
        boxes, names = (row["objects"].get(name) for name in ("bbox", "category"))
        if boxes is None or names is None or len(boxes) != len(names):
            raise InvalidInputError(f"{source}: row {place} has not as many `bbox` as `category` in `objects`.")
        pairs = zip(boxes, names, strict=True)
        objects = [{"label": None if name is None else str(name), "box": box} for box, name in pairs]
        told.append({"image": row["image"], "objects": objects})
    return told
