"""Pipelines that look at images and are asked nothing: what a call gives them, and going on without what is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InvalidInputError
from ..images import safe_image
from .asked import opened
from .numbered_inputs import still_encoded


def images_of_call(inputs: Any, kwargs: dict[str, Any], verb: str) -> Any:
    """The images that a call came with, directly or as `images=`, which is taken out of `kwargs`.

    Raises:
        InvalidInputError: If there is nothing.
    """
    inputs = kwargs.pop("images", inputs) if inputs is None else inputs
    if inputs is None:
        raise InvalidInputError(f"nothing to {verb}: call the pipeline with an image, a list or a dataset")
    if hasattr(inputs, "column_names"):  # a `datasets.Dataset`, which no pipeline takes for one
        return (row["image"] for row in still_encoded(inputs))
    return inputs


def is_empty(inputs: Any) -> bool:
    """Whether there is no image in a list, which `Pipeline` cannot iterate over."""
    return isinstance(inputs, list) and not inputs


def read_image(image: Any, timeout: float | None = None) -> dict[str, Any]:
    """One image, decoded."""
    return {"image": safe_image(opened(image, timeout)), "error": None}


def unread_image(image: Any, error: str) -> dict[str, Any]:
    """Stands for an image that cannot be used."""
    return {"image": None, "error": error}


def look_at_sound(
    model_inputs: dict[str, Any], look: Callable[[list], list], unusable: Callable[[str], Any]
) -> dict[str, Any]:
    """What is found on each image, or what is said of one that cannot be used; with `batch_size` lists of both.

    >>> look_at_sound({"image": [7, None], "error": [None, "torn"]}, lambda images: [-n for n in images], str.upper)
    {'found': [-7, 'TORN']}
    """
    batched = isinstance(model_inputs["image"], list)
    columns = [model_inputs[name] for name in ("image", "error")]
    rows = list(zip(*columns, strict=True)) if batched else [tuple(columns)]
    sound = [image for image, error in rows if error is None]
    given = iter(look(sound) if sound else [])
    found = [next(given) if error is None else unusable(error) for _, error in rows]
    return {"found": found if batched else found[0]}
