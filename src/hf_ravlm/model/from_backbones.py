"""One call from three backbones to a model and the processor that fits it."""

from __future__ import annotations

from typing import Any

import torch

from .backbones import Backbone
from .processing_ravlm import RavlmProcessor
from .reader.reader import RavlmForConditionalGeneration


def from_backbones(
    vision: Backbone,
    text: Backbone,
    generator: Backbone,
    *,
    image_processor: Any = None,
    text_tokenizer: Any = None,
    tokenizer: Any = None,
    generator_processor: Any = None,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    **settings: Any,
) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
    """A reader and its processor out of three backbones.

    Args:
        vision, text, generator (`str`, `os.PathLike` or `PreTrainedModel`):
            each a name on the Hub, a folder, or a model object, which then becomes a part of the model (no copy).
        image_processor, text_tokenizer, tokenizer, generator_processor (*optional*):
            of the vision tower, the text encoder, a causal generator, an image-text-to-text generator. Needed only
            where the backbone is an object that came from no folder.
        dtype (`str` or `torch.dtype`, *optional*): of all parts; `"auto"` is that of the generator's checkpoint.
        trust_remote_code (`bool`, *optional*): whether backbones on the Hub may bring their own code.
        settings: fields of [`RavlmConfig`] (`fusion`, `projection_dim`, ...).

    Returns:
        [`RavlmForConditionalGeneration`] in eval mode and [`RavlmProcessor`].

    Raises:
        `InvalidInputError`: if a backbone does not fit its role or lacks weights, or if a processor is missing.

    Example:

    >>> from hf_ravlm import from_backbones
    >>> model, processor = from_backbones(
    ...     "google/siglip2-base-patch16-224", "sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen3-0.6B"
    ... )  # doctest: +SKIP
    """
    loading = {"trust_remote_code": trust_remote_code}
    model = RavlmForConditionalGeneration.from_backbones(
        vision,
        text,
        generator,
        tokenizer=tokenizer,
        dtype=dtype,
        **loading,
        **settings,
    )
    processor = RavlmProcessor.from_backbones(
        vision,
        text,
        generator,
        image_processor=image_processor,
        text_tokenizer=text_tokenizer,
        tokenizer=tokenizer,
        generator_processor=generator_processor,
        config=model.config,
        **loading,
    )
    return model, processor
