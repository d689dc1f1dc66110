"""An image-text-to-text model as the reader: its inputs go through to it, and its own `generate` writes the answer.

It brings its own vision tower, so our image tokens and memory tokens have no place in it; passages and their images
are part of the prompt, which its own processor writes.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..outputs import RavlmCausalLMOutputWithPast
from .inputs import NAMES


NOT_OF_THE_READER = {"token_passages", *NAMES} - {"pixel_values"}


def read_multimodal(reader: nn.Module, **inputs: Any) -> RavlmCausalLMOutputWithPast:
    """The forward pass of an image-text-to-text reader: all that is given goes to it, but for evidence tensors."""
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
