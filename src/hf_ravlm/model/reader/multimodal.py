"""An image-text-to-text model as the reader: its inputs go through to it, and its own `generate` writes the answer.

It brings its own vision tower, so our image tokens and memory tokens have no place in it; passages and their pictures
are part of the prompt, which its own processor writes. It does not know that there is a retriever.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..backbones import AUTO_READERS, reader_kind, reads_images
from ..outputs import RavlmCausalLMOutputWithPast
from .placing import ENCODED_INPUTS, STATES


NOT_OF_THE_READER = {"evidence_scores", "evidence_mask", "token_passages", *ENCODED_INPUTS, *STATES} - {"pixel_values"}


def build_reader(config: PreTrainedConfig) -> PreTrainedModel:
    """The generator of a `RavlmConfig`, with weights yet to be loaded.

    Raises:
        `ValueError`: if the generator cannot take the evidence in the way that `config.fusion` gives it.
    """
    asked = (config.fusion, config.marginalization)
    if reads_images(config.generator_config) and asked != ("in_context", "none"):
        raise ValueError(
            f"fusion={config.fusion!r} and marginalization={config.marginalization!r} with a "
            f"{config.generator_config.model_type!r} generator: an image-text-to-text model reads its passages in one "
            "prompt; choose fusion='in_context' and marginalization='none', or a causal language model"
        )
    return AUTO_READERS[reader_kind(config.generator_config)].from_config(config.generator_config)


def read_multimodal(reader: nn.Module, **inputs: Any) -> RavlmCausalLMOutputWithPast:
    """The forward pass of an image-text-to-text reader: everything that is given goes to it, evidence scores apart."""
    given = {name: value for name, value in inputs.items() if value is not None and name not in NOT_OF_THE_READER}
    outputs = reader(**{**given, "return_dict": True})
    return RavlmCausalLMOutputWithPast(
        loss=outputs.get("loss"),
        logits=outputs.logits,
        past_key_values=outputs.get("past_key_values"),
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
        image_hidden_states=outputs.get("image_hidden_states"),
    )


def generate_multimodal(reader: PreTrainedModel, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
    """The reader's own `generate`; what the call does not say, `generation_config` of our model says."""
    reader.generation_config = generation_config
    return reader.generate(*args, **{name: value for name, value in kwargs.items() if name not in NOT_OF_THE_READER})
