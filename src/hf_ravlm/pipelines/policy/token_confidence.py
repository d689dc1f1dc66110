"""How many tokens a model reads and writes, and how sure it was of each that it wrote."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LogitsProcessor


class TokenConfidence(LogitsProcessor):
    """A logits processor that changes nothing: it counts tokens, and remembers how probable the likeliest ones were.

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
        # Per step (4, rows): log-probability of the likeliest token, entropy as a share of the highest possible, lead
        # over the second likeliest token, and whether the answer was not over.
        self._steps: list[torch.Tensor] = []
        self._open = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        goes_on = self._last is not None and torch.equal(input_ids[:, :-1], self._last)
        self._last = input_ids
        if not goes_on:  # a prompt; more than one, where prompts are read in groups
            self._num_prompts += 1
            self.num_tokens += int((input_ids != self._pad_id).sum())
            self._steps = []
            self._open = torch.ones(len(scores), dtype=torch.bool)
        log_probabilities = scores.float().log_softmax(dim=-1)  # (rows, V)
        probabilities = log_probabilities.exp()
        entropy = -(probabilities * log_probabilities).nan_to_num().sum(dim=-1)
        two, chosen = log_probabilities.topk(2, dim=-1)
        sure = torch.stack([two[:, 0], entropy / math.log(scores.shape[-1]), two[:, 0].exp() - two[:, 1].exp()])
        self._steps.append(torch.cat([sure.cpu(), self._open[None]]))
        self.num_tokens += int(self._open.sum())
        self._open = self._open & ~torch.isin(chosen[:, 0].cpu(), self._end_ids)
        return scores

    def confidences(self, num_questions: int) -> list[float | None]:
        """The geometric mean of the probabilities of each answer's tokens; `None` where it is not known."""
        features = self.features(num_questions)
        return [None] * num_questions if features is None else list(features["mean_probability"].tolist())

    def features(self, num_questions: int) -> dict[str, torch.Tensor] | None:
        """`TOKEN_FEATURES`, each `(num_questions,)`, if every question had one row from the first step to the last."""
        if self._num_prompts != 1 or self._steps[0].shape[1] != num_questions:
            return None
        best, entropy, margin, written = torch.stack(self._steps, dim=1)  # each (steps, rows)
        written = written.bool()
        steps = written.sum(dim=0).clamp(min=1)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return torch.where(written, values, 0.0).sum(dim=0) / steps

        return {
            "mean_probability": mean(best).exp().clamp(0, 1),
            "min_probability": torch.where(written, best, 0.0).amin(dim=0).exp().clamp(0, 1),
            "entropy": mean(entropy).clamp(0, 1),
            "margin": mean(margin).clamp(0, 1),
            "first_margin": margin[0].clamp(0, 1),
        }
