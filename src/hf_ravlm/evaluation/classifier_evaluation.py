"""Evaluates a saved classifier on labelled images, with and without its neighbours; behind `hf-ravlm evaluate`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidInputError
from ..metrics.classification import macro_recall
from ..metrics.intervals import bootstrap_interval
from ..pipelines.knowledge import FILES, read_source
from ..retrieval import KnowledgeBase
from ..saving.durable import replace_file


TOP = 5
ARMS = {"head": "head alone", "neighbors": "head and neighbours"}


class ClassifierEvaluation(NamedTuple):
    """What `evaluate_classifier` found and where it is written."""

    report: dict[str, Any]
    files: list[Path]

    def to_markdown(self) -> str:
        """The figures as a table."""
        lines = [
            f"{self.report['num_images']} images of {self.report['num_classes']} classes",
            "",
            f"| | top-1 | 95 % | top-{TOP} | macro recall |",
            "|---|---|---|---|---|",
        ]
        for name, arm in self.report["arms"].items():
            top1 = arm["top1"]
            ends = f"{top1['lower']:.3f}-{top1['upper']:.3f}"
            lines.append(
                f"| {ARMS[name]} | {top1['mean']:.3f} | {ends} | {arm['top5']:.3f} | {arm['macro_recall']:.3f} |"
            )
        effect = self.report.get("effect")
        if effect is not None:
            lines += ["", f"Neighbours rescued {effect['rescued']} images and harmed {effect['harmed']}."]
        return "\n".join(lines)


def evaluate_classifier(
    model: str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    label_key: str = "label",
    split: str = "test",
    limit: int | None = None,
    k: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    seed: int = 0,
) -> ClassifierEvaluation:
    """Classifies labelled images by the head alone and with neighbours, and writes `report.json` and `report.md`.

    Args:
        model: The folder or Hub id of a `RavlmForImageClassification`, with its processor and labelled entries.
        data: Labelled images that are no entries: a folder with one sub-folder per class or a table of metadata, a
            JSONL, CSV or Parquet table, a Hub id of a data set, or a `KnowledgeBase`.
        output: The folder for the report.
        label_key: The column or key that names the class.
        split: Of a data set with several.
        limit: Only the first so many images.
        k: Neighbours of each image; as the model was made by default.
        batch_size, device, seed: As of `evaluate_model`; the seed is that of the intervals.

    Raises:
        InvalidInputError: If the model is no classifier, or an image has no label or is none.
    """
    from transformers import pipeline

    rows = data if isinstance(data, KnowledgeBase) else read_labelled(Path(data).expanduser(), split)
    passages = rows.passages(list(range(len(rows) if limit is None else min(limit, len(rows)))))
    if wrong := [one.id for one in passages if one.metadata.get(label_key) is None or one.image_bytes is None]:
        raise InvalidInputError(f"{len(wrong)} rows have no image or no {label_key!r}, such as {wrong[0]!r}")
    labels = [str(one.metadata[label_key]) for one in passages]
    classify = pipeline("image-classification", model=os.fspath(model), device=device)
    images, settings = [one.image for one in passages], {"batch_size": batch_size, "top_k": TOP}
    told = {"head": classify(images, k=0, **settings)}
    if classify.retriever is not None and k != 0:
        told["neighbors"] = classify(images, **settings, **({} if k is None else {"k": k}))
    report = {
        "task": "image-classification",
        "num_images": len(labels),
        "num_classes": len(set(labels)),
        "arms": {name: _measured(answers, labels, seed) for name, answers in told.items()},
    }
    if "neighbors" in told:
        right = {name: _right(answers, labels) for name, answers in told.items()}
        pairs = list(zip(right["head"], right["neighbors"], strict=True))
        report["effect"] = {"rescued": pairs.count((False, True)), "harmed": pairs.count((True, False))}
    found = ClassifierEvaluation(report, [])
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"report.json": json.dumps(report, indent=1), "report.md": found.to_markdown()}.items():
        replace_file(folder / name, f"{text}\n".encode())
        found.files.append(folder / name)
    return found


def read_labelled(path: Path, split: str = "test") -> KnowledgeBase:
    """Labelled images of a folder, a table or a data set.

    Raises:
        InvalidInputError: If there is no such thing, or no such split.
    """
    if path.is_file() or path.suffix in FILES:
        return read_source(path, {})
    import datasets

    if path.is_dir():
        found = datasets.load_dataset("imagefolder", data_dir=str(path))
    else:
        found = datasets.load_dataset(str(path))
    if split not in found and len(found) > 1:
        raise InvalidInputError(f"There is no split {split!r} in {path}; there is {', '.join(found)}.")
    rows = found[split if split in found else next(iter(found))]
    return KnowledgeBase.from_dataset(rows, id_column="id" if "id" in rows.column_names else None)


def _right(told: list[list[dict[str, Any]]], labels: list[str]) -> list[bool]:
    return [answers[0]["label"] == label for answers, label in zip(told, labels, strict=True)]


def _measured(told: list[list[dict[str, Any]]], labels: list[str], seed: int) -> dict[str, Any]:
    among = [any(one["label"] == label for one in row) for row, label in zip(told, labels, strict=True)]
    number = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    said = [number.get(row[0]["label"], -1) for row in told]
    return {
        "top1": asdict(bootstrap_interval(_right(told, labels), seed=seed)),
        "top5": sum(among) / len(among),
        "macro_recall": macro_recall(said, [number[label] for label in labels]),
    }
