"""The keywords of one call of the processor: whose they are."""

from __future__ import annotations

from typing import Any

from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from ...errors import InvalidInputError
from .settings import SETTINGS


class RavlmProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]  # its base is not followed
    """Settings of one call of [`RavlmProcessor`], beside those that every processor takes."""

    passage_prompts: bool | None
    answer_on_top: bool | None


def sorted_keywords(processor: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of padding, and those of the image processor that the reader's images go through.

    Raises:
        `InvalidInputError`: for one that nobody takes.
    """
    annotations = RavlmProcessorKwargs.__annotations__
    common = {name for kind in (TextKwargs, ImagesKwargs) for name in kind.__annotations__}
    common |= {*annotations, "text_kwargs", "images_kwargs", "common_kwargs", "audio_kwargs", "videos_kwargs"}
    sees = (processor.generator_processor or processor).image_processor
    kwargs = {name: value for name, value in kwargs.items() if name not in ("videos", "audio") or value is not None}
    of_images = set(getattr(getattr(sees, "valid_kwargs", None), "__annotations__", {}))
    if unknown := [name for name in kwargs if name not in common | of_images]:
        raise InvalidInputError(
            f"the processor takes no {unknown[0]}=; it takes the settings of a prompt ({', '.join(SETTINGS)}), "
            f"those of its image processor ({', '.join(sorted(of_images)) or 'it has none'}), and "
            "images, text, evidence (the passages of each question), answers, passage_prompts, answer_on_top, "
            "padding, padding_side, pad_to_multiple_of"
        )
    own = {name: kwargs[name] for name in kwargs if name in of_images - common}
    merged = processor._merge_kwargs(
        RavlmProcessorKwargs, **{name: value for name, value in kwargs.items() if name not in own}
    )
    own |= {name: value for name, value in merged["images_kwargs"].items() if name != "return_tensors"}
    size = getattr(sees, "size", None) or {}
    pixels = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    if own.keys() & pixels and all(edge in size for edge in pixels.values()):  # their new name in transformers
        named = {pixels[name]: own.pop(name) for name in pixels if own.get(name) is not None}
        own["size"] = {**{edge: size[edge] for edge in pixels.values()}, **named}
    return merged["text_kwargs"], own
