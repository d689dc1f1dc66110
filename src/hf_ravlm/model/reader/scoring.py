"""What answers are worth: log-likelihoods of prompts that end in them, in bounded memory.

What the prompts of a question have in common (instructions, its image) is read once and kept in a cache; the rest of
each is read on top of that, many at a time, and logits are made of the answers alone. Padding stands on the right,
behind the answers, so that nothing lies between the common part and the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .likelihoods import target_log_probs
from .shared_prefix import length_groups


TOKENS_PER_PASS = 2048  # with those in the cache; more only where one prompt is longer
LOGITS_PER_PASS = 1 << 25  # numbers: 128 MB in float32
COUNTS_COLUMNS = ("gpt_neo", "mpt")
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # of tokens: which are of an image
SPLIT_TOKENS = {"input_ids", "inputs_embeds", "position_ids", *TOKEN_TYPES}  # more says how tokens and images meet
LOOKS_AHEAD = ("paligemma", "git", "molmo2", "hrm_text", "step3p7", "unlimited_ocr", "deepseek_ocr2")  # in a prompt


@dataclass
class AnsweredPrompt:
    """One prompt and the answer that it ends in.

    Args:
        tokens (`dict`): what there is per token: `input_ids` `(1, L)` or `inputs_embeds` `(1, L, H)`, ...;
            `position_ids` are `(..., 1, L)`.
        answer (`torch.LongTensor` of shape `(T,)`): the ids of the last `T` tokens, `T < L`.
        images (`dict`): what the language model reads beside, once.
        memory (`dict`): what its layers read beside, at every step.
    """

    tokens: dict[str, torch.Tensor]
    answer: torch.Tensor
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """`L`."""
        return next(tensor.shape[1] for name, tensor in self.tokens.items() if name != "position_ids")


def can_continue(language_model: Any) -> bool:
    """Whether prompts may be read in pieces: every layer keeps keys and values, and sees what stands before alone."""
    config = language_model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if language_model._is_stateful or "chunked_attention" in kinds:
        return False
    if {config.model_type, language_model.config.model_type} & {*COUNTS_COLUMNS, *LOOKS_AHEAD}:
        return False
    layers = DynamicCache(config=language_model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def common_length(sequences: Sequence[torch.Tensor], at_most: int) -> int:
    """How many leading numbers of all sequences `(L,)` are alike, at most `at_most`.

    >>> common_length([torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8, 9])], at_most=3)
    2
    """
    length = max(min(at_most, *(len(sequence) for sequence in sequences)), 0)
    rows = torch.stack([sequence[:length] for sequence in sequences])
    return int((rows == rows[:1]).all(dim=0).long().cumprod(dim=0).sum())


@contextmanager
def keeping_activations(model: Any) -> Iterator[None]:
    """Turns activation checkpointing off: without gradients it saves nothing, and in training mode layers that
    compute anew take no cache."""
    parts = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    for part in parts:
        part.gradient_checkpointing = False
    try:
        yield
    finally:
        for part in parts:
            part.gradient_checkpointing = True


@torch.no_grad()
def score_prompts(
    language_model: Any,
    prompts: Sequence[AnsweredPrompt],
    shared: int = 0,
    common: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """`log p(answer | prompt)` of each prompt, `(N,)` in float32.

    Args:
        shared (`int`): leading tokens that all prompts have in common, at most `L - T - 1` of each; they are read
            once, where the language model can go on from a cache (`can_continue`).
        common (`dict`, *optional*): what is read there, with its images, if it is not the leading tokens of the first
            prompt alone; the `images` of the prompts are then those behind.
    """
    with keeping_activations(language_model):
        return _score_prompts(language_model, prompts, shared, common)


def _score_prompts(
    language_model: Any, prompts: Sequence[AnsweredPrompt], shared: int, common: dict[str, torch.Tensor] | None
) -> torch.Tensor:
    cache = None
    if shared:
        cache = DynamicCache(config=language_model.config)
        common = columns_of(prompts[0].tokens, 0, shared) if common is None else common
        mask = torch.ones(1, shared, dtype=torch.long, device=prompts[0].answer.device)
        asked = {"attention_mask": mask, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        language_model(**common, **asked)
    scored = torch.zeros(len(prompts), device=prompts[0].answer.device)
    for group in _groups(prompts, shared, language_model.config.get_text_config().vocab_size):
        own = copy.deepcopy(cache)
        if own is not None:
            own.batch_repeat_interleave(len(group))
        scored[group] = _score_group(language_model, [prompts[place] for place in group], shared, own)
    return scored


def _groups(prompts: Sequence[AnsweredPrompt], shared: int, vocabulary: int) -> list[list[int]]:
    """Prompts that are read in one pass: of similar length, within the budgets; those with things beside alone."""
    alone = [place for place, prompt in enumerate(prompts) if prompt.images or prompt.memory]
    rest = [place for place in range(len(prompts)) if place not in set(alone)]
    groups = [[place] for place in alone]
    for similar in length_groups([prompts[place].length - shared for place in rest]):
        group = [rest[place] for place in similar]
        longest = prompts[group[0]].length
        answer = max(longest - prompts[place].length + len(prompts[place].answer) for place in group)
        rows = max(min(TOKENS_PER_PASS // longest, LOGITS_PER_PASS // (answer * vocabulary + 1)), 1)
        groups += [group[start : start + rows] for start in range(0, len(group), rows)]
    return groups


def _score_group(language_model: Any, group: list[AnsweredPrompt], shared: int, cache: Any) -> torch.Tensor:
    """`score_prompts` of prompts in one batch; `cache` holds their first `shared` tokens."""
    device, rows = group[0].answer.device, len(group)
    width = max(prompt.length for prompt in group) - shared - 1  # the last token predicts nothing that is asked
    targets = torch.full((rows, width), -100, device=device)
    mask = torch.zeros(rows, shared + width, dtype=torch.long, device=device)
    for row, prompt in enumerate(group):
        end = prompt.length - shared - 1
        targets[row, end - len(prompt.answer) : end] = prompt.answer
        mask[row, : shared + end + 1] = 1
    first = int((targets != -100).any(dim=0).long().argmax())
    step = max(LOGITS_PER_PASS // (rows * language_model.config.get_text_config().vocab_size), 1)
    if width > first + step and cache is None and can_continue(language_model):
        cache = DynamicCache(config=language_model.config)
    tokens = _padded([columns_of(prompt.tokens, shared, prompt.length) for prompt in group], width)
    scored, start = torch.zeros(rows, device=device), 0
    while start < width:
        end = width if cache is None else min(max(start, first) + step, width)
        keep = end - max(start, first)
        beside = {**(group[0].images if start == 0 else {}), **group[0].memory}
        logits = language_model(
            **columns_of(tokens, start, end),
            **beside,
            attention_mask=mask[:, : shared + end],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        ).logits[:, -keep:]
        scored += target_log_probs(logits, targets[:, end - keep : end]).sum(dim=1)
        start = end
    return scored


def columns_of(tokens: dict[str, torch.Tensor], start: int, end: int) -> dict[str, torch.Tensor]:
    """Some columns of the `tokens` of an [`AnsweredPrompt`]."""
    return {
        name: tensor[..., start:end] if name == "position_ids" else tensor[:, start:end]
        for name, tensor in tokens.items()
    }


def _padded(rows: list[dict[str, torch.Tensor]], width: int) -> dict[str, torch.Tensor]:
    """Rows as one batch of `width` columns: a shorter one repeats its last token, which nothing sees."""
    padded = {}
    for name in rows[0]:
        column, row = (-1, -2) if name == "position_ids" else (1, 0)
        widened = []
        for tokens in rows:
            tensor = tokens[name]
            places = torch.arange(width, device=tensor.device).clamp(max=tensor.shape[column] - 1)
            widened.append(tensor.index_select(column, places))
        padded[name] = torch.cat(widened, dim=row)
    return padded
