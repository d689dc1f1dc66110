"""From three backbones to one model, with every pretrained weight in its place, and the processor that fits it.

A causal generator gets embeddings for those marks of our prompts that its tokenizer lacks, each the mean of the old
ones. Only what is ours (projections, fusion) starts from new numbers.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..errors import InvalidInputError
from .backbones import Backbone, load_generator, load_text_encoder, load_vision_tower, reader_kind
from .configuration_ravlm import RavlmConfig
from .fusions.cross_attention import attach_cross_attention
from .loading import initialize_new
from .processing_ravlm import RavlmProcessor
from .prompts.chat_processor import load_generator_processor
from .prompts.layout import SPECIAL_TOKENS
from .prompts.literal import add_marks
from .reader.reader import RavlmForConditionalGeneration


MAX_PROMPT = {"causal": 1024, "image_text": 8192}  # tokens, where the generator was trained for more


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
            The generator is a causal language model or an image-text-to-text model.
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
    access = {"trust_remote_code": trust_remote_code}
    text_tokenizer = text_tokenizer or AutoTokenizer.from_pretrained(_folder_of(text, "text_tokenizer"), **access)
    image_processor = image_processor or _load_image_processor(vision, access)
    language_model = load_generator(generator, dtype=dtype, **access)
    dtype = language_model.dtype
    parts = {
        "model.vision_tower": load_vision_tower(vision, dtype=dtype, **access).to(dtype),
        "model.text_encoder": load_text_encoder(text, dtype=dtype, **access).to(dtype),
        "language_model": language_model,
    }
    kind = reader_kind(language_model.config)
    marks: dict[str, int] = {}
    if kind == "image_text":
        if generator_processor is None:
            folder = _folder_of(generator, "generator_processor")
            generator_processor = load_generator_processor(folder, language_model.config, **access)
        tokenizer = generator_processor.tokenizer
        if getattr(language_model.config, "image_token_id", None) is not None:
            marks["image_token_id"] = language_model.config.image_token_id
    else:
        generator_processor = None
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(_folder_of(generator, "tokenizer"), **access)
        add_marks(tokenizer)
        add_embeddings(language_model, len(tokenizer))
        for name in ("image", "evidence"):
            marks[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[name])
    config = RavlmConfig(
        vision_config=_part_config(parts["model.vision_tower"]),
        text_config=_part_config(parts["model.text_encoder"]),
        generator_config=_part_config(language_model),
        **{**marks, **settings},
    )
    config.dtype = dtype
    processor = RavlmProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer,
        generator_processor=generator_processor,
        fusion=config.fusion,
        num_image_tokens=config.num_image_tokens,
        num_memory_tokens=config.num_memory_tokens,
        passage_prompts=config.marginalization != "none",
        max_length=prompt_limit(language_model.config, MAX_PROMPT[kind]),
        max_text_length=text_limit(config.text_config, text_tokenizer),
    )
    return put_together(config, parts), processor


def put_together(config: RavlmConfig, parts: dict[str, PreTrainedModel]) -> RavlmForConditionalGeneration:
    """A reader with `parts` in their places and the rest initialised; the parts' own weights are never touched."""
    with torch.device("meta"):  # so that what is loaded already is not made a second time
        model = RavlmForConditionalGeneration(config)
    for name, part in parts.items():
        model.set_submodule(name, part)
    if config.fusion == "cross_attention":  # its hooks were on the language model that stood there before
        attach_cross_attention(model.language_model)
    initialize_new(model, parts.values(), model.language_model.device, config.dtype)
    if getattr(model.language_model, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(model.language_model.generation_config)
    return model.eval()


def add_embeddings(language_model: PreTrainedModel, num_tokens: int) -> None:
    """Grows the vocabulary to `num_tokens`, if it is smaller; every new row is the mean of the old ones."""
    before = language_model.get_input_embeddings().num_embeddings
    if num_tokens <= before:
        return
    language_model.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if tensor is not None and len(tensor) == num_tokens:
                    tensor[before:] = tensor[:before].float().mean(dim=0).to(tensor.dtype)


def prompt_limit(config: PreTrainedConfig, at_most: int) -> int:
    """Tokens of a prompt; an eighth of what the generator can hold is left for the answer.

    >>> from transformers import GPT2Config
    >>> prompt_limit(GPT2Config(), 8192)
    896
    """
    holds = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(at_most, holds - holds // 8) if holds else at_most


def text_limit(config: PreTrainedConfig, tokenizer: Any) -> int:
    """Tokens of a question or passage that the text encoder can hold (77 of CLIP), at most 256."""
    holds = getattr(config, "max_position_embeddings", None) or 256
    if "roberta" in config.model_type or config.model_type in ("camembert", "mpnet", "longformer"):
        holds -= config.pad_token_id + 1  # their positions count from there
    return min(256, holds, tokenizer.model_max_length)


def _part_config(part: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of a part, without where it came from."""
    config = copy.deepcopy(part.config)
    config._name_or_path = ""
    quantization = getattr(config, "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    method = getattr(quantization, "quant_method", method)
    if str(getattr(method, "value", method)) == "gguf":  # unpacked when it was loaded
        del config.quantization_config
    return config


def _load_image_processor(source: Backbone, access: dict[str, bool]) -> Any:
    folder = _folder_of(source, "image_processor")
    try:
        return AutoImageProcessor.from_pretrained(folder, **access)
    except ImportError:  # some (DINOv3) need torchvision, and do what this one does without it
        return ViTImageProcessorPil.from_pretrained(folder)


def _folder_of(source: Backbone, argument: str) -> Any:
    """Where a backbone came from, to load what belongs to it; `argument` is what a user gives where there is none."""
    if not isinstance(source, nn.Module):
        return source
    if not source.name_or_path:
        raise InvalidInputError(
            f"a {type(source).__name__} object that came from no folder does not tell what prepares its inputs; give "
            f"{argument}="
        )
    return os.fspath(source.name_or_path)
