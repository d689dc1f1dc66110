"""COCO's average precision of detections, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError


MAX_DETECTIONS = (1, 10, 100)  # of an image, as COCO counts
Boxes = Sequence[Sequence[Mapping[str, Any]]]


def mean_average_precision(objects: Boxes, found: Boxes, labels: Collection[str] | None = None) -> dict[str, float]:
    """`map` (IoU .50 to .95), `map50` and `recall` (of the 100 surest), averaged over the classes that occur.

    Args:
        objects (`list[list[dict]]`): per image what is there: `label` and `box`, `{"xmin", "ymin", "xmax", "ymax"}`.
        found (`list[list[dict]]`): per image what was found: `label`, `box` and `score`.
        labels (*optional*): these classes alone.

    Raises:
        InvalidInputError: The numbers of images differ, no object is there, or pycocotools is not installed.

    >>> box = {"xmin": 1, "ymin": 1, "xmax": 9, "ymax": 9}
    >>> told = mean_average_precision([[{"label": "kite", "box": box}]], [[{"label": "kite", "box": box, "score": 1}]])
    >>> {name: round(value, 3) for name, value in told.items()}
    {'map': 1.0, 'map50': 1.0, 'recall': 1.0}
    """
    if len(objects) != len(found):
        raise InvalidInputError(f"detections of {len(found)} images came with objects of {len(objects)}")
    there = sorted({entry["label"] for row in objects for entry in row})
    names = [name for name in there if labels is None or name in labels]
    if not names:
        raise InvalidInputError("there is no object of these classes, so nothing can be measured")
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InvalidInputError('COCO\'s measures need pycocotools: pip install "hf_ravlm[detection]"') from error
    number = {name: place + 1 for place, name in enumerate(names)}
    told = [{**row, "score": float(entry["score"])} for row, entry in _rows(found, number)]
    if not told:
        return {"map": 0.0, "map50": 0.0, "recall": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": place} for place in range(len(objects))],
            "categories": [{"id": place, "name": name} for name, place in number.items()],
            "annotations": [{**row, "id": n + 1, "iscrowd": 0} for n, (row, _) in enumerate(_rows(objects, number))],
        }
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(told), "bbox")
        judged.params.maxDets = list(MAX_DETECTIONS)
        judged.evaluate()
        judged.accumulate()
    precision, recall = judged.eval["precision"][..., 0, -1], judged.eval["recall"][..., 0, -1]  # (T, R, C), (T, C)
    return {"map": _mean(precision), "map50": _mean(precision[0]), "recall": _mean(recall)}


def _rows(images: Boxes, number: Mapping[str, int]) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    rows = []
    for place, entries in enumerate(images):
        for entry in entries:
            if entry["label"] in number:
                left, top, right, bottom = (float(entry["box"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax"))
                sides = [right - left, bottom - top]
                row = {"image_id": place, "category_id": number[entry["label"]], "bbox": [left, top, *sides]}
                rows.append(({**row, "area": sides[0] * sides[1]}, entry))
    return rows


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]  # -1 where a class has no object
    return float(known.mean()) if known.size else 0.0
