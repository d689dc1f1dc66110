"""The processor that fits a model of given backbones: what each of them came with, and limits that all can hold.

A backbone that is a name or a folder brings its own image processor or tokenizer; one that is an object without a
folder needs it given.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..errors import InvalidInputError
from .backbones import Backbone, read_config, reads_images
from .configuration_ravlm import RavlmConfig
from .prompts.chat_processor import load_generator_processor
from .prompts.layout import SPECIAL_TOKENS


MAX_PROMPT = {"causal": 1024, "image_text": 8192}  # tokens, where the generator was trained for more


def assemble_processor(
    cls: type,
    vision: Backbone,
    text: Backbone,
    generator: Backbone,
    *,
    image_processor: Any = None,
    text_tokenizer: Any = None,
    tokenizer: Any = None,
    generator_processor: Any = None,
    config: RavlmConfig | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Any:
    """The processor for a model of the same backbones; arguments as in `from_backbones`.

    Args:
        config (`RavlmConfig`, *optional*): the model's, for the number of image and memory tokens.
        settings: arguments of [`RavlmProcessor`] (`max_length`, `trim_image_margins`, ...).
    """
    generator_config = read_config(generator, trust_remote_code=trust_remote_code)
    text_config = read_config(text, trust_remote_code=trust_remote_code)
    text_tokenizer = text_tokenizer or load_tokenizer(text, "text_tokenizer", trust_remote_code)
    kind = "image_text" if reads_images(generator_config) else "causal"
    defaults: dict[str, Any] = {
        "max_length": prompt_limit(generator_config, MAX_PROMPT[kind]),
        "max_text_length": text_limit(getattr(text_config, "text_config", text_config), text_tokenizer),
    }
    if kind == "image_text":
        if generator_processor is None:
            folder = _folder_of(generator, "generator_processor")
            generator_processor = load_generator_processor(
                folder, generator_config, trust_remote_code=trust_remote_code
            )
        defaults["generator_processor"] = generator_processor
        tokenizer = generator_processor.tokenizer
    else:
        tokenizer = marked_tokenizer(tokenizer or load_tokenizer(generator, "tokenizer", trust_remote_code))
    if config is not None:
        for name in ("fusion", "num_image_tokens", "num_memory_tokens"):
            defaults[name] = getattr(config, name)
        defaults["passage_prompts"] = config.marginalization != "none"
    return cls(
        image_processor=image_processor or _load_image_processor(vision, trust_remote_code),
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer,
        **{**defaults, **settings},
    )


def marked_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer that has the marks of our prompts; it is changed in place."""
    missing = [token for token in SPECIAL_TOKENS.values() if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def prompt_limit(config: PreTrainedConfig, at_most: int) -> int:
    """Tokens of a prompt; an eighth of what the generator can hold is left for the answer.

    >>> from transformers import GPT2Config
    >>> prompt_limit(GPT2Config(), 8192)
    896
    """
    holds = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(at_most, holds - holds // 8) if holds else at_most


def text_limit(config: PreTrainedConfig, tokenizer: Any, at_most: int = 256) -> int:
    """Tokens of a question or passage that the text encoder can hold (77 of CLIP)."""
    holds = getattr(config, "max_position_embeddings", None) or at_most
    if "roberta" in config.model_type or config.model_type in ("camembert", "mpnet", "longformer"):
        holds -= config.pad_token_id + 1  # their positions count from there
    return min(at_most, holds, tokenizer.model_max_length)


def load_tokenizer(source: Backbone, argument: str, trust_remote_code: bool) -> Any:
    """The tokenizer of a backbone; `argument` is what a user passes where there is none."""
    return AutoTokenizer.from_pretrained(_folder_of(source, argument), trust_remote_code=trust_remote_code)


def _load_image_processor(source: Backbone, trust_remote_code: bool) -> Any:
    folder = _folder_of(source, "image_processor")
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ImportError:  # some (DINOv3) need torchvision, and do what this one does without it
        return ViTImageProcessorPil.from_pretrained(folder)


def _folder_of(source: Backbone, argument: str) -> Any:
    """Where a backbone came from, to load what belongs to it."""
    if not isinstance(source, nn.Module):
        return source
    folder = source.name_or_path
    if not folder:
        raise InvalidInputError(
            f"a {type(source).__name__} object that came from no folder does not tell what prepares its inputs; give "
            f"{argument}="
        )
    return os.fspath(folder)
