"""Batches for detectors: images, and where things are in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInputError
from ...images import safe_image
from ...pipelines.object_detection import labelled_box


@dataclass(frozen=True, kw_only=True)
class DetectionCollator:
    """Batches of annotated images, for training a detector.

    Args:
        image_processor: Of the detector.
        labels: The names of its classes, in the order of its head.
        image, objects: Columns; objects are lists of dictionaries with `label` and `box` (`xmin`, `ymin`, `xmax`,
            `ymax`, or `[x, y, width, height]`, in pixels).

    Raises:
        InvalidInputError: If an object has no label or one that is no class, or its box lies outside of the image.

    Example:

    ```python
    collator = DetectionCollator(image_processor=image_processor, labels=list(model.config.label2id))
    Trainer(model, arguments, data_collator=collator, train_dataset=rows).train()
    ```
    """

    image_processor: Any
    labels: Sequence[str]
    image: str = "image"
    objects: str = "objects"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        number = {name: place for place, name in enumerate(self.labels)}
        images, annotations = [], []
        for place, row in enumerate(rows):
            images.append(safe_image(row[self.image]))
            told = []
            for entry in row[self.objects]:
                label, (left, top, right, bottom) = labelled_box(entry, images[-1].size)
                if label not in number:
                    raise InvalidInputError(
                        f"the label {label!r} is no class of the detector: expected one of "
                        f"{', '.join(self.labels[:10])}"
                    )
                bbox = [left, top, right - left, bottom - top]
                told.append({"bbox": bbox, "category_id": number[label], "area": bbox[2] * bbox[3], "iscrowd": 0})
            annotations.append({"image_id": place, "annotations": told})
        inputs = self.image_processor(images=images, annotations=annotations, return_tensors="pt")
        return {name: inputs[name] for name in ("pixel_values", "pixel_mask", "labels") if name in inputs}
