"""Which passage an answer rests on: what it is worth under each passage alone, and without each of them.

[`attribute`] takes passages out of encoded prompts; [`attribute_prompts`] writes the prompts again, for
image-text-to-text models, which count positions and images over their prompt. Both read what prompts share once, and
their memory is bounded by a budget of tokens and logits (`scoring`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..outputs import RavlmAttribution
from ..prompts.evidence import read_evidence
from .inputs import EncodedInputs, encode_inputs
from .latent_passages import own_prior_scale, passages_are_latent
from .likelihoods import leave_one_out, passage_log_prior, passage_posterior, rag_sequence_log_likelihood
from .placing import PromptTensors, hide_passages
from .reading import embed_prompt, evidence_memory
from .scoring import (
    SPLIT_TOKENS,
    TOKEN_TYPES,
    AnsweredPrompt,
    can_continue,
    columns_of,
    common_length,
    score_prompts,
)
from .writing import write_answered


@torch.no_grad()
def attribute(
    model: Any,
    inputs: EncodedInputs,
    prompt: PromptTensors,
    labels: torch.Tensor,
    with_leave_one_out: bool = True,
    prior_scale: float | None = None,
) -> RavlmAttribution:
    """Attribution by masks: `attribute` of [`RavlmForConditionalGeneration`]; `inputs` need `evidence_scores`.

    Raises:
        `ValueError`: for an image-text-to-text reader.
    """
    if model.reads_images:
        raise ValueError(
            "the reader is an image-text-to-text model, whose passages cannot be masked in a prompt: use "
            "attribute_prompts(model, processor, images, questions, evidence, answers)"
        )
    scale = float(own_prior_scale(model)) if prior_scale is None else prior_scale
    scores, counts = inputs.evidence_scores, inputs.evidence_mask
    counts = torch.ones_like(scores, dtype=torch.bool) if counts is None else counts.bool()
    inputs = encode_inputs(model, replace(inputs, evidence_mask=counts))
    if prompt.attention_mask is None:
        prompt = replace(prompt, attention_mask=torch.ones_like(prompt.input_ids))
    if passages_are_latent(model.config, scores):
        prior = passage_log_prior(scores, counts, scale)
        alone = _score_branches(model, inputs, prompt, labels)
        joint, without = rag_sequence_log_likelihood(alone, prior), leave_one_out(alone, prior, counts)
    else:
        subsets = _subsets(scores.shape[1], with_leave_one_out)
        shown = torch.tensor(
            [[k in kept for k in range(scores.shape[1])] for kept in subsets], dtype=torch.bool, device=scores.device
        )
        scored = _score_subsets(model, inputs, prompt, labels, shown.reshape(-1, scores.shape[1]))
        alone, joint, without = _sorted_out(scored, scores.shape[1], with_leave_one_out)
    return RavlmAttribution(
        posterior=passage_posterior(alone, scores, scale, counts) * counts,
        leave_one_out=None if without is None else without * counts,
        log_likelihood=joint,
        passage_log_likelihood=alone,
    )


def _subsets(number: int, with_leave_one_out: bool) -> list[tuple[int, ...]]:
    """The passages that each prompt shows: one alone; also all but one, and all.

    >>> _subsets(2, True)
    [(0,), (1,), (1,), (0,), (0, 1)]
    """
    every = tuple(range(number))
    alone: list[tuple[int, ...]] = [(k,) for k in every]
    return [*alone, *(every[:k] + every[k + 1 :] for k in every), every] if with_leave_one_out else alone


def _sorted_out(
    scored: torch.Tensor, number: int, with_leave_one_out: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Of scores `(B, S)` as of `_subsets`: under each alone `(B, K)`, under all `(B,)`, what each adds `(B, K)`."""
    alone = scored[:, :number]
    if not with_leave_one_out:
        return alone, None, None
    joint = scored[:, -1]
    return alone, joint, joint.unsqueeze(1) - scored[:, number : 2 * number]


def _score_subsets(
    model: Any, inputs: EncodedInputs, prompt: PromptTensors, labels: torch.Tensor, subsets: torch.Tensor
) -> torch.Tensor:
    """`log p(y | x, passages)` under each of the `subsets (S, K)` of the passages that count: `(B, S)`."""
    embeds = embed_prompt(model, inputs, prompt)[0]  # with all passages, once: each is filled in by itself
    scored = []
    for row in range(len(embeds)):
        own = slice(row, row + 1)
        shown, place = (subsets & inputs.evidence_mask[own]).unique(dim=0, return_inverse=True)

        def rows(tensor: torch.Tensor, own: slice = own, number: int = len(shown)) -> torch.Tensor:
            return tensor[own].expand(number, *tensor.shape[1:])

        some = PromptTensors(**{"input_ids": None, **{name: rows(tensor) for name, tensor in prompt.given().items()}})
        one = EncodedInputs(**{name: tensor[own] for name, tensor in inputs.given().items()})
        memory = [_memory(model, one, kept) for kept in shown]
        scored.append(_score_rows(model, some, shown, rows(embeds), rows(labels), memory)[place])
    return torch.stack(scored)


def _score_branches(model: Any, inputs: EncodedInputs, prompt: PromptTensors, labels: torch.Tensor) -> torch.Tensor:
    """`log p(y | x, z_k)` of prompts `(B * K, L)` with one passage each: `(B, K)`."""
    number, scored = inputs.evidence_scores.shape[1], []
    for row in range(len(inputs.evidence_scores)):
        own, place = slice(row * number, (row + 1) * number), torch.tensor([row], device=labels.device)
        flat = inputs.rows(place).per_passage()
        some = PromptTensors(**{"input_ids": None, **{name: tensor[own] for name, tensor in prompt.given().items()}})
        shown = inputs.evidence_mask[row].unsqueeze(1)
        memory = [
            _memory(model, EncodedInputs(**{n: t[k : k + 1] for n, t in flat.given().items()}), shown[k])
            for k in range(number)
        ]
        embeds = embed_prompt(model, flat, some)[0]
        scored.append(_score_rows(model, some, shown, embeds, labels[own], memory))
    return torch.stack(scored)


def _reads_inside(model: Any) -> bool:
    """Whether layers of the language model read passages, so that every token has seen them."""
    return model.fusion.reads_evidence and model.fusion.num_memory_tokens == 0


def _memory(model: Any, inputs: EncodedInputs, kept: torch.Tensor) -> dict[str, Any]:
    """What layers of the language model read of the passages `kept (K,)` of one question."""
    if not _reads_inside(model) or inputs.evidence_token_mask is None:
        return {}
    mask = inputs.evidence_token_mask.bool() & kept.view(1, -1, 1)
    return evidence_memory(model, replace(inputs, evidence_token_mask=mask))


def _score_rows(
    model: Any,
    prompt: PromptTensors,
    shown: torch.Tensor,
    embeds: torch.Tensor,
    labels: torch.Tensor,
    memory: Sequence[dict[str, Any]],
) -> torch.Tensor:
    """`log p(y | x, passages that are shown)`, `(N,)`, of prompts of one question; what is hidden is cut out."""
    mask = hide_passages(prompt.attention_mask, prompt.token_passages, shown).bool()
    places = [columns.nonzero().flatten() for columns in mask]
    prompts = []
    for row, columns in enumerate(places):
        answer = labels[row, columns]
        positions = torch.arange(len(columns), device=embeds.device).unsqueeze(0)
        tokens = {"inputs_embeds": embeds[row, columns].unsqueeze(0), "position_ids": positions}
        prompts.append(AnsweredPrompt(tokens, answer[answer != -100], memory=memory[row]))
    shared = 0
    if len(prompts) > 1 and not _reads_inside(model) and can_continue(model.language_model):
        ids = prompt.input_ids
        if prompt.token_passages is not None:  # what belongs to a passage is like nothing else
            other = -1 - torch.arange(len(ids), device=ids.device).unsqueeze(1)
            ids = torch.where(prompt.token_passages < 0, ids, other)
        shared = _shared_length([ids[row, columns] for row, columns in enumerate(places)], prompts)
    return score_prompts(model.language_model, prompts, shared)


def _shared_length(ids: Sequence[torch.Tensor], prompts: Sequence[AnsweredPrompt]) -> int:
    return common_length(ids, min(prompt.length - len(prompt.answer) - 1 for prompt in prompts))


@torch.no_grad()
def attribute_prompts(
    model: Any,
    processor: Any,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    answers: Sequence[str],
    max_length: int | None = None,
    prompt: Mapping[str, Any] | None = None,
    with_leave_one_out: bool = True,
    prior_scale: float | None = None,
) -> RavlmAttribution:
    """Attribution of answers to passages by prompts written anew, `B` questions with up to `K` passages each.

    Args:
        model, processor: an image-text-to-text reader, and its processor.
        images (`Sequence`, *optional*), questions, evidence, answers (`Sequence`): of one length; passages best first.
        max_length (`int`, *optional*): tokens of a prompt, as it was read, without the answer.
        prompt (`dict`, *optional*): settings of the prompt, as it was read.
        with_leave_one_out, prior_scale: as of `RavlmForConditionalGeneration.attribute`; scores of unknown origin
            are taken as they are.

    Returns:
        [`RavlmAttribution`], with 0 where a question has no such passage.
    """
    settings = {**(prompt or {}), **({} if max_length is None else {"max_length": max_length})}
    items = read_evidence(evidence, len(questions))
    shape = (len(items), max(len(row) for row in items))
    alone, without, scores = (torch.zeros(shape, device=model.device) for _ in range(3))
    joint, counts = torch.zeros(len(items), device=model.device), torch.zeros(shape, dtype=torch.bool)
    for row, passages in enumerate(items):
        image = None if images is None else images[row]
        asked = (image, questions[row], evidence[row], answers[row])
        writing = _Writing(model, processor, *asked, settings)
        subsets = _subsets(len(passages), with_leave_one_out)
        distinct = list(dict.fromkeys(subsets))
        scored = dict(zip(distinct, _score_written(writing, distinct).tolist(), strict=True)) if distinct else {}
        found = torch.tensor([[scored[subset] for subset in subsets]], device=model.device)
        number = len(passages)
        counts[row, :number] = True
        scores[row, :number] = torch.tensor([passage.score for passage in passages])
        one, all_of_them, loss = _sorted_out(found, number, with_leave_one_out)
        alone[row, :number] = one[0]
        if loss is not None and all_of_them is not None:
            joint[row], without[row, :number] = all_of_them[0], loss[0]
    counts, scale = counts.to(model.device), float(own_prior_scale(model)) if prior_scale is None else prior_scale
    return RavlmAttribution(
        posterior=passage_posterior(alone, scores, scale, counts) * counts,
        leave_one_out=without if with_leave_one_out else None,
        log_likelihood=joint if with_leave_one_out else None,
        passage_log_likelihood=alone,
    )


@dataclass
class _Writing:
    """One question, of which prompts with other passages are written."""

    model: Any
    processor: Any
    image: Any
    question: str
    evidence: Sequence[Any]
    answer: str
    settings: dict[str, Any]

    def write(self, subset: Sequence[int]) -> AnsweredPrompt:
        """The prompt with these passages, and the answer."""
        shown = [self.evidence[k] for k in subset]
        return write_answered(self.processor, self.image, self.question, shown, self.answer, self.settings, self.model)


def _score_written(writing: _Writing, subsets: Sequence[Sequence[int]]) -> torch.Tensor:
    """`log p(y | x, passages)` under each subset, `(S,)`; instructions and the question's images are read once."""
    prompts = [writing.write(subset) for subset in subsets]
    language_model = writing.model.language_model
    if len(prompts) > 1 and can_continue(language_model):
        if all(_alike(prompt.images, prompts[0].images) for prompt in prompts):
            first = prompts[0]
        else:  # some passages have images
            first = writing.write(())
        split = _split(prompts, first, writing.model.config)
        if split is not None:
            return score_prompts(language_model, *split)
    return score_prompts(language_model, prompts)


def _split(
    prompts: Sequence[AnsweredPrompt], first: AnsweredPrompt, config: Any
) -> tuple[list[AnsweredPrompt], int, dict[str, torch.Tensor]] | None:
    """Prompts without the images of `first`, how many tokens they share, and what is read there; `None` if unknown."""
    ids = [prompt.tokens["input_ids"][0] for prompt in prompts]
    shared = _shared_length(ids, prompts)
    own = int((first.tokens["input_ids"] == config.image_token_id).sum())
    places = (ids[0][:shared] == config.image_token_id).nonzero().flatten()
    if len(places) > own:  # those of passages: read behind
        shared = int(places[own])
    if len(places) < own or not shared:
        return None
    behind = []
    for prompt in prompts:
        rest = _images_behind(prompt.images, first.images)
        if rest is None or set(prompt.tokens) - SPLIT_TOKENS:
            return None
        if rest and config.generator_config.model_type in _SEES_IMAGES_WHOLE:
            return None
        tokens = (
            prompt.tokens if rest else {name: prompt.tokens[name] for name in prompt.tokens if name not in TOKEN_TYPES}
        )
        behind.append(replace(prompt, tokens=tokens, images=rest))
    return behind, shared, {**columns_of(prompts[0].tokens, 0, shared), **first.images}


_SEES_IMAGES_WHOLE = ("gemma3", "gemma4", "gemma4_unified")  # tokens of an image see each other: not from a cache


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = one.keys() == other.keys()
    return same and all(torch.is_tensor(one[name]) and torch.equal(one[name], other[name]) for name in one)


def _images_behind(given: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """What is left of images, and what belongs to them, behind those in `first`; `None` if they do not begin so.

    >>> _images_behind({"pixel_values": torch.arange(3)}, {"pixel_values": torch.arange(2)})
    {'pixel_values': tensor([2])}
    """
    rest = {}
    for name, tensor in given.items():
        before = first.get(name)
        if before is None:
            rest[name] = tensor
            continue
        if not torch.is_tensor(tensor) or not torch.is_tensor(before) or tensor.dim() != before.dim():
            return None
        differ = [axis for axis in range(tensor.dim()) if tensor.shape[axis] != before.shape[axis]]
        if not differ and torch.equal(tensor, before):
            continue
        if len(differ) != 1 or tensor.shape[differ[0]] < before.shape[differ[0]]:
            return None
        length = before.shape[differ[0]]
        if not torch.equal(tensor.narrow(differ[0], 0, length), before):
            return None
        rest[name] = tensor.narrow(differ[0], length, tensor.shape[differ[0]] - length)
    return rest if first.keys() <= given.keys() else None
