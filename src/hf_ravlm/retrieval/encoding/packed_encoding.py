"""BERT-like text encoders run without padding: the tokens of all texts as one long row.

Embeddings, projections and norms look at one token at a time and run once over all T tokens. Attention runs for all
texts of one length at once, without a mask; in half precision for all texts whose lengths round up to the same
multiple of 16, for the kernels are slow at other lengths. The result is the padded one up to rounding.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


# The models whose layers are BERT's; the value says where their positions begin.
_MODEL_TYPES = {"bert": "zero", "roberta": "padding", "xlm-roberta": "padding", "camembert": "padding"}
_HALF_PRECISION_BLOCK = 16


def is_packable(module: Any) -> bool:
    """Whether a module is an encoder that `PackedTextEncoder` can run: BERT or RoBERTa, not a decoder."""
    config = getattr(module, "config", None)
    if getattr(config, "model_type", None) not in _MODEL_TYPES or not hasattr(module, "embeddings"):
        return False
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return False
    if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
        return False
    return hasattr(getattr(module, "encoder", None), "layer")


def with_packed_text_encoders(model: nn.Module) -> nn.Module:
    """Returns a twin of a model that shares its weights, with every BERT-like encoder packed.

    A model without such an encoder is returned as it is.
    """
    if is_packable(model):
        return PackedTextEncoder(model)
    replaced = {}
    for name, child in model.named_children():
        twin = with_packed_text_encoders(child)
        if twin is not child:
            replaced[name] = twin
    if not replaced:
        return model
    twin = copy.copy(model)
    twin._modules = {**model._modules, **replaced}
    return twin


class PackedTextEncoder(nn.Module):
    """Stands in for a BERT-like encoder in inference: padded tokens in, padded states out, packed in between.

    Inputs beyond ids and mask go to the encoder itself, padded.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Returns `last_hidden_state` (B, L, C), zeros where the mask (B, L) leaves out, and `pooler_output`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        asked = {name for name, value in kwargs.items() if value is not None and value is not False}
        if asked - {"return_dict"} or attention_mask.dim() != 2:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        keep = attention_mask.bool()
        lengths = keep.sum(dim=1)  # (B,)
        order = lengths.argsort(descending=True, stable=True)
        keep = keep[order]
        positions = self._positions(input_ids)[order]
        states = self._run(input_ids[order][keep], positions[keep], lengths[order].tolist())  # (T, C)
        padded = states.new_zeros(*keep.shape, states.shape[-1])
        padded[keep] = states
        restored = torch.empty_like(padded)
        restored[order] = padded
        pooler = getattr(self.encoder, "pooler", None)
        return BaseModelOutputWithPooling(
            last_hidden_state=restored, pooler_output=None if pooler is None else pooler(restored)
        )

    def encode_texts(self, texts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, list[int]]:
        """Returns the states (T, C) of all tokens of tokenized texts, and the lengths that part them.

        Args:
            texts: Token ids; texts of equal length stand together, as after sorting by length.
            device: Where the encoder is.
        """
        lengths = [len(text) for text in texts]
        ids = torch.tensor([token for text in texts for token in text], device=device)  # (T,)
        first = self._first_position()
        positions = torch.cat([torch.arange(first, first + length) for length in lengths]).to(device)
        return self._run(ids, positions, lengths), lengths

    def _first_position(self) -> int:
        return 0 if _MODEL_TYPES[self.config.model_type] == "zero" else int(self.config.pad_token_id) + 1

    def _positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Positions (B, L) as the encoder itself counts them: columns, or tokens that are not padding."""
        if _MODEL_TYPES[self.config.model_type] == "zero":
            return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        real = input_ids.ne(self.config.pad_token_id).long()
        return real.cumsum(dim=1) * real + self.config.pad_token_id

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        states = self.encoder.embeddings(input_ids=ids[None], position_ids=positions[None])[0]  # (T, C)
        groups = _attention_groups(lengths, states)
        for layer in self.encoder.encoder.layer:
            states = _layer(layer, states, groups)
        return states


def equal_runs(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Groups texts of equal length that stand together, as triples of first token, number of texts, and length.

    >>> equal_runs([5, 5, 3, 0])
    [(0, 2, 5), (10, 1, 3)]
    """
    groups: list[tuple[int, int, int]] = []
    start = 0
    for length in lengths:
        if length == 0:
            continue
        if groups and groups[-1][2] == length:
            first, count, _ = groups[-1]
            groups[-1] = (first, count + 1, length)
        else:
            groups.append((start, 1, length))
        start += length
    return groups


class _AttentionGroup(NamedTuple):
    """Texts that attend in one call; the last three are `None` where no text is shorter than the others."""

    tokens: slice  # their rows among all T tokens
    num_texts: int
    length: int
    gather: torch.Tensor | None  # (num_texts * length,): the token in each place
    bias: torch.Tensor | None  # (num_texts, 1, 1, length): minus infinity where a text has ended
    kept: torch.Tensor | None  # the places that hold a token


def _attention_groups(lengths: list[int], states: torch.Tensor) -> list[_AttentionGroup]:
    block = 1 if states.dtype == torch.float32 else _HALF_PRECISION_BLOCK
    lengths = [length for length in lengths if length]
    groups, text, start = [], 0, 0
    for _, count, length in equal_runs([-(-length // block) * block for length in lengths]):
        own = torch.tensor(lengths[text : text + count])
        tokens = slice(start, start + int(own.sum()))
        text, start = text + count, tokens.stop
        if (own == length).all():
            groups.append(_AttentionGroup(tokens, count, length, None, None, None))
            continue
        places = torch.arange(length)
        ended = places >= own[:, None]  # (count, length)
        # A place after the end repeats the last token: any number will do there, as long as it is finite.
        gather = (own.cumsum(0) - own)[:, None] + torch.minimum(places, own[:, None] - 1)
        bias = torch.zeros(ended.shape, dtype=states.dtype).masked_fill(ended, -torch.inf)[:, None, None]
        kept = (~ended).flatten().nonzero()[:, 0]
        device = states.device
        groups.append(
            _AttentionGroup(tokens, count, length, gather.flatten().to(device), bias.to(device), kept.to(device))
        )
    return groups


def _layer(layer: Any, states: torch.Tensor, groups: list[_AttentionGroup]) -> torch.Tensor:
    attention = layer.attention.self
    # Modules are called, not their weights used: they may be quantized, or wear an adapter.
    projected = [project(states) for project in (attention.query, attention.key, attention.value)]  # (T, C) each
    context = torch.empty_like(projected[0])
    for group in groups:
        query, key, value = (_heads(part, group, attention.num_attention_heads) for part in projected)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=group.bias)
        rows = attended.transpose(1, 2).reshape(group.num_texts * group.length, -1)
        context[group.tokens] = rows if group.kept is None else rows.index_select(0, group.kept)
    del projected
    # In place where a result is new: with large batches, fresh memory costs more than the arithmetic.
    output = layer.attention.output
    states = output.LayerNorm(output.dense(context).add_(states))
    inner = layer.intermediate.dense(states)
    inner = torch.ops.aten.gelu_(inner) if _is_gelu(layer) else layer.intermediate.intermediate_act_fn(inner)
    return layer.output.LayerNorm(layer.output.dense(inner).add_(states))


def _heads(part: torch.Tensor, group: _AttentionGroup, num_heads: int) -> torch.Tensor:
    """The tokens (T, C) of a group as (count, heads, length, head_dim)."""
    rows = part[group.tokens]
    rows = rows if group.gather is None else rows.index_select(0, group.gather)
    return rows.view(group.num_texts, group.length, num_heads, -1).transpose(1, 2)


def _is_gelu(layer: Any) -> bool:
    return getattr(layer.intermediate.intermediate_act_fn, "act", None) is F.gelu
