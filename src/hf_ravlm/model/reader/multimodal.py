"""A generator that sees images by itself: it is given what its own processor wrote, and nothing of ours.

A passage that `evidence_mask` hides is cut out of the prompt, so that no architecture can see it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..outputs import RavlmCausalLMOutputWithPast
from .inputs import NAMES
from .placing import back_in_columns, flush_right, passage_columns
from .proposals import generation_setting


NOT_OF_IMAGE_TEXT = {"token_passages", *NAMES} - {"pixel_values"}


_PLACEHOLDER = re.compile(r"(image|video|audio)_token_(id|index)")


@dataclass
class CutInputs:
    """Inputs of the generator without hidden passages; `order (B, L)` is that of their columns, if it has changed."""

    given: dict[str, Any]
    order: torch.Tensor | None = None

    def back(self, outputs: dict[str, Any], keep: int | torch.Tensor) -> dict[str, Any]:
        """Outputs in the columns of the caller's prompt."""
        if self.order is None:
            return outputs
        logits = back_in_columns(outputs["logits"], self.order, (1,))
        outputs = {**outputs, "logits": logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]}
        for name, dims in (("hidden_states", (1,)), ("attentions", (2, 3))):
            if outputs.get(name):
                outputs[name] = tuple(back_in_columns(layer, self.order, dims) for layer in outputs[name])
        return outputs


def read_multimodal(model: Any, **inputs: Any) -> RavlmCausalLMOutputWithPast:
    """The forward pass of an image-text-to-text model: it gets all that is given, but for evidence tensors."""
    cut = without_hidden(model, inputs)
    keep = cut.given.get("logits_to_keep", 0)
    if cut.order is not None:
        cut.given["logits_to_keep"] = 0
    outputs = model.language_model(**{**cut.given, "return_dict": True})
    names = ("loss", "logits", "past_key_values", "hidden_states", "attentions", "image_hidden_states")
    return RavlmCausalLMOutputWithPast(**cut.back({name: outputs.get(name) for name in names}, keep))


def read_multimodal_states(model: Any, **inputs: Any) -> Any:
    """`read_multimodal` without the head: `last_hidden_state` `(N, L, H)`."""
    cut = without_hidden(model, inputs)
    outputs = model.language_model.base_model(**cut.given)
    if cut.order is not None:
        outputs.last_hidden_state = back_in_columns(outputs.last_hidden_state, cut.order, (1,))
    return outputs


def generate_multimodal(model: Any, input_ids: torch.Tensor | None, **kwargs: Any) -> Any:
    """`generate` of the generator itself, by the reader's settings; sequences begin with the caller's prompts."""
    cut = without_hidden(model, {"input_ids": input_ids, **kwargs})
    model.language_model.generation_config = model.generation_config
    if generation_setting(model, "use_cache", kwargs) is False:  # every step would look for an image of its own
        banned = generation_setting(model, "suppress_tokens", kwargs) or []
        cut.given["suppress_tokens"] = [*banned, *placeholder_ids(model.config.generator_config)]
    outputs = model.language_model.generate(**cut.given)
    if cut.order is not None:
        sequences = getattr(outputs, "sequences", outputs)
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    return outputs


def placeholder_ids(generator_config: PreTrainedConfig) -> list[int]:
    """Ids that stand in a prompt for what is seen or heard.

    >>> from transformers import LlavaConfig
    >>> placeholder_ids(LlavaConfig(image_token_index=7))
    [7]
    """
    return sorted({id for name, id in generator_config.to_dict().items() if _PLACEHOLDER.fullmatch(name) and id})


def without_hidden(model: Any, inputs: dict[str, Any]) -> CutInputs:
    """What of a batch the generator is given, without the tokens of passages that `evidence_mask` hides.

    These become padding on the left: a hidden passage takes no place, and no step of a recurrent layer.

    Raises:
        `ValueError`: if nothing says which tokens a hidden passage has, or it has an image.
    """
    given = {name: value for name, value in inputs.items() if value is not None and name not in NOT_OF_IMAGE_TEXT}
    counts, owners = inputs.get("evidence_mask"), inputs.get("token_passages")
    if counts is None or bool(counts.all()):
        return CutInputs(given)
    if owners is None:
        raise ValueError(
            "evidence_mask leaves passages out, but token_passages is missing, which says where they stand in the "
            "prompt; pass all outputs of RavlmProcessor"
        )
    prompt = given["input_ids"] if "input_ids" in given else given["inputs_embeds"]
    shape = prompt.shape[:2]
    owners = passage_columns(owners, shape[1])
    hidden = (owners >= 0) & ~counts.bool().gather(1, owners.clamp(min=0))  # (B, L)
    if not bool(hidden.any()):
        return CutInputs(given)
    _check_images(inputs, owners, hidden)
    kept = given.get("attention_mask", torch.ones(shape, dtype=torch.long, device=hidden.device)) * ~hidden
    order = flush_right(kept)
    for name, value in given.items():
        if torch.is_tensor(value) and value.shape[:2] == shape:
            index = order.view(*shape, *[1] * (value.dim() - 2)).expand_as(value)
            given[name] = value.gather(1, index)
    given["attention_mask"] = kept.gather(1, order)
    gone = given["attention_mask"] == 0
    if "input_ids" in given:
        settings = model.generation_config
        pad = settings.eos_token_id if settings.pad_token_id is None else settings.pad_token_id
        given["input_ids"] = given["input_ids"].masked_fill(gone, (pad[0] if isinstance(pad, list) else pad) or 0)
    if "labels" in given:
        given["labels"] = given["labels"].masked_fill(gone, -100)
    return CutInputs(given, order)


def _check_images(inputs: dict[str, Any], owners: torch.Tensor, hidden: torch.Tensor) -> None:
    with_image = inputs.get("evidence_image_mask")
    if with_image is not None and bool((hidden & with_image.bool().gather(1, owners.clamp(min=0))).any()):
        raise ValueError(
            "evidence_mask leaves out a passage whose image is among the pixels of the prompt, and cannot be taken "
            "out of them: let RavlmProcessor write the prompt again, with the passages that count"
        )
