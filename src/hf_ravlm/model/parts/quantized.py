"""Quantized generators: the reader around one is saved and loaded as quantized, and its other parts stay as they are.

Projections, fusion and towers are small beside a generator, and what they compute decides what is found.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
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


def four_bit_layers(language_model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """The layers that bitsandbytes holds in four bits, with what it notes of their weights.

    An adapter around such a layer shows the same weight as its own, and is none: it may have dropout.
    """
    for module in language_model.modules():
        if (state := getattr(module._parameters.get("weight"), "quant_state", None)) is not None:
            yield module, state


def unpack_for_training(language_model: nn.Module) -> None:
    """Undoes what bitsandbytes does to four-bit weights at their first answer on processors with bfloat16.

    Packed for these, a layer passes no gradient on to those before it. Its state dict is that of the unpacked layer,
    and making one unpacks it, with scales that packing had rounded to bfloat16.
    """
    for module, state in four_bit_layers(language_model):
        if getattr(state, "packing_format_for_cpu", False):
            module.state_dict()


def keep_unpacked(language_model: nn.Module) -> None:
    """Lets four-bit weights be as they are though the model answers: only layers that do not train are packed."""
    for module, _ in four_bit_layers(language_model):
        module.train()


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
