"""One pass of the language model over prompts: they are filled, hidden passages are masked, and logits come back."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ...errors import InvalidInputError
from ..outputs import RavlmCausalLMOutputWithPast
from .inputs import EncodedInputs, get_memory
from .placing import (
    PromptTensors,
    back_in_columns,
    fill_memory,
    fill_placeholders,
    find_places,
    flush_right,
    hide_passages,
    is_flush_right,
    kept_columns,
    passage_columns,
    positions_from,
)
from .shared_prefix import MAX_PADDING, has_plain_layers, read_rows, shared_prefix_length


def read(
    model: Any,
    inputs: EncodedInputs,
    prompt: PromptTensors,
    num_passages: int = 1,
    inputs_embeds: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    logits_to_keep: int | torch.Tensor = 0,
    **kwargs,
) -> RavlmCausalLMOutputWithPast:
    """The language model over prompts that see their passages.

    Args:
        inputs ([`EncodedInputs`]): of the `N` prompts, as from `encode_inputs`.
        prompt ([`PromptTensors`]): `N` rows.
        inputs_embeds (*optional*): of `N` prompts, in the place of their ids; placeholders are filled.
        num_passages (`int`): rows in turn that are prompts of one query; what they share is read once, where exact.
    """
    inputs_embeds, image_states, memory = embed_prompt(model, inputs, prompt, inputs_embeds)
    mask = hide_passages(prompt.attention_mask, prompt.token_passages, inputs.evidence_mask)
    seen = {"image_hidden_states": image_states, "evidence_hidden_states": memory}
    prefix = grouped_prefix(model, prompt, mask, num_passages, past_key_values, logits_to_keep, kwargs)
    if prefix is not None:
        cache = DynamicCache(config=model.config.get_text_config()) if past_key_values is None else past_key_values
        mask = torch.ones_like(prompt.input_ids) if mask is None else mask
        logits = read_rows(model.language_model, inputs_embeds, mask, prefix, num_passages, logits_to_keep, cache)
        kept = None if kwargs.get("use_cache") is False else cache
        return RavlmCausalLMOutputWithPast(logits=logits, past_key_values=kept, **seen)
    position_ids = positions_of(inputs, prompt, mask, inputs_embeds.shape[1]) if position_ids is None else position_ids
    order, keep = None, logits_to_keep
    if model.counts_columns and mask is not None:
        order, mask = column_order(mask, inputs, past_key_values)
    if order is not None:
        logits_to_keep = 0
        inputs_embeds = inputs_embeds.gather(1, order.unsqueeze(-1).expand_as(inputs_embeds))
        position_ids = position_ids.expand_as(order).gather(1, order)
    outputs = model.language_model(
        inputs_embeds=inputs_embeds,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        logits_to_keep=logits_to_keep,
        **evidence_memory(model, inputs),
        **kwargs,
    )
    logits, states, attentions = outputs.logits, outputs.hidden_states, outputs.attentions
    if order is not None:  # back to the columns that the labels stand in
        logits = back_in_columns(logits, order, (1,))
        logits = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
        states = states and tuple(back_in_columns(layer, order, (1,)) for layer in states)
        attentions = attentions and tuple(back_in_columns(layer, order, (2, 3)) for layer in attentions)
    cache = outputs.past_key_values
    return RavlmCausalLMOutputWithPast(
        logits=logits, past_key_values=cache, hidden_states=states, attentions=attentions, **seen
    )


def column_order(
    mask: torch.Tensor, inputs: EncodedInputs, cache: Cache | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The order of columns in which a language model that measures distance in them reads a prompt, and its mask.

    `None` where the order stays. All that is kept stands on the right, also in the cache of such a prompt, which goes
    on with the caller's mask brought into the same order.

    Raises:
        `ValueError`: for a 4D mask in which a passage is hidden: its columns cannot be moved.
    """
    if not torch.is_tensor(mask) or mask.dim() != 2:
        if inputs.evidence_mask is not None and not bool(inputs.evidence_mask.all()):
            raise ValueError(
                "evidence_mask leaves passages out of a prompt with a 4D attention_mask, and this language model "
                "measures distance in columns, which would count them; give an attention_mask (B, L)"
            )
        return None, mask
    seen = 0 if cache is None or torch.compiler.is_compiling() else int(cache.get_seq_length())
    if seen:
        return None, torch.cat([mask[:, :seen].sort(dim=1).values, mask[:, seen:]], dim=1)
    if (cache is not None and torch.compiler.is_compiling()) or is_flush_right(mask):
        return None, mask
    order = flush_right(mask)
    return order, mask.gather(1, order)


def positions_of(
    inputs: EncodedInputs, prompt: PromptTensors, mask: torch.Tensor | None, length: int
) -> torch.Tensor | None:
    """Position ids of the last `length` columns, which count what is kept; `None` for those of the language model."""
    if not torch.is_tensor(mask):
        return None
    if mask.dim() == 2:
        return positions_from(mask)[:, -length:]
    if inputs.evidence_mask is None or prompt.token_passages is None:
        return None
    return positions_from(kept_columns(prompt.token_passages, inputs.evidence_mask, length))


def placeholder_ids(model: Any, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Ids `(N, L)` of a prompt that came as embeddings: those of the placeholders, -1 for all that is something else.

    Raises:
        `ValueError`: if both placeholders look alike, as in a reader that has never been trained.
    """
    marks = torch.tensor([model.config.image_token_id, model.config.evidence_token_id], device=inputs_embeds.device)
    found = [(inputs_embeds == row).all(dim=-1) for row in model.get_input_embeddings()(marks)]
    if not torch.compiler.is_compiling() and bool((found[0] & found[1]).any()):
        raise ValueError(
            "inputs_embeds hold placeholders, and <image> and <evidence> have the same embedding, so that they cannot "
            "be told apart; give input_ids"
        )
    ids = torch.full_like(found[0], -1, dtype=torch.long)
    for mark, places in zip(marks.tolist(), found, strict=True):
        ids = ids.masked_fill(places, mark)
    return ids


def read_states(
    model: Any, inputs: EncodedInputs, prompt: PromptTensors, position_ids: torch.Tensor | None = None, **kwargs
) -> BaseModelOutputWithPast:
    """The reader without its head: `last_hidden_state` `(N, L, H)`, which the head turns into logits."""
    embeds = embed_prompt(model, inputs, prompt)[0]
    mask = hide_passages(prompt.attention_mask, prompt.token_passages, inputs.evidence_mask)
    position_ids = positions_of(inputs, prompt, mask, embeds.shape[1]) if position_ids is None else position_ids
    order = None
    if model.counts_columns and mask is not None:
        order, mask = column_order(mask, inputs, kwargs.get("past_key_values"))
    if order is not None:
        embeds = embeds.gather(1, order.unsqueeze(-1).expand_as(embeds))
        position_ids = position_ids.expand_as(order).gather(1, order)
    given = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": position_ids}
    outputs = model.get_decoder()(**given, **evidence_memory(model, inputs), **kwargs)
    if order is not None:
        outputs.last_hidden_state = back_in_columns(outputs.last_hidden_state, order, (1,))
    return outputs


def _embeddings(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    table = model.get_input_embeddings()
    try:
        return table(input_ids)
    except IndexError as error:
        raise InvalidInputError(
            f"the prompt holds the token {int(input_ids.max())}, and the language model knows {len(table.weight)}: "
            "the processor is that of another model, or its tokenizer was changed; load both from one folder, or "
            "`resize_token_embeddings(len(tokenizer))`"
        ) from error


def embed_prompt(
    model: Any, inputs: EncodedInputs, prompt: PromptTensors, embeds: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Embeddings `(N, L, H)` of prompts with their placeholders filled; also image tokens and memory tokens."""
    input_ids, token_passages, config = prompt.input_ids, prompt.token_passages, model.config
    image_states = memory = None
    if embeds is None:
        embeds = _embeddings(model, input_ids)
    elif all(part is None for part in (inputs.image_patches, inputs.evidence_patches, inputs.evidence_states)):
        return embeds, None, None
    else:
        input_ids = placeholder_ids(model, embeds)
    image_places = find_places(input_ids, config.image_token_id, token_passages)
    if inputs.evidence_patches is not None and token_passages is not None:
        of_passages = image_places & (passage_columns(token_passages, input_ids.shape[1]) >= 0)
        image_places = image_places & ~of_passages
        embeds = fill_memory(embeds, of_passages, token_passages, model.image_projector(inputs.evidence_patches), None)
    if inputs.image_patches is not None:
        image_states = model.image_projector(inputs.image_patches)
        with_image = image_places.any(dim=1)
        mixed = not torch.compiler.is_compiling() and len(image_states) == len(with_image) and bool(with_image.any())
        shown = image_states[with_image] if mixed else image_states  # some rows may have none
        embeds = fill_placeholders(embeds, image_places, shown, "image")
    if inputs.evidence_states is not None and model.fusion.num_memory_tokens != 0:
        memory, read = get_memory(model, inputs)
        places = find_places(input_ids, config.evidence_token_id, token_passages)
        kept = None if model.fusion.num_memory_tokens else read
        embeds = fill_memory(embeds, places, token_passages, memory, kept)
    return embeds, image_states, memory


def evidence_memory(model: Any, inputs: EncodedInputs) -> dict[str, Any]:
    """What layers of the fusion inside the language model read, as an argument of the language model."""
    if inputs.evidence_keys_values is None:
        return {}
    return {"evidence_memory": model.fusion.reading(inputs.evidence_keys_values, inputs.evidence_token_mask)}


def grouped_prefix(
    model: Any,
    prompt: PromptTensors,
    mask: torch.Tensor | None,
    num_passages: int,
    cache: Cache | None,
    keep: int | torch.Tensor,
    kwargs: dict[str, Any],
) -> int | None:
    """Leading columns that the prompts of a query share if a batch is better read by `read_rows`, else `None`."""
    unfit = (
        torch.compiler.is_compiling()
        or not isinstance(keep, int)
        or keep == 0
        or (model.fusion.reads_evidence and model.fusion.num_memory_tokens == 0)  # the prefix sees passages, too
        or kwargs.get("output_hidden_states")
        or kwargs.get("output_attentions")
        or (cache is not None and (not isinstance(cache, DynamicCache) or cache.get_seq_length() > 0))
    )
    if unfit:
        return None
    if num_passages == 1:  # `generate` begins with prompts of very different lengths
        padded = mask is not None and mask.dim() == 2 and bool(mask.float().mean() < 1 - MAX_PADDING)
        return 0 if padded and keep == 1 and not torch.is_grad_enabled() and has_plain_layers(cache) else None
    parts = model.language_model.modules()
    recomputes = model.training and any(getattr(part, "gradient_checkpointing", False) for part in parts)
    if prompt.input_ids is None or prompt.token_passages is None or model.counts_columns or recomputes:
        return None
    mask = torch.ones_like(prompt.input_ids) if mask is None else mask
    prefix = shared_prefix_length(prompt.input_ids, mask, prompt.token_passages, num_passages)
    return prefix if 0 < prefix <= prompt.input_ids.shape[1] - keep else None
