"""A pretrained dual encoder kept whole inside `RavlmModel`: CLIP, SigLIP, ALIGN and the like, as they were trained.

Its own towers, pooling, projections and scale give the features, which are those of its `get_image_features` and
`get_text_features`, normalised. Its halves serve as towers for fusions that read patches and token states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from ...errors import InvalidInputError


HALVES = {"vision_tower": ("vision_model", "image_model"), "text_encoder": ("text_model",)}
# Trained on texts that are padded to their full length, without a mask.
FULLY_PADDED = {"siglip": 64}
_LOWER_CASE = ("siglip",)
_NO_SPACE = {
    "siglip2": "of flexible resolution (NaFlex), which takes patches with their shapes and no images; choose a SigLIP "
    "2 of fixed resolution (siglip2-base-patch16-224, ...), which loads as SigLIP",
    "blip-2": "whose texts are those of a language model, not in one space with its images",
    "ravlm": "whose towers are parts already; give vision= and text=, or load its folder with another fusion= "
    "(AutoModelForImageTextToText.from_pretrained), which keeps its encoder as it is",
    "aimv2": "whose texts are read otherwise in a batch than alone; it works beside a reader (`load_encoder`)",
}


def check_whole_encoder(config: PreTrainedConfig) -> None:
    """Refuses what is no dual encoder of images and texts.

    Raises:
        `InvalidInputError`: with what it is.
    """
    model = MODEL_MAPPING.get(type(config), None)
    model = model[0] if isinstance(model, tuple) else model
    if config.model_type in _NO_SPACE:
        raise InvalidInputError(f"the encoder is a {config.model_type!r} model {_NO_SPACE[config.model_type]}")
    if model is None or not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise InvalidInputError(
            f"the encoder is a {config.model_type!r} model, which has no features of images and texts in one space; "
            "expected a dual encoder (CLIP, SigLIP, MetaCLIP 2, ALIGN, ...), or give vision= and text="
        )


def vision_half(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a dual encoder's image tower."""
    return getattr(config, "vision_config", None) or config.image_config


def width_of(config: PreTrainedConfig) -> int:
    """`D` of a dual encoder's features.

    >>> from transformers import CLIPConfig
    >>> width_of(CLIPConfig(projection_dim=16))
    16
    """
    own = getattr(config, "projection_dim", None)
    return own or getattr(config.text_config, "projection_size", None) or vision_half(config).hidden_size


def half_of(encoder: PreTrainedModel, name: str) -> nn.Module:
    """The image tower (`"vision_tower"`) or text tower (`"text_encoder"`) inside a dual encoder.

    Raises:
        `AttributeError`: if it has none that can be run alone.
    """
    for half in HALVES[name]:
        if hasattr(encoder, half):
            return getattr(encoder, half)
    raise AttributeError(f"a {type(encoder).__name__} has no {' or '.join(HALVES[name])}")


def pooled(outputs: Any) -> torch.Tensor:
    """The feature vectors `(B, D)` in what `get_image_features` or `get_text_features` returned."""
    vectors = getattr(outputs, "pooler_output", outputs)
    return vectors[:, 0] if vectors.dim() == 3 else vectors  # FLAVA: that of the first token


def scale_of(encoder: PreTrainedModel) -> torch.Tensor | None:
    """`1 / temperature` of a dual encoder, with gradients; `None` if it has none."""
    scale, temperature = getattr(encoder, "logit_scale", None), getattr(encoder, "temperature", None)
    if isinstance(scale, nn.Parameter) and scale.numel() == 1:
        return scale.float().exp().reshape(())
    return 1 / temperature.float().reshape(()) if isinstance(temperature, nn.Parameter) else None


def text_settings(config: PreTrainedConfig, tokenizer: Any) -> dict[str, Any]:
    """How `RavlmProcessor` prepares the texts of a dual encoder: its `max_text_length`, padding and case."""
    kind = config.model_type
    if kind not in FULLY_PADDED:
        return {}
    length = min(FULLY_PADDED[kind], config.text_config.max_position_embeddings)
    # The Gemma tokenizer of SigLIP 2 leaves it to the caller to lower the case.
    cased = kind in _LOWER_CASE and type(tokenizer).__name__.startswith("Gemma")
    return {"max_text_length": length, "pad_text": True, "lower_case_text": cased}
