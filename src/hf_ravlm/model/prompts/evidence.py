"""Evidence and answers as the user gives them, read once; rows of token ids and prompts as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ...errors import InvalidInputError
from .layout import Prompt


class EvidenceItem(NamedTuple):
    """One passage as the processor reads it: words, retrieval score, and an image or `None`."""

    text: str
    score: float = 0.0
    image: Any = None


def read_evidence(evidence: Sequence[Sequence[Any]] | None, num_questions: int) -> list[list[EvidenceItem]]:
    """Passages per question, from strings, dicts with `text`, `score` and `image`, or objects with these attributes.

    Raises:
        `InvalidInputError`: if the number of questions differs, a list per question is missing, or an item is none
            of these.

    >>> read_evidence([["a kite"], []], num_questions=2)
    [[EvidenceItem(text='a kite', score=0.0, image=None)], []]
    """
    if evidence is None:
        return [[] for _ in range(num_questions)]
    if len(evidence) != num_questions:
        raise InvalidInputError(
            f"got evidence for {len(evidence)} questions and {num_questions} questions; give one list each"
        )
    for row in evidence:
        if isinstance(row, (str, dict)) or hasattr(row, "text"):
            raise InvalidInputError(
                f"evidence holds a {type(row).__name__} where the passages of one question belong; give a list of "
                "passages per question, also for a single question: evidence=[[passage, ...]]"
            )
    return [[_read_item(item) for item in row] for row in evidence]


def _read_item(item: Any) -> EvidenceItem:
    if isinstance(item, str):
        return EvidenceItem(item)
    if isinstance(item, dict):
        values = [item.get(name) for name in ("text", "title", "score", "image")]
    elif hasattr(item, "text"):
        values = [getattr(item, name, None) for name in ("text", "title", "score", "image")]
    else:
        raise InvalidInputError(
            f"evidence of type {type(item).__name__}: expected a string, a dict with 'text', or an object with .text"
        )
    text, title, score, image = values
    return EvidenceItem(text or title or "", float(score or 0.0), image)


def read_answers(answers: str | Sequence[str] | None, num_questions: int) -> list[str] | None:
    """One answer per question, or `None`; raises `InvalidInputError` if the numbers differ."""
    if answers is None:
        return None
    answers = [answers] if isinstance(answers, str) else list(answers)
    if len(answers) != num_questions:
        raise InvalidInputError(f"got {len(answers)} answers and {num_questions} questions")
    return answers


def evidence_tensors(passages: Sequence[Sequence[EvidenceItem]]) -> dict[str, torch.Tensor]:
    """`evidence_scores` and `evidence_mask` `(B, K)`; nothing where there is no passage at all.

    >>> evidence_tensors(read_evidence([["a kite", "a bird"], []], 2))["evidence_mask"].tolist()
    [[True, True], [False, False]]
    """
    if not any(passages):
        return {}
    return {
        "evidence_scores": pad_sequence([torch.tensor([item.score for item in row]) for row in passages], True),
        "evidence_mask": pad_rows([[1] * len(row) for row in passages], 0, "right").bool(),
    }


def pad_rows(rows: Sequence[Sequence[int] | torch.Tensor], value: int, side: str) -> torch.Tensor:
    """Rows `(L_i, ...)` of different lengths as one tensor `(n, L, ...)`, filled up with `value` on the `side` named.

    >>> pad_rows([[1, 2, 3], [4]], 0, "left").tolist()
    [[1, 2, 3], [0, 0, 4]]
    """
    tensors = [row if torch.is_tensor(row) else torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def pad_prompts(
    prompts: Sequence[Prompt], pad_token_id: int, side: str, align_prefixes: bool, width: int = 0, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Prompts as tensors `(n, L)`: `input_ids`, `attention_mask`, `token_passages` and, with answers, `labels`.

    Args:
        side (`str`): `"left"` or `"right"`, where padding goes.
        align_prefixes (`bool`): whether prompts line up where those of one question are alike, before their passage.
        width, multiple (`int`): `L` is at least `width`, and a multiple of `multiple`.
    """
    cuts = [prompt.prefix if align_prefixes else 0 for prompt in prompts]
    longest = max(cuts) + max(len(prompt.ids) - cut for prompt, cut in zip(prompts, cuts, strict=True))
    missing = -(-max(width, longest) // multiple) * multiple - longest

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        heads = pad_rows([row[:cut] for row, cut in zip(rows, cuts, strict=True)], value, "left")
        tails = pad_rows([row[cut:] for row, cut in zip(rows, cuts, strict=True)], value, side)
        return F.pad(torch.cat([heads, tails], dim=1), (missing, 0) if side == "left" else (0, missing), value=value)

    data = {
        "input_ids": pad([prompt.ids for prompt in prompts], pad_token_id),
        "attention_mask": pad([[1] * len(prompt.ids) for prompt in prompts], 0),
        "token_passages": pad([prompt.passages for prompt in prompts], -1),
    }
    if prompts[0].answer_start < len(prompts[0].ids):
        labels = [[-100] * prompt.answer_start + prompt.ids[prompt.answer_start :] for prompt in prompts]
        data["labels"] = pad(labels, -100)
    return data
