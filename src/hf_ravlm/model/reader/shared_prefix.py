"""Reading many prompts that begin alike: what they share is read once, what is padding is hardly read at all.

The prompts of one question that differ in their passage begin with the same image (and question, where the processor
puts it first). That prefix is read once per question, its cache is repeated, and the rest is read on top, rows of
similar length together, so that padding stays below `MAX_PADDING` of the tokens that the language model sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .placing import positions_from


MAX_PADDING = 0.15  # of the tokens that a group of rows sends to the language model


class BranchCache(DynamicCache):
    """The cache of `K` branches per row: beam search that moves row `i` moves its branches from `i * K` on."""

    def __init__(self, config, num_passages: int):
        super().__init__(config=config)
        self.num_passages = num_passages

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        branches = torch.arange(self.num_passages, device=beam_idx.device)
        super().reorder_cache((beam_idx[:, None] * self.num_passages + branches).flatten())


def shared_prefix_length(
    input_ids: torch.LongTensor, attention_mask: torch.Tensor, token_passages: torch.Tensor, num_passages: int
) -> int:
    """Leading columns in which all `K` prompts of every query are alike and that belong to no passage.

    The tensors are `(B * K, L)`, passage by passage; at most `L - 1`, as a prompt keeps one token of its own.

    >>> ids = torch.tensor([[1, 5, 7, 9], [1, 5, 8, 9]])
    >>> passages = torch.tensor([[-1, -1, 0, -1], [-1, -1, 0, -1]])
    >>> shared_prefix_length(ids, torch.ones_like(ids), passages, num_passages=2)
    2
    """
    rows = torch.stack([input_ids, attention_mask.to(input_ids.dtype), token_passages]).unflatten(
        1, (-1, num_passages)
    )
    alike = (rows == rows[:, :, :1]).all(dim=2).all(dim=0)  # (B, L)
    free = (token_passages < 0).unflatten(0, (-1, num_passages)).all(dim=1)
    return min(int((alike & free).all(dim=0).long().cumprod(dim=0).sum()), input_ids.shape[1] - 1)


def length_groups(lengths: Sequence[int], max_padding: float = MAX_PADDING) -> list[list[int]]:
    """Rows in groups of similar length: padding to the longest is at most `max_padding` of what a group holds.

    >>> length_groups([10, 3, 9, 3])
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    kept = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups:
            longest = lengths[groups[-1][0]]
            if 1 - (kept + lengths[row]) / max(longest * (len(groups[-1]) + 1), 1) <= max_padding:
                groups[-1].append(row)
                kept += lengths[row]
                continue
        groups.append([row])
        kept = lengths[row]
    return groups


def read_rows(
    language_model: PreTrainedModel,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    prefix: int,
    num_passages: int,
    logits_to_keep: int,
    cache: Cache,
) -> torch.Tensor:
    """Reads prompts on top of their shared prefix, in groups of similar length.

    Args:
        inputs_embeds (`(N, L, H)`), attention_mask (`(N, L)`): `N = B * K` rows; behind the prefix, padding stands
            on the left of each row.
        prefix (`int`): columns that the `K` rows of a query share; 0 for none.
        logits_to_keep (`int`): last columns to give logits for; at most `L - prefix`.
        cache: empty; holds the keys and values of all rows afterwards, if its layers are plain ones.

    Returns:
        Logits `(N, logits_to_keep, V)`; what stands for padding is meaningless.
    """
    positions = positions_from(attention_mask)

    def read_part(rows: Any, columns: slice, mask: torch.Tensor, keep: int, cache: Cache) -> torch.Tensor:
        return language_model(
            inputs_embeds=inputs_embeds[rows, columns],
            attention_mask=mask,
            position_ids=positions[rows, columns],
            logits_to_keep=keep,
            past_key_values=cache,
            use_cache=True,
        ).logits

    if prefix:
        first = slice(None, None, num_passages)  # row of every query
        read_part(first, slice(prefix), attention_mask[first, :prefix], 1, cache)
        cache.batch_repeat_interleave(num_passages)
    behind = attention_mask[:, prefix:]
    lengths = behind.sum(dim=1).tolist()
    groups = [list(range(len(behind)))]
    if has_plain_layers(cache) and not bool((behind[:, 1:] < behind[:, :-1]).any()):  # all padding is on the left
        groups = length_groups(lengths)
    if len(groups) == 1:
        return read_part(slice(None), slice(prefix, None), attention_mask, logits_to_keep, cache)
    logits, caches = [], []
    for group in groups:
        rows = torch.tensor(group, device=inputs_embeds.device)
        width = max(lengths[group[0]], 1)
        columns = torch.cat([attention_mask[rows, :prefix], attention_mask[rows, -width:]], dim=1)
        keep = min(logits_to_keep, width)
        caches.append(_select_rows(cache, rows))
        read = read_part(rows, slice(-width, None), columns, keep, caches[-1])
        logits.append(F.pad(read, (0, 0, logits_to_keep - keep, 0)))
    order = torch.tensor([row for group in groups for row in group], device=inputs_embeds.device).argsort()
    _join_rows(cache, caches, order, prefix, behind.shape[1])
    return torch.cat(logits)[order]


def has_plain_layers(cache: Cache | None) -> bool:
    """Whether every layer of the cache keeps all keys and values, as they come: no window, no fixed size."""
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _select_rows(cache: Cache, rows: torch.Tensor) -> DynamicCache:
    """A new cache with some rows of `cache`, which may be empty."""
    selected = DynamicCache()
    for place, layer in enumerate(cache.layers):
        if layer.is_initialized and layer.get_seq_length():
            selected.update(layer.keys[rows], layer.values[rows], place)
    return selected


def _join_rows(cache: Cache, groups: list[DynamicCache], order: torch.Tensor, prefix: int, length: int) -> None:
    """Puts the groups' keys and values into `cache`, as wide as the widest: padding between prefix and branch."""

    def widen(states: torch.Tensor) -> torch.Tensor:
        branch = states[:, :, prefix:]
        gap = (0, 0, length - branch.shape[2], 0)
        return torch.cat([states[:, :, :prefix], F.pad(branch, gap)], dim=2)

    for place in range(len(groups[0].layers)):
        layers = [group.layers[place] for group in groups]
        keys = torch.cat([widen(layer.keys) for layer in layers])[order]
        values = torch.cat([widen(layer.values) for layer in layers])[order]
        if place < len(cache.layers) and cache.layers[place].is_initialized:
            cache.layers[place].keys, cache.layers[place].values = keys, values
        else:
            cache.update(keys, values, place)
