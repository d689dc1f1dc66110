"""Decoding that trusts the passages where they speak against what the language model believes by itself.

At every step the reader is asked twice, with its evidence and without: `log p(y | x, z) + beta * (log p(y | x, z) -
log p(y | x))`. Of tokens that are unlikely even with the passages the ratio is noise, so only those within a share of
the likeliest stay.

References: Shi et al. 2023 (arXiv 2305.14739, context-aware decoding); Li et al. 2022 (arXiv 2210.15097: plausible
tokens only).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import LogitsProcessor


class ConflictAwareLogitsProcessor(LogitsProcessor):
    """For `generate`: answers lean on the evidence, beyond what they are likely without it.

    Works with greedy decoding, sampling and beams, all fusions and latent passages (with RAG-sequence, for each
    passage's proposals). It costs a second reading of the short prompt, and a second step for every token.

    Args:
        model: The reader that generates.
        closed_book (`Mapping`): its inputs without evidence, `B` rows: `processor(images=images, text=questions)`.
        beta (`float`): how much; 0 is plain decoding. Try 0.5 where passages are good, less where some are noise.
        plausibility (`float`): tokens below this share of the likeliest one's probability are left out; 0 keeps all.

    Raises:
        `ValueError`: if a setting is out of range, or the number of rows does not fit.

    Example:

    ```python
    inputs = processor(images=images, text=questions, evidence=evidence)
    closed_book = processor(images=images, text=questions)
    model.generate(**inputs, logits_processor=[ConflictAwareLogitsProcessor(model, closed_book, beta=0.5)])
    ```
    """

    def __init__(self, model: Any, closed_book: Mapping[str, Any], beta: float = 0.5, plausibility: float = 0.1):
        if beta < 0 or not 0 <= plausibility <= 1:
            raise ValueError(
                f"beta={beta}, plausibility={plausibility}: expected beta of at least 0, a share from 0 to 1"
            )
        self.model, self.beta, self.plausibility = model, beta, plausibility
        self.closed_book = {name: value for name, value in closed_book.items() if torch.is_tensor(value)}
        self._prompt: torch.Tensor | None = None  # what `generate` began with, (N, L)
        self._read: torch.Tensor | None = None  # what it had written at the last step, (N, L + t)
        self._cache = self._mask = None

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores `(N, V)` of the next token behind `input_ids (N, L)`, `N` a multiple of `B`."""
        if not _goes_on(input_ids, self._prompt):
            self._prompt, self._read = input_ids.clone(), None
        parents = self._parents(input_ids)
        if self.model.reads_images or parents is None:
            closed = self._whole_step(input_ids)
        else:
            closed = self._cached_step(input_ids, parents)
        self._read = input_ids.clone()
        return lean_on_evidence(scores, closed.to(scores.device), self.beta, self.plausibility)

    def _cached_step(self, input_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        if parents.tolist() != list(range(len(input_ids))):
            self._cache.reorder_cache(parents)
        mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        inputs = {"input_ids": input_ids[:, -1:], "attention_mask": mask, "past_key_values": self._cache}
        outputs = self.model(**inputs, use_cache=True, logits_to_keep=1)
        self._cache, self._mask = outputs.past_key_values, mask
        return outputs.logits[:, -1]

    def _whole_step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Prompt and answer from the start: at first, after a step back, and for readers with own positions."""
        inputs = self._expanded(len(input_ids))
        answer = input_ids[:, self._prompt.shape[1] :]
        prompt = inputs["input_ids"]
        inputs["input_ids"] = torch.cat([prompt, answer], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
        if not self.model.reads_images:
            inputs.setdefault("token_passages", torch.full_like(prompt, -1))  # says where the prompt ends
            outputs = self.model(**inputs, use_cache=True, logits_to_keep=1)
            self._cache, self._mask = outputs.past_key_values, inputs["attention_mask"]
            return outputs.logits[:, -1]
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, answer.shape[1]))
        kept = {module: module.rope_deltas for module in self.model.modules() if hasattr(module, "rope_deltas")}
        logits = self.model(**inputs, use_cache=False).logits[:, -1]
        for module, deltas in kept.items():  # of the prompt with evidence, which goes on after this
            module.rope_deltas = deltas
        return logits

    def _expanded(self, num_rows: int) -> dict[str, torch.Tensor]:
        """The closed-book inputs, each row once per row of `generate`: for beams, samples, prompts of passages."""
        rows = len(self.closed_book["input_ids"])
        if num_rows % rows:
            raise ValueError(
                f"closed_book has {rows} rows and generate {num_rows}: expected the same questions in the same order"
            )
        times, device = num_rows // rows, self.model.device
        inputs = {"attention_mask": torch.ones_like(self.closed_book["input_ids"]), **self.closed_book}
        if times > 1 and any(len(value) != rows for value in inputs.values()):
            raise ValueError("beams need inputs with one row per question; this reader packs its images otherwise")
        return {name: value.to(device).repeat_interleave(times, dim=0) for name, value in inputs.items()}

    def _parents(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """The rows of the last step that those of this one go on from: beams change places within their question.

        `None` if some go on from none, as after a step back of assisted decoding.
        """
        if self._read is None or input_ids.shape != (len(self._read), self._read.shape[1] + 1):
            return None
        times = len(input_ids) // len(self.closed_book["input_ids"])
        now, before = (ids.unflatten(0, (-1, times)) for ids in (input_ids[:, :-1], self._read))
        same = (now.unsqueeze(2) == before.unsqueeze(1)).all(dim=-1)  # (B, times, times)
        if not same.any(dim=-1).all():
            return None
        own = torch.eye(times, dtype=torch.bool, device=same.device)
        chosen = (same.long() * 2 + (same & own).long()).argmax(dim=-1)  # its own place first, where that fits
        first = torch.arange(0, len(input_ids), times, device=chosen.device)
        return (first.unsqueeze(1) + chosen).flatten()


def _goes_on(input_ids: torch.Tensor, prompt: torch.Tensor | None) -> bool:
    """Whether `input_ids` begin with `prompt`, row by row."""
    if prompt is None or len(prompt) != len(input_ids) or prompt.shape[1] > input_ids.shape[1]:
        return False
    return torch.equal(input_ids[:, : prompt.shape[1]], prompt)


def lean_on_evidence(
    scores: torch.Tensor, closed_book: torch.Tensor, beta: float, plausibility: float = 0.0
) -> torch.Tensor:
    """`log p(y | x, z) + beta * (log p(y | x, z) - log p(y | x))`, `(N, V)`, `-inf` where `y` is not plausible.

    Args:
        scores, closed_book (`torch.Tensor` of shape `(N, V)`): logits with and without evidence.
        beta, plausibility (`float`): as in [`ConflictAwareLogitsProcessor`].

    Example, where the language model says the first token by itself and the passage the second:

    >>> read, believed = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.8, 0.1, 0.1]]).log()
    >>> lean_on_evidence(read, believed, beta=1.0, plausibility=0.3).softmax(-1).argmax().item()
    1
    """
    read = scores.float().log_softmax(dim=-1)
    leaning = read + beta * (read - closed_book.float().log_softmax(dim=-1)) if beta else read
    if plausibility:
        least = read.max(dim=-1, keepdim=True).values + math.log(plausibility)
        leaning = leaning.masked_fill(read < least, float("-inf"))
    return leaning.to(scores.dtype)


__all__ = ["ConflictAwareLogitsProcessor", "lean_on_evidence"]
