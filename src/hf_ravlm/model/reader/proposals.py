"""RAG-sequence: every passage proposes answers, which are weighed by their likelihood over the passages."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin

from .inputs import EncodedInputs
from .latent_passages import log_prior
from .placing import PromptTensors, positions_from
from .reading import evidence_memory, read


@dataclass(frozen=True)
class Answers:
    """Answers of `B` queries, best first, and the log-likelihoods that they were chosen by."""

    answers: torch.Tensor  # (B, R, T) token ids
    scores: torch.Tensor  # (B, R)


def best_proposals(
    model: Any, inputs: EncodedInputs, prompt: PromptTensors, decoding: str, generation_config: Any, *args, **kwargs
) -> Answers:
    """The `num_return_sequences` best answers of each of `B` queries, whose passages have prompts `(B * K, L)`."""

    def setting(name: str) -> Any:
        return generation_setting(model, name, kwargs, generation_config)

    wanted, beams = setting("num_return_sequences") or 1, setting("num_beams") or 1
    each = max(wanted, beams) if setting("do_sample") else beams
    own = {"num_beams": beams, "num_return_sequences": each, "return_dict_in_generate": False}
    flat = replace(inputs.per_passage(), evidence_scores=None, evidence_mask=None)  # what does not count is hidden
    given = {**prompt.given(), **flat.given(), **kwargs, **own}
    written = GenerationMixin.generate(model, given.pop("input_ids"), generation_config, *args, **given)
    shape = (*inputs.evidence_scores.shape, -1)
    answers = written[:, prompt.input_ids.shape[1] :].unflatten(0, shape)  # (B, K, R, T)
    ends, pad = setting("eos_token_id"), setting("pad_token_id")  # as `generate` understands them
    ends = ends if isinstance(ends, list) else [] if ends is None else [int(ends)]
    pad = pad if pad is not None else (ends or [0])[0]
    prior = log_prior(model, inputs).unsqueeze(-1)  # (B, K, 1)
    counts = torch.ones_like(prior[..., 0], dtype=torch.bool)
    if inputs.evidence_mask is not None:  # a row in which none counts is closed-book under each prompt alike
        counts = inputs.evidence_mask.bool() | ~inputs.evidence_mask.bool().any(dim=1, keepdim=True)
    if decoding == "fast":  # each answer by the passage that proposed it
        scores = score_answers(model, flat, prompt, answers.flatten(0, 1), shape[1], ends, pad)
        scores = (scores.unflatten(0, shape[:2]) + prior).masked_fill(~counts.unsqueeze(-1), float("-inf"))
        answers, scores = answers.flatten(1, 2), scores.flatten(1, 2)
    else:  # every answer by all passages
        answers, real = distinct_answers(answers, counts, pad)  # (B, C, T), (B, C)
        rows = answers.repeat_interleave(shape[1], dim=0)
        scores = score_answers(model, flat, prompt, rows, shape[1], ends, pad).unflatten(0, shape[:2])  # (B, K, C)
        scores = (scores + prior).logsumexp(dim=1).masked_fill(~real, float("-inf"))
    best = scores.topk(min(wanted, scores.shape[1]), dim=1)
    return Answers(answers.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, answers.shape[-1])), best.values)


def score_answers(
    model: Any,
    flat: EncodedInputs,
    prompt: PromptTensors,
    answers: torch.Tensor,
    num_passages: int,
    ends: list[int],
    pad: int,
) -> torch.Tensor:
    """`log p(y | x, z)` of `C` answers `(B * K, C, T)` for each prompt, which is read once: `(B * K, C)`."""
    cache = DynamicCache(config=model.config.get_text_config())
    asked = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    first = read(model, flat, prompt, num_passages, **asked).logits  # (B * K, 1, V)
    kept = answer_mask(answers, ends, pad)  # (B * K, C, T)
    mask = prompt.attention_mask
    scores = []
    for c in range(answers.shape[1]):
        tokens, logits = answers[:, c], first
        if tokens.shape[1] > 1:
            behind = torch.cat([mask, kept[:, c, :-1].to(mask.dtype)], dim=1)
            more = model.language_model(
                inputs_embeds=model.get_input_embeddings()(tokens[:, :-1]),
                attention_mask=behind,
                position_ids=positions_from(behind)[:, mask.shape[1] :],
                past_key_values=copy.deepcopy(cache),
                **evidence_memory(model, flat),
            ).logits
            logits = torch.cat([first, more], dim=1)
        log_probs = logits.float().log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        scores.append((log_probs * kept[:, c]).sum(dim=-1))
    return torch.stack(scores, dim=1)


def distinct_answers(answers: torch.Tensor, counts: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers `(B, K, R, T)` of the passages that count `(B, K)`, each once: `(B, C, T)`, and which are real `(B, C)`.

    >>> answers = torch.tensor([[[[7, 1]], [[8, 1]], [[7, 1]]]])
    >>> distinct_answers(answers, torch.tensor([[True, False, True]]), pad=0)[0].tolist()
    [[[7, 1]]]
    """
    unique = [
        list(dict.fromkeys(tuple(answer) for passage, keep in zip(*row, strict=True) if keep for answer in passage))
        for row in zip(answers.tolist(), counts.tolist(), strict=True)
    ]
    most = max(map(len, unique))
    filled = [row + [(pad,) * answers.shape[-1]] * (most - len(row)) for row in unique]
    real = [[c < len(row) for c in range(most)] for row in unique]
    return answers.new_tensor(filled), torch.tensor(real, device=answers.device)


def answer_mask(answers: torch.Tensor, ends: list[int], pad: int) -> torch.Tensor:
    """Tokens up to and with the first end mark, `(..., T)`; where none stands, up to the padding.

    >>> answer_mask(torch.tensor([[7, 2, 0], [7, 8, 0]]), ends=[2], pad=0).int().tolist()
    [[1, 1, 0], [1, 1, 0]]
    """
    ended = torch.isin(answers, torch.tensor(ends, dtype=answers.dtype, device=answers.device)).long()
    padding = (answers == pad).flip(-1).long().cumprod(dim=-1).flip(-1).bool()
    open_ended = ~ended.any(dim=-1, keepdim=True)
    return (ended.cumsum(dim=-1) - ended == 0) & ~(padding & open_ended)


def generation_setting(model: Any, name: str, kwargs: dict[str, Any], generation_config: Any = None) -> Any:
    """A setting of `generate`: of the call, else of its generation config, else of the model's."""
    own = getattr(generation_config, name, None) if kwargs.get(name) is None else kwargs[name]
    return getattr(model.generation_config, name, None) if own is None else own
