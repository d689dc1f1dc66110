"""A closed set of answers: what a reader holds of each, with the prompt read once, and the likeliest of very many.

A small set is scored whole: the prompt is kept in a cache, and the answers are read on top of it, many at a time
(`score_candidates`). Of a large one a beam search over the trie of their tokens finds the likeliest, again on top of a
prompt that is read once (`likeliest_candidates`). Readers that take no prompt in pieces write it by `generate`
(`shortlist`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from ...errors import InvalidInputError
from .inputs import encode_inputs, split_inputs
from .latent_passages import passages_are_latent
from .placing import PromptTensors, hide_passages
from .reading import embed_prompt, evidence_memory
from .scoring import (
    SPLIT_TOKENS,
    TOKEN_TYPES,
    AnsweredPrompt,
    can_continue,
    columns_of,
    keeping_activations,
    score_prompts,
)
from .writing import write_answered


@dataclass
class AnswerSet:
    """Answers that may be given, and their tokens.

    Args:
        answers (`list[str]`): as they are returned.
        ids (`list[list[int]]`): of each the tokens that count behind the prompt; see `RavlmProcessor.answer_ids`.
        priors (`dict[int, float]`): by their places, what the reader holds of answers before anything is asked.

    >>> few = AnswerSet(["red", "red wine"], [[5, 2], [5, 6, 2]])
    >>> few.allowed([]), few.allowed([5]), few.allowed([5, 6, 2])
    ([5], [2, 6], [])
    """

    answers: list[str]
    ids: list[list[int]]
    priors: dict[int, float] = field(default_factory=dict, repr=False)
    trie: dict[int, Any] = field(init=False, repr=False)

    def __post_init__(self):
        self.trie = {}
        for ids in self.ids:
            node = self.trie
            for id in ids:
                node = node.setdefault(id, {})

    @classmethod
    def of(cls, processor: Any, answers: Sequence[str], prompt: Mapping[str, Any] | None = None) -> AnswerSet:
        """The set of some answers, as a processor writes them.

        Raises:
            `InvalidInputError`: if there is none, one is no text or is empty, or two are the same to the reader.
        """
        names = [answers] if isinstance(answers, str) else list(answers)
        if not names:
            raise InvalidInputError("the set of allowed answers is empty: expected at least one answer")
        if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
            raise InvalidInputError(f"the allowed answer {wrong[0]!r} is no text: expected words for each answer")
        ids = processor.answer_ids(names, prompt)
        first: dict[tuple[int, ...], int] = {}
        for place, (name, tokens) in enumerate(zip(names, ids, strict=True)):
            earlier = first.setdefault(tuple(tokens), place)
            if earlier != place:
                same = "occurs twice" if names[earlier] == name else f"is the same to the reader as {names[earlier]!r}"
                raise InvalidInputError(f"the allowed answer {name!r} {same}: give each answer once")
        return cls(names, ids)

    def __len__(self) -> int:
        return len(self.answers)

    def some(self, places: Sequence[int]) -> AnswerSet:
        """The answers at these places."""
        return AnswerSet([self.answers[place] for place in places], [self.ids[place] for place in places])

    def allowed(self, ids: Sequence[int]) -> list[int]:
        """The tokens that may come behind `ids`; none where an answer is finished or left."""
        node: dict[int, Any] | None = self.trie
        for id in ids:
            node = node.get(id) if node else None
        return list(node or ())


@torch.no_grad()
def score_candidates(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    evidence: Sequence[Any],
    candidates: AnswerSet,
    prompt: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """`log p(answer | image, question, evidence)` of every candidate, `(C,)` in float32; the prompt is read once.

    Args:
        model, processor: a reader, and its processor.
        image (*optional*): one, a list of several, or `None`.
        evidence (`list`): passages, best first; all are read in one prompt.
        prompt (`dict`, *optional*): settings of the prompt (`PromptSettings`).

    Raises:
        `InvalidInputError`: for a reader with a prompt for each passage.
    """
    asked = _read_prompt(model, processor, image, question, evidence, candidates, prompt)
    before, first = asked.before, asked.written
    shared = asked.length - 1 if asked.in_pieces else 0
    common = {**columns_of(before, 0, shared), **first.images} if shared else None
    if shared:
        before = {name: tensor for name, tensor in before.items() if name not in TOKEN_TYPES}
    prompts = [
        AnsweredPrompt(
            _continued(model, before, torch.tensor([ids], device=first.answer.device)),
            torch.tensor(ids, device=first.answer.device),
            images={} if shared else first.images,
            memory=first.memory,
        )
        for ids in candidates.ids
    ]
    return score_prompts(model.language_model, prompts, shared, common)


@torch.no_grad()
def likeliest_candidates(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    evidence: Sequence[Any],
    candidates: AnswerSet,
    prompt: Mapping[str, Any] | None = None,
    num_beams: int = 8,
) -> dict[int, float] | None:
    """`log p(answer | image, question, evidence)` of likely ones among very many, by their places, best first.

    Args:
        model, processor, image, question, evidence, candidates, prompt: as of `score_candidates`.
        num_beams (`int`): so many beginnings of answers are followed.

    Returns:
        At least as many answers as beams, or all; `None` of a reader that takes no prompt in pieces.

    Raises:
        `InvalidInputError`: for a reader with a prompt for each passage.
    """
    asked = _read_prompt(model, processor, image, question, evidence, candidates, prompt)
    if not asked.in_pieces:
        return None
    place_of = {tuple(ids): place for place, ids in enumerate(candidates.ids)}
    cache = DynamicCache(config=model.language_model.config)
    finished: dict[int, float] = {}
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    with keeping_activations(model.language_model):
        told = _next_log_probs(model, {**asked.before, **asked.written.images}, asked.length, cache)
        while beams:
            longer = []
            for row, (ids, score) in enumerate(beams):
                tokens = candidates.allowed(ids)
                chances = told[row, torch.tensor(tokens, device=told.device)].tolist()
                longer += [(score + chance, row, [*ids, token]) for token, chance in zip(tokens, chances, strict=True)]
            finished |= {place_of[tuple(ids)]: score for score, _, ids in longer if tuple(ids) in place_of}
            unfinished = [one for one in longer if candidates.allowed(one[2])]
            unfinished = sorted(unfinished, key=lambda one: (-one[0], one[2]))[:num_beams]
            beams = [(ids, score) for score, _, ids in unfinished]
            if beams:
                rows = [row for _, row, _ in unfinished]
                if rows != list(range(len(told))):
                    cache.reorder_cache(torch.tensor(rows, device=told.device))
                told = _next_log_probs(model, _row_tokens(model, asked, beams), asked.length + len(beams[0][0]), cache)
    return dict(sorted(finished.items(), key=lambda one: (-one[1], one[0])))


def _next_log_probs(model: Any, tokens: Mapping[str, Any], length: int, cache: DynamicCache) -> torch.Tensor:
    """What may come next, `(n, V)`, behind `length` tokens of which the cache holds all but `tokens`."""
    rows = next(len(tensor) for name, tensor in tokens.items() if name in ("input_ids", "inputs_embeds"))
    mask = torch.ones(rows, length, dtype=torch.long, device=model.device)
    asked = {"attention_mask": mask, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    return model.language_model(**tokens, **asked).logits[:, -1].float().log_softmax(dim=-1)  # type: ignore[no-any-return]


def _row_tokens(model: Any, asked: _Prompt, beams: Sequence[tuple[list[int], float]]) -> dict[str, torch.Tensor]:
    """The last tokens of beginnings of answers, a row each, at their places behind the prompt."""
    last = columns_of(asked.before, asked.length - 1, asked.length)
    ids = torch.tensor([ids[-1:] for ids, _ in beams], device=model.device)
    tokens = {"input_ids": ids} if "input_ids" in last else {}
    if "inputs_embeds" in last:
        tokens["inputs_embeds"] = model.get_input_embeddings()(ids).to(last["inputs_embeds"])
    if "position_ids" in last:
        places = last["position_ids"] + len(beams[0][0])
        tokens["position_ids"] = places.expand(*places.shape[:-2], len(beams), 1)
    return tokens


@torch.no_grad()
def shortlist(model: Any, inputs: Mapping[str, Any], candidates: AnswerSet, num_beams: int) -> list[list[int]]:
    """Of each question the places of at most `num_beams` likely candidates, by a beam search over their tokens.

    Args:
        inputs: of the questions, as the processor returns them, padded on the left.
    """
    length = inputs["input_ids"].shape[1]
    ends = model.generation_config.eos_token_id
    stop = candidates.ids[0][-1] if ends is None else ends if isinstance(ends, int) else ends[0]

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        return candidates.allowed(ids[length:].tolist()) or [stop]

    sequences = model.generate(
        **inputs,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        max_new_tokens=max(map(len, candidates.ids)),
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=False,
    )
    place_of = {tuple(ids): place for place, ids in enumerate(candidates.ids)}
    found: list[list[int]] = []
    for start in range(0, len(sequences), num_beams):
        written = [ids[length:].tolist() for ids in sequences[start : start + num_beams]]
        ends_at = [[*ids[: n + 1]] for ids in written for n in range(len(ids)) if tuple(ids[: n + 1]) in place_of]
        found.append(list(dict.fromkeys(place_of[tuple(ids)] for ids in ends_at)))
    return found


class _Prompt(NamedTuple):
    """A prompt without its answer: as it was written, its own tokens, their number, whether it is read in pieces."""

    written: AnsweredPrompt
    before: dict[str, torch.Tensor]
    length: int
    in_pieces: bool


def _read_prompt(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    evidence: Sequence[Any],
    candidates: AnswerSet,
    prompt: Mapping[str, Any] | None,
) -> _Prompt:
    """The prompt of a question, before any answer."""
    asked = write_answered(processor, image, question, evidence, candidates.answers[0], prompt or {}, model)
    first = asked if isinstance(asked, AnsweredPrompt) else _embedded(model, asked)
    length = first.length - len(first.answer)
    before = columns_of(first.tokens, 0, length)
    in_pieces = can_continue(model.language_model) and not first.memory and set(before) <= SPLIT_TOKENS
    return _Prompt(first, before, length, in_pieces)


def _embedded(model: Any, inputs: Mapping[str, Any]) -> AnsweredPrompt:
    """The prompt of a causal reader with its placeholders filled, and without what is not read."""
    batch, rest = split_inputs(inputs)
    if passages_are_latent(model.config, batch.evidence_scores):
        raise InvalidInputError(
            f"marginalization={model.config.marginalization!r} reads a prompt for each passage; a closed set of "
            "answers is scored over one prompt: choose a reader with marginalization='none'"
        )
    batch = encode_inputs(model, batch)
    prompt = PromptTensors(rest["input_ids"], rest["attention_mask"], rest.get("token_passages"))
    embeds = embed_prompt(model, batch, prompt)[0]
    kept = (
        hide_passages(prompt.attention_mask, prompt.token_passages, batch.evidence_mask)[0].bool().nonzero().flatten()
    )
    answer = rest["labels"][0, kept]
    positions = torch.arange(len(kept), device=embeds.device).unsqueeze(0)
    tokens = {"inputs_embeds": embeds[:, kept], "position_ids": positions}
    return AnsweredPrompt(tokens, answer[answer != -100], memory=evidence_memory(model, batch))


def _continued(model: Any, tokens: dict[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tokens of a prompt with those of an answer `(1, T)` behind them, which are of the kind of its last one."""
    longer = {}
    for name, tensor in tokens.items():
        if name == "input_ids":
            new = ids
        elif name == "inputs_embeds":
            new = model.get_input_embeddings()(ids).to(tensor)
        elif name == "position_ids":
            new = tensor[..., -1:] + torch.arange(1, ids.shape[1] + 1, device=ids.device)
        else:
            new = tensor[:, -1:].expand(-1, ids.shape[1], *tensor.shape[2:])
        longer[name] = torch.cat([tensor, new], dim=-1 if name == "position_ids" else 1)
    return longer
