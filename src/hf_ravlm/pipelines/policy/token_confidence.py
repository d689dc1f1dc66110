"""How many tokens a model reads and writes, and how sure it was of each that it wrote.

`TokenConfidence` stands among the logits processors of `generate` and changes nothing. Per answer it gives the
`DRAFT_FEATURES` of `decision_heads.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LogitsProcessor


class TokenConfidence(LogitsProcessor):
    """Counts tokens while a model generates, and remembers how probable the likeliest next ones were.

    The features of single answers hold for greedy decoding, where the likeliest token is the one that is written.

    Args:
        model: Its generation config says what ends an answer.
        tokenizer: Its padding does not count as read.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        end = model.generation_config.eos_token_id
        end_ids = [] if end is None else list(end) if isinstance(end, (list, tuple)) else [end]
        self.num_tokens = 0
        self._pad_id, self._end_ids = tokenizer.pad_token_id, torch.tensor(end_ids)
        self._num_prompts = 0
        self._last: torch.Tensor | None = None  # what stood there at the step before
        self._best: list[torch.Tensor] = []  # per step (rows,): log-probability of the likeliest token,
        self._entropy: list[torch.Tensor] = []  # share of the highest possible entropy,
        self._margin: list[torch.Tensor] = []  # lead over the second,
        self._written: list[torch.Tensor] = []  # and whether the answer was not over
        self._open = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        goes_on = self._last is not None and torch.equal(input_ids[:, :-1], self._last)
        self._last = input_ids
        if not goes_on:  # a prompt; more than one, where prompts are read in groups
            self._num_prompts += 1
            self.num_tokens += int((input_ids != self._pad_id).sum())
            self._best, self._entropy, self._margin, self._written = [], [], [], []
            self._open = torch.ones(len(scores), dtype=torch.bool)
        log_probabilities = scores.float().log_softmax(dim=-1)  # (rows, V)
        probabilities = log_probabilities.exp()
        entropy = -(probabilities * log_probabilities).nan_to_num().sum(dim=-1)
        two, chosen = log_probabilities.topk(2, dim=-1)
        self._best.append(two[:, 0].cpu())
        self._entropy.append((entropy / math.log(scores.shape[-1])).cpu())
        self._margin.append((two[:, 0].exp() - two[:, 1].exp()).cpu())
        self._written.append(self._open)
        self.num_tokens += int(self._open.sum())
        self._open = self._open & ~torch.isin(chosen[:, 0].cpu(), self._end_ids)
        return scores

    def confidences(self, num_questions: int) -> list[float | None]:
        """The geometric mean of the probabilities of each answer's tokens; `None` where it is not known."""
        features = self.features(num_questions)
        return [None] * num_questions if features is None else list(features["mean_probability"].tolist())

    def features(self, num_questions: int) -> dict[str, torch.Tensor] | None:
        """`DRAFT_FEATURES`, each `(num_questions,)`, if every question had one row from the first step to the last."""
        if self._num_prompts != 1 or len(self._best[0]) != num_questions:
            return None
        written = torch.stack(self._written)  # (steps, rows)
        steps = written.sum(dim=0).clamp(min=1)
        best, margin = torch.stack(self._best), torch.stack(self._margin)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return torch.where(written, values, 0.0).sum(dim=0) / steps

        return {
            "mean_probability": mean(best).exp().clamp(0, 1),
            "min_probability": torch.where(written, best, 0.0).amin(dim=0).exp().clamp(0, 1),
            "entropy": mean(torch.stack(self._entropy)).clamp(0, 1),
            "margin": mean(margin).clamp(0, 1),
            "first_margin": margin[0].clamp(0, 1),
        }
