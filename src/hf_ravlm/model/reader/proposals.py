"""RAG-sequence: every passage proposes answers, which are weighed by their likelihood over the passages."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin

from .inputs import EncodedInputs
from .latent_passages import log_prior
from .likelihoods import target_log_probs
from .placing import PromptTensors, positions_from
from .reading import evidence_memory, read
from .scoring import LOGITS_PER_PASS


@dataclass(frozen=True)
class Answers:
    """Answers of `B` queries, best first, and the log-likelihoods that they were chosen by."""

    answers: torch.Tensor  # (B, R, T) token ids
    scores: torch.Tensor  # (B, R)
    kept: torch.Tensor  # (B, R, T), what is no padding


@dataclass(frozen=True)
class Proposing:
    """What passages propose answers with: `B` queries with `K` prompts each, and the arguments of `generate`."""

    model: Any
    inputs: EncodedInputs
    prompt: PromptTensors
    kwargs: dict[str, Any]
    ends: list[int]
    pad: int

    def setting(self, name: str) -> Any:
        """A setting of `generate`."""
        return generation_setting(self.model, name, self.kwargs)

    def flat(self) -> EncodedInputs:
        """The inputs of every prompt; what does not count is hidden in it already."""
        return replace(self.inputs.per_passage(), evidence_scores=None, evidence_mask=None)

    def propose(self, **settings: Any) -> torch.Tensor:
        """Answers `(B, K, R, T)` that each passage's prompt is gone on with."""
        given = {
            **self.prompt.given(),
            **self.flat().given(),
            **self.kwargs,
            "return_dict_in_generate": False,
            **settings,
        }
        written = GenerationMixin.generate(self.model, given.pop("input_ids"), **given)
        return written[:, self.prompt.input_ids.shape[1] :].unflatten(0, (*self.inputs.evidence_scores.shape, -1))

    def counts(self) -> torch.Tensor:
        """Passages whose proposals are heard, `(B, K)`; where none counts, each prompt is the closed-book one."""
        counted = self.inputs.evidence_mask
        if counted is None:
            return torch.ones_like(self.inputs.evidence_scores, dtype=torch.bool)
        return counted.bool() | ~counted.bool().any(dim=1, keepdim=True)

    def rank(self, answers: torch.Tensor, decoding: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Candidates `(B, C, T)` out of proposals `(B, K, R, T)`, and their scores `(B, C)`, `-inf` for fillers."""
        shape, counts = answers.shape[:2], self.counts()
        prior = log_prior(self.model, self.inputs).unsqueeze(-1)  # (B, K, 1)
        scored = (self.model, self.flat(), self.prompt)
        if decoding == "fast":  # each answer by the passage that proposed it
            scores = score_answers(*scored, answers.flatten(0, 1), shape[1], self.ends, self.pad)
            scores = (scores.unflatten(0, shape) + prior).masked_fill(~counts.unsqueeze(-1), float("-inf"))
            return answers.flatten(1, 2), scores.flatten(1, 2)
        answers, real = distinct_answers(answers, counts, self.pad)  # (B, C, T), (B, C)
        rows = answers.repeat_interleave(shape[1], dim=0)
        scores = score_answers(*scored, rows, shape[1], self.ends, self.pad).unflatten(0, shape)  # (B, K, C)
        return answers, (scores + prior).logsumexp(dim=1).masked_fill(~real, float("-inf"))


def best_proposals(
    model: Any, inputs: EncodedInputs, prompt: PromptTensors, decoding: str, wanted: int, kwargs: dict[str, Any]
) -> Answers:
    """The `wanted` best answers of each of `B` queries, no two alike; passages have prompts `(B * K, L)`.

    Passages propose by the settings of the call. Where that makes too few different answers (greedy decoding, samples
    that are alike), they also propose by a beam search of that width.

    Raises:
        `ValueError`: if there are still too few, as where only some answers are allowed.
    """
    ends, pad = (generation_setting(model, f"{name}_token_id", kwargs) for name in ("eos", "pad"))
    ends = ends if isinstance(ends, list) else [] if ends is None else [int(ends)]
    pad = pad if pad is not None else (ends or [0])[0]  # as `generate` understands them
    proposing = Proposing(model, inputs, prompt, kwargs, ends, int(pad))
    beams, samples = proposing.setting("num_beams") or 1, proposing.setting("do_sample")
    answers = proposing.propose(num_beams=beams, num_return_sequences=max(wanted, beams) if samples else beams)
    candidates, scores = proposing.rank(answers, decoding)
    chosen = best_distinct(candidates, scores, wanted)
    if chosen is None:
        width = max(wanted, beams)
        more = proposing.propose(do_sample=False, num_beams=width, num_return_sequences=width)
        longest = max(answers.shape[-1], more.shape[-1])
        padded = [F.pad(some, (0, longest - some.shape[-1]), value=pad) for some in (answers, more)]
        candidates, scores = proposing.rank(torch.cat(padded, dim=2), decoding)
        chosen = best_distinct(candidates, scores, wanted)
    if chosen is None:
        raise ValueError(
            f"num_return_sequences={wanted}, and the passages of a query propose fewer different answers under these "
            "settings; ask for fewer"
        )
    best = candidates.gather(1, chosen.unsqueeze(-1).expand(-1, -1, candidates.shape[-1]))
    return Answers(best, scores.gather(1, chosen), answer_mask(best, ends, int(pad)))


def best_distinct(answers: torch.Tensor, scores: torch.Tensor, wanted: int) -> torch.Tensor | None:
    """Places `(B, wanted)` of the best answers `(B, C, T)` that differ, by `scores (B, C)`; `None` if a row has fewer.

    >>> answers = torch.tensor([[[7, 1], [8, 1], [7, 1]]])
    >>> best_distinct(answers, torch.tensor([[-3.0, -2.0, -1.0]]), wanted=2).tolist()
    [[2, 1]]
    """
    rows = []
    for row, values in zip(answers.tolist(), scores.tolist(), strict=True):
        order = sorted((c for c in range(len(row)) if values[c] != -math.inf), key=lambda c: -values[c])
        first = {tuple(row[c]): c for c in reversed(order)}  # of equal answers the best
        rows.append(sorted(first.values(), key=lambda c: -values[c])[:wanted])
    return torch.tensor(rows, device=answers.device) if min(map(len, rows)) == wanted else None


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
    columns = max(LOGITS_PER_PASS // first[:, 0].numel(), 1)  # of an answer, that are read at once
    scores = []
    for c in range(answers.shape[1]):
        targets = answers[:, c].masked_fill(~kept[:, c], -100)
        score = target_log_probs(first, targets[:, :1]).sum(dim=1)
        own, seen = copy.deepcopy(cache), torch.cat([mask, kept[:, c].to(mask.dtype)], dim=1)
        for start in range(0, answers.shape[2] - 1, columns):
            tokens = answers[:, c, start : min(start + columns, answers.shape[2] - 1)]
            behind = seen[:, : mask.shape[1] + start + tokens.shape[1]]
            logits = model.language_model(
                inputs_embeds=model.get_input_embeddings()(tokens),
                attention_mask=behind,
                position_ids=positions_from(behind)[:, -tokens.shape[1] :],
                past_key_values=own,
                **evidence_memory(model, flat),
            ).logits
            score = score + target_log_probs(logits, targets[:, start + 1 : start + 1 + tokens.shape[1]]).sum(dim=1)
        scores.append(score)
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

    The first token is always one, as `generate` writes one: an answer that is a padding token has its probability.

    >>> answer_mask(torch.tensor([[7, 2, 0], [7, 8, 0], [0, 0, 0]]), ends=[2], pad=0).int().tolist()
    [[1, 1, 0], [1, 1, 0], [1, 0, 0]]
    """
    ended = torch.isin(answers, torch.tensor(ends, dtype=answers.dtype, device=answers.device)).long()
    padding = (answers == pad).flip(-1).long().cumprod(dim=-1).flip(-1).bool()
    open_ended = ~ended.any(dim=-1, keepdim=True)
    first = torch.arange(answers.shape[-1], device=answers.device) == 0
    return ((ended.cumsum(dim=-1) - ended == 0) & ~(padding & open_ended)) | first


def generation_setting(model: Any, name: str, kwargs: dict[str, Any]) -> Any:
    """A setting of `generate`: of the call, else of its generation config, else of the model's."""
    own = getattr(kwargs.get("generation_config"), name, None) if kwargs.get(name) is None else kwargs[name]
    return getattr(model.generation_config, name, None) if own is None else own
