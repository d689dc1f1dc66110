"""Which passage an answer rests on, for a reader whose prompts can only be written as a whole.

An image-text-to-text model counts positions and pictures over its prompt, so a passage is not masked: the prompt is
written again without it. What is computed is what `RavlmForConditionalGeneration.attribute` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..outputs import RavlmAttribution
from .likelihoods import answer_log_likelihood, passage_posterior


PROMPTS_PER_PASS = 8  # each with its pictures


@torch.no_grad()
def attribute_prompts(
    model: Any,
    processor: Any,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    answers: Sequence[str],
    max_length: int | None = None,
) -> RavlmAttribution:
    """Attribution of answers to passages, `B` questions with up to `K` passages each.

    Args:
        model, processor: an image-text-to-text reader, and its processor.
        images (`Sequence`, *optional*), questions, evidence, answers (`Sequence`): of one length; passages best first.
        max_length (`int`, *optional*): tokens of a prompt with its answer.

    Returns:
        [`RavlmAttribution`]: `posterior (B, K)`, `leave_one_out (B, K)`, `log_likelihood (B,)` and
        `passage_log_likelihood (B, K)`; 0 where a question has no such passage.
    """
    asked = []  # (question, the passages that its prompt shows)
    for row, passages in enumerate(evidence):
        every = tuple(range(len(passages)))
        subsets = {every, *((k,) for k in every), *(every[:k] + every[k + 1 :] for k in every)}
        asked += [(row, kept) for kept in sorted(subsets)]
    scored: dict[tuple[int, tuple[int, ...]], float] = {}
    for start in range(0, len(asked), PROMPTS_PER_PASS):
        chunk = asked[start : start + PROMPTS_PER_PASS]
        inputs = processor(
            images=None if images is None else [images[row] for row, _ in chunk],
            text=[questions[row] for row, _ in chunk],
            evidence=[[evidence[row][k] for k in kept] for row, kept in chunk],
            answers=[answers[row] for row, _ in chunk],
            padding_side="left",
            max_length=max_length,
        ).to(model.device)
        labels = inputs.pop("labels")
        keep = int((labels != -100).sum(dim=1).max()) + 1  # answers end at the right edge
        logits = model(**inputs, logits_to_keep=keep).logits[:, -keep:]
        scored.update(zip(chunk, answer_log_likelihood(logits, labels[:, -keep:]).tolist(), strict=True))
    return _attribution(scored, evidence, model.model.get_logit_scale())


def _attribution(scored: dict, evidence: Sequence[Sequence[Any]], scale: torch.Tensor) -> RavlmAttribution:
    shape = (len(evidence), max(len(row) for row in evidence))
    alone, without, scores = (torch.zeros(shape, device=scale.device) for _ in range(3))
    mask = torch.zeros(shape, dtype=torch.bool, device=scale.device)
    joint = torch.zeros(len(evidence), device=scale.device)
    for row, passages in enumerate(evidence):
        every = tuple(range(len(passages)))
        joint[row] = scored[row, every]
        for k in every:
            mask[row, k] = True
            alone[row, k] = scored[row, (k,)]
            without[row, k] = scored[row, every[:k] + every[k + 1 :]]
            item = passages[k]
            score = item.get("score") if isinstance(item, dict) else getattr(item, "score", None)
            scores[row, k] = float(score or 0.0)
    return RavlmAttribution(
        posterior=passage_posterior(alone, scores, scale, mask) * mask,
        leave_one_out=(joint.unsqueeze(1) - without) * mask,
        log_likelihood=joint,
        passage_log_likelihood=alone,
    )
