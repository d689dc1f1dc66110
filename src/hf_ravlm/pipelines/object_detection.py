"""`pipeline("object-detection")`: an image in, boxes out, each with the labelled images that its name rests on.

The detector proposes, and every box that may become a detection is cut out and looked up among labelled images.
Detectors without knowledge get the built-in class itself, untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoImageProcessor, ObjectDetectionPipeline
from transformers.image_transforms import center_to_corners_format

from ..errors import InvalidInputError
from ..images import safe_image
from ..images.regions import box_in
from ..model import RavlmForObjectDetection
from ..model.heads.neighbors import NO_NEIGHBOR
from ..model.heads.object_detection import BoxFit
from ..model.loading import loading_errors, origin_of, source_of, without_adapters
from ..numbers_given import check_between, check_whole
from .answer import passage_record
from .asked import opened
from .image_classification import LABEL_KEY, known_classes, labelled, neighbor_tensors
from .image_to_text import RavlmPipelineMixin
from .looking import images_of_call, is_empty, look_at_sound, read_image, unread_image
from .numbered_inputs import check_on_error
from .parts import is_ours


if TYPE_CHECKING:
    from ..retrieval import RavlmRetriever

SEARCH_KEYS = ("k", "where", "label_key", "retriever", "num_boxes")
NUM_BOXES = 50
MIN_OVERLAP = 0.5  # of a proposal with a box that is known, as intersection over union
_MIN_SIDE = 2  # pixels of a crop


class RavlmObjectDetectionPipeline(RavlmPipelineMixin, ObjectDetectionPipeline):
    """
    Finds objects by a detector, and names them by its class scores and by labelled images of a knowledge base.

    `pipeline("object-detection", model=DETECTOR, encoder=ENCODER, knowledge=ENTRIES)` after `import hf_ravlm`, where
    `DETECTOR` is any model of `AutoModelForObjectDetection` with queries; or `model=FOLDER` for what `save_pretrained`
    wrote. Entries are images of single objects, whose metadata name the class (`{"id": ..., "image": ..., "label":
    "heron"}`); of annotated scenes `boxed_entries` makes them. A class that the detector does not know is one as soon
    as entries of it are added, and none when they are removed. Calls take an image (path, URL, PIL image), a list, a
    generator or a dataset, and:

    - **threshold** (`float`, *optional*, defaults to 0.5), **timeout** -- as in
      [`~transformers.ObjectDetectionPipeline`].
    - **k** (`int`, *optional*) -- entries to compare a box with, by default `config.num_passages`; 0 asks the detector
      alone.
    - **num_boxes** (`int`, *optional*, defaults to 50) -- at most so many boxes of an image are looked up: those most
      likely to hold an object, of which the detector must be surer than `threshold`.
    - **where**, **label_key**, **retriever**, **on_error** (*optional*) -- as in `pipeline("image-classification")`.

    Each image gives a list of dictionaries with `score`, `label`, `box` (`xmin`, `ymin`, `xmax`, `ymax` in pixels) and
    `evidence`: the entries of this class that the box was found to look like (dictionaries with id, image, score,
    source, licence, metadata, ...).
    """

    _load_processor, _load_image_processor = False, None

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if model is None or is_ours(model) or any(part is not None for part in (encoder, knowledge, retriever)):
            return super().__new__(cls)
        return ObjectDetectionPipeline(model, *args, **kwargs)

    def __init__(self, model, image_processor=None, processor=None, tokenizer=None, **kwargs):
        image_processor = image_processor or processor or find_image_processor(model)
        if not hasattr(image_processor, "post_process_object_detection"):
            raise InvalidInputError(
                f"a {type(image_processor).__name__} turns no outputs into boxes: expected the image processor of a "
                "detector, which has post_process_object_detection"
            )
        if not is_ours(model):
            model = RavlmForObjectDetection.from_detector(model)
        if not isinstance(without_adapters(model), RavlmForObjectDetection):
            raise InvalidInputError(
                f"{model.name_or_path or 'the model'} is a {type(model).__name__}, which finds no objects: expected a "
                "detector of transformers, or `RavlmForObjectDetection.from_detector(detector)`"
            )
        super().__init__(model, processor=image_processor, **kwargs)
        self.image_processor = image_processor

    def check_model_type(self, supported_models):
        """Nothing: the class of the model was checked."""

    def _sanitize_parameters(self, threshold=None, timeout=None, on_error=None, **kwargs):
        if on_error is not None:
            check_on_error(on_error)
        forward = {key: kwargs.pop(key) for key in SEARCH_KEYS if key in kwargs}
        if kwargs:
            raise InvalidInputError(
                f"object-detection takes no {next(iter(kwargs))}=; it takes threshold, timeout, "
                + ", ".join(("on_error", *SEARCH_KEYS))
            )
        if threshold is not None:
            check_between("threshold", threshold, 0, 1)
            forward["threshold"] = threshold
        for name in ("k", "num_boxes"):
            if forward.get(name) is not None:
                check_whole(name, forward[name], lowest=0)
        before = {"timeout": timeout, "on_error": on_error}
        return {name: value for name, value in before.items() if value is not None}, forward, {}

    def __call__(self, inputs=None, **kwargs):
        """See the class."""
        inputs = images_of_call(inputs, kwargs, "look at")
        return [] if is_empty(inputs) else super().__call__(inputs, **kwargs)

    read_input = staticmethod(read_image)
    unread_input = staticmethod(unread_image)

    def _forward(self, model_inputs, **search):
        return look_at_sound(model_inputs, partial(self._detect, **search), unfound)

    def postprocess(self, model_outputs):
        found = model_outputs["found"]
        return found[0] if found and isinstance(found[0], list) else found  # a batch of one comes back nested

    def _detect(
        self,
        images: list,
        threshold: float = 0.5,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        label_key: str = LABEL_KEY,
        retriever: RavlmRetriever | None = None,
        num_boxes: int = NUM_BOXES,
    ) -> list[list[dict[str, Any]]]:
        """The detections of each image, best first."""
        detector, retriever = without_adapters(self.model), retriever if retriever is not None else self.retriever
        k = detector.config.num_passages if k is None else k
        outputs, names = self._look_at(images), class_names(detector)
        evidence: dict[tuple[int, int], list[tuple[str, Any]]] = {}
        if retriever is None and (where is not None or k != detector.config.num_passages != 0 and k > 0):
            raise InvalidInputError(
                "there is nothing to search: give knowledge=, labelled images, or leave k= and where= out"
            )
        if retriever is not None and k > 0:
            names, counts, _ = known_classes(retriever, names, label_key, where)
            places = self._worth_looking_up(outputs, images, threshold, num_boxes)
            crops = [images[row].crop(box) for (row, _), box in places.items()]
            found = retriever.retrieve(images=crops, k=k, where=where) if crops else []
            neighbors = neighbor_tensors(found, names, counts, label_key, outputs.logits.device)
            spread = at_places(neighbors, list(places), outputs.logits.shape[:2])
            outputs = detector.join(outputs, **spread, num_labels=len(names))
            evidence = dict(zip(places, labelled(found, label_key), strict=True))
        return self._told(outputs, images, threshold, names, evidence)

    def _look_at(self, images: list) -> Any:
        """What the detector says of images."""
        inputs = self.image_processor(images=images, return_tensors="pt").to(self.device, self.dtype)
        return self.model(**{name: inputs[name] for name in ("pixel_values", "pixel_mask") if name in inputs})

    def _worth_looking_up(
        self, outputs: Any, images: list, threshold: float, num_boxes: int
    ) -> dict[tuple[int, int], tuple[int, int, int, int]]:
        """Row and number of the boxes that may become detections, each with what of the image it holds."""
        objectness = without_adapters(self.model).beliefs(outputs).objectness.exp()
        best = objectness.topk(min(num_boxes, objectness.shape[1]), dim=1).indices.tolist()
        places = {}
        for row, (image, corners) in enumerate(zip(images, pixel_boxes(outputs, images), strict=True)):
            for number in best[row]:
                box = inner_pixels(corners[number].tolist(), image.size)
                if box is not None and objectness[row, number] > threshold:
                    places[row, number] = box
        return places

    def _told(
        self, outputs: Any, images: list, threshold: float, names: list[str], evidence: Mapping[Any, list]
    ) -> list[list[dict[str, Any]]]:
        """Detections as the image processor reads them, with the evidence of the boxes that they came from."""
        sizes = torch.tensor([[image.height, image.width] for image in images], device=outputs.logits.device)
        read = self.image_processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        told = []
        for row, (one, corners) in enumerate(zip(read, pixel_boxes(outputs, images), strict=True)):
            order = one["scores"].argsort(descending=True, stable=True).tolist()
            boxes = one["boxes"].float().to(corners.device)
            numbers = torch.cdist(boxes, corners).argmin(dim=1).tolist() if len(boxes) else []
            labels, scores = [names[label] for label in one["labels"].tolist()], one["scores"].tolist()
            told.append([
                {
                    "score": scores[place],
                    "label": labels[place],
                    "box": self._get_bounding_box(one["boxes"][place]),
                    "evidence": [passage_record(entry) for label, entry in evidence.get((row, numbers[place]), [])
                                 if label == labels[place]],
                }
                for place in order
            ])  # fmt: skip
        return told

    @torch.no_grad()
    def fit_neighbors(
        self, images: Sequence[Any], objects: Sequence[Sequence[Mapping[str, Any]]], batch_size: int = 8, **search: Any
    ) -> BoxFit:
        """Sets how much neighbours count (`α`, `β`, `γ`, and where new classes begin) by images with known boxes.

        Args:
            images (`list`): not those that the entries were cut out of.
            objects (`list[list[dict]]`):
                per image its objects, each with `label` and `box`, as the pipeline returns them; a box may also be
                `[x, y, width, height]` in pixels.
            batch_size (`int`): images that are looked at together.
            search: `k`, `where`, `label_key` and `retriever`, as in a call.

        Raises:
            `InvalidInputError`: if a box lies outside of its image, a label is no class, the detector finds none of
                the objects, or there is nothing to search.
        """
        if len(images) == 0 or len(images) != len(objects):
            raise InvalidInputError(
                f"{len(images)} images came with objects of {len(objects)}: expected one list each"
            )
        retriever = search.get("retriever") or self.retriever
        if retriever is None:
            raise InvalidInputError("there is nothing to search: give knowledge=, labelled images")
        detector, key, where = without_adapters(self.model), search.get("label_key", LABEL_KEY), search.get("where")
        names, counts, _ = known_classes(retriever, class_names(detector), key, where)
        beliefs, labels, crops = [], [], []
        for start in range(0, len(images), batch_size):
            shown = [safe_image(opened(image, None)) for image in images[start : start + batch_size]]
            outputs = self._look_at(shown)
            told, corners = detector.beliefs(outputs).classes, pixel_boxes(outputs, shown)
            for row, (image, known) in enumerate(zip(shown, objects[start : start + batch_size], strict=True)):
                for number, label in matched(image, known, corners[row], names):
                    beliefs.append(told[row, number])
                    labels.append(label)
                    crops.append(image.crop(inner_pixels(corners[row, number].tolist(), image.size)))
        if not labels:
            raise InvalidInputError(
                "the detector has no box on any of the objects: train it before neighbours are fit"
            )
        found = retriever.retrieve(images=crops, k=search.get("k") or detector.config.num_passages, where=where)
        neighbors = neighbor_tensors(found, names, counts, key, detector.device)
        targets = torch.tensor(labels, device=detector.device)
        return detector.fit_neighbors(torch.stack(beliefs), labels=targets, **neighbors)


def find_image_processor(model: Any) -> Any:
    """The image processor that lies beside a detector.

    Raises:
        InvalidInputError: If the model came from nowhere, or there is none.
    """
    source, origin = source_of(without_adapters(model)), origin_of(without_adapters(model))
    if not source:
        raise InvalidInputError(
            "this detector was not loaded from a folder, so its image processor cannot be found; pass image_processor="
        )
    with loading_errors("image processor", source):
        return AutoImageProcessor.from_pretrained(source, **origin)


def class_names(detector: RavlmForObjectDetection) -> list[str]:
    """The names of the classes that a detector has itself."""
    return [detector.config.id2label[number] for number in range(detector.config.num_labels)]


def unfound(error: str) -> list[dict[str, Any]]:
    """What is returned of an image that cannot be used."""
    return [{"score": None, "label": None, "box": None, "evidence": [], "error": error}]


def pixel_boxes(outputs: Any, images: list) -> torch.Tensor:
    """Left, upper, right and lower edges `(B, Q, 4)` in pixels, which may lie outside of the image."""
    sizes = torch.tensor([[*image.size, *image.size] for image in images], device=outputs.pred_boxes.device)
    return center_to_corners_format(outputs.pred_boxes.float()) * sizes[:, None]  # type: ignore[no-any-return]


def inner_pixels(corners: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """What of an image of a size (width, height) lies in a box; `None` if it is nothing to look at.

    >>> inner_pixels([-3.2, 4.0, 10.6, 30.0], (20, 20)), inner_pixels([25.0, 4.0, 30.0, 9.0], (20, 20))
    ((0, 4, 11, 20), None)
    """
    left, top = (max(round(value), 0) for value in corners[:2])
    right, bottom = (min(round(value), side) for value, side in zip(corners[2:], size, strict=True))
    return (left, top, right, bottom) if min(right - left, bottom - top) >= _MIN_SIDE else None


def at_places(
    neighbors: Mapping[str, torch.Tensor], places: Sequence[tuple[int, int]], shape: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Neighbours `(n, K)` of some boxes as those of all, `(B, Q, K)`."""
    spread = {}
    for name, values in neighbors.items():
        nothing = NO_NEIGHBOR if name == "neighbor_labels" else 1
        spread[name] = values.new_full((*shape, values.shape[1]), nothing)
        for place, row in zip(places, values, strict=True):
            spread[name][place] = row
    return spread


def matched(
    image: Any, objects: Iterable[Mapping[str, Any]], corners: torch.Tensor, names: list[str]
) -> Iterator[tuple[int, int]]:
    """Of each object the number of the box that covers it best, and its class; not of those that no box covers.

    Raises:
        InvalidInputError: If an object has no label, or one that is no class, or its box lies outside of the image.
    """
    number = {name: place for place, name in enumerate(names)}
    for entry in objects:
        label, box = labelled_box(entry, image.size)
        if label not in number:
            raise InvalidInputError(
                f"the label {label!r} is no class, neither of the detector nor of an entry: expected one of "
                f"{', '.join(names[:10])}"
            )
        overlaps = overlap(torch.tensor(box, dtype=corners.dtype, device=corners.device), corners)
        best = int(overlaps.argmax())
        if overlaps[best] >= MIN_OVERLAP and inner_pixels(corners[best].tolist(), image.size) is not None:
            yield best, number[label]


def overlap(box: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Intersection over union of a box `(4,)` with others `(Q, 4)`.

    >>> overlap(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
    tensor([0.3333])
    """
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    common = sides.prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1)
    return common / (areas + (box[2:] - box[:2]).prod() - common)


def labelled_box(entry: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, tuple[float, float, float, float]]:
    """The class and the edges of an object, of an image of this size.

    Raises:
        InvalidInputError: If it has no label or no box, or the box lies outside of the image.
    """
    missing = [name for name in ("label", "box") if not isinstance(entry, Mapping) or entry.get(name) is None]
    if missing:
        raise InvalidInputError(f"an object has no {missing[0]!r}: expected dictionaries with label and box")
    return str(entry["label"]), box_in(entry["box"], size)


def boxed_entries(
    images: Sequence[Any], objects: Sequence[Sequence[Mapping[str, Any]]], name: str = "scene"
) -> Iterator[dict[str, Any]]:
    """Entries for a knowledge base out of annotated images: each object cut out, with its class as `label`.

    Args:
        images (`list`): paths, addresses or PIL images.
        objects (`list[list[dict]]`): per image its objects, as of `fit_neighbors`; what else they say is kept.
        name (`str`): how the ids begin.

    Raises:
        `InvalidInputError`: if an object has no label, or its box lies outside of the image.

    >>> from PIL import Image
    >>> [entry] = boxed_entries([Image.new("RGB", (9, 9))], [[{"label": "kite", "box": [1, 2, 3, 4]}]])
    >>> entry["id"], entry["label"], entry["image"].size
    ('scene-0-0', 'kite', (3, 4))
    """
    if len(images) != len(objects):
        raise InvalidInputError(f"{len(images)} images came with objects of {len(objects)}: expected one list each")
    for row, (image, known) in enumerate(zip(images, objects, strict=True)):
        shown = safe_image(opened(image, None))
        for number, entry in enumerate(known):
            label, corners = labelled_box(entry, shown.size)
            box = inner_pixels(corners, shown.size)
            if box is None:
                raise InvalidInputError(f"image {row}, object {number}: the box {corners} holds no {_MIN_SIDE} pixels")
            more = {key: value for key, value in entry.items() if key not in ("label", "box", "score", "evidence")}
            yield {"id": f"{name}-{row}-{number}", "image": shown.crop(box), "label": label, **more}


__all__ = ["RavlmObjectDetectionPipeline", "boxed_entries"]
