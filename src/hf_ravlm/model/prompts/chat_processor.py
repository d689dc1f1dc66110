"""Loads the processor of an image-text-to-text model, also where torchvision is missing.

Qwen-VL, SmolVLM and others take videos too, for which alone transformers needs torchvision; without it the processor
is loaded without its video part.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoProcessor, PreTrainedConfig
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from ...errors import InvalidInputError


class WithoutVideos:
    """Put before a processor class, leaves out its video processor."""

    video_processor = SimpleNamespace(num_frames=None, fps=None)  # some chat templates ask for these, and use neither

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]

    @classmethod
    def from_args_and_dict(cls, args: list, processor_dict: dict[str, Any], **kwargs: Any) -> ProcessorMixin:
        return super().from_args_and_dict(args, {**processor_dict, "video_processor": None}, **kwargs)


def without_videos(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class without its video part, if it has one; the name, which saved folders hold, stays.

    >>> from transformers import LlavaProcessor, Qwen2VLProcessor
    >>> without_videos(LlavaProcessor) is LlavaProcessor, without_videos(Qwen2VLProcessor).get_attributes()
    (True, ['image_processor', 'tokenizer'])
    """
    if "video_processor" not in cls.get_attributes():
        return cls
    return type(cls.__name__, (WithoutVideos, cls), {"__module__": cls.__module__})


def load_generator_processor(
    source: str | os.PathLike, kind: PreTrainedConfig | str, **loading: Any
) -> ProcessorMixin:
    """The processor of an image-text-to-text model.

    Args:
        source (`str` or `os.PathLike`): name on the Hub or folder.
        kind (`PreTrainedConfig` or `str`): the model's configuration, or the name of its processor's class.
        loading: passed to `from_pretrained` (`subfolder`, `trust_remote_code`, ...).

    Raises:
        `InvalidInputError`: if what is there is no processor of images and texts.
    """
    cls = processor_class_from_name(kind) if isinstance(kind, str) else PROCESSOR_MAPPING.get(type(kind), None)
    if cls is None or is_torchvision_available():
        processor = AutoProcessor.from_pretrained(source, **loading)
    else:
        processor = without_videos(cls).from_pretrained(source, **loading)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InvalidInputError(
            f"{os.fspath(source)!r} holds a {type(processor).__name__}; expected a processor with a tokenizer and an "
            "image processor, as every image-text-to-text model has: give generator_processor="
        )
    return processor
