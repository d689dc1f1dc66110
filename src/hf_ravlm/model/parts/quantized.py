"""Quantized generators: the reader around one is saved and loaded as quantized, and its other parts stay as they are.

Projections, fusion and towers are small beside a generator, and what they compute decides what is found.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn


OUR_PARTS = ("model", "image_projector", "evidence_image_projector", "fusion", "joint_encoder", "match_head")
HEADS = ("lm_head", "language_model.lm_head")
_SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert")  # the lists of bitsandbytes, and of torchao and others


def sparing_our_parts(config: Any, also: Collection[str] = HEADS) -> Any:
    """A quantization config for a whole reader out of one for any model: our parts are not quantized.

    Args:
        config: `BitsAndBytesConfig`, `TorchAoConfig` or another, or its dictionary; it is not changed.
        also: further modules that are left, where the config itself names none.
    """
    config = copy.deepcopy(config)
    settings = config if isinstance(config, dict) else vars(config)
    for name in _SKIPPED:
        if name in settings:
            settings[name] = list(dict.fromkeys([*(settings[name] or also), *OUR_PARTS]))
    return config


def carry_quantizer(model: nn.Module, language_model: Any) -> None:
    """Lets a reader say of itself what its generator is: trainers ask it, and saving needs the quantizer.

    A GGUF file is unpacked into plain weights where nothing computes on its blocks: nothing is quantized then.
    """
    quantizer = getattr(language_model, "hf_quantizer", None)
    if quantizer is None or getattr(quantizer, "packed_modules", None) == {}:
        return
    left = [f"language_model.{name}" for name in getattr(quantizer, "modules_to_not_convert", None) or ()]
    config = copy.deepcopy(quantizer.quantization_config)
    for name in _SKIPPED:
        if hasattr(config, name):
            setattr(config, name, left)
    model.config.quantization_config = sparing_our_parts(config)
    model.hf_quantizer = quantizer
    for name in ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(language_model, name):
            setattr(model, name, getattr(language_model, name))
