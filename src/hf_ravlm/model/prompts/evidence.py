"""Evidence and answers as the user gives them, read once; rows of token ids and prompts as padded tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ...errors import InvalidInputError
from ...sequences import listed
from ...text import clean_text, without_controls
from .layout import Prompt


TEXT_KEYS = ("text", "content", "page_content", "contents", "passage", "caption", "body")  # the first that is there
# Other words of a dictionary that has no text are not dropped for the sake of its title.
_FIELDS = {"id", "title", "image", "score", "source", "licence", "license", "url", "revision"}


class EvidenceItem(NamedTuple):
    """One passage as the processor reads it: words, retrieval score, an image or `None`, and a title or `""`."""

    text: str
    score: float = 0.0
    image: Any = None
    title: str = ""

    def words(self, with_title: bool) -> str:
        """What the reader sees of it.

        >>> EvidenceItem("Loud.", title="Wren").words(with_title=True)
        'Wren: Loud.'
        """
        if not with_title or not self.title or self.text.startswith(self.title):
            return self.text
        return f"{self.title}: {self.text}"


def read_evidence(evidence: Sequence[Sequence[Any]] | None, num_questions: int) -> list[list[EvidenceItem]]:
    """Passages per question, from strings, dicts with `text`, `title`, `score` and `image`, or objects with these.

    Raises:
        `InvalidInputError`: if the number of questions differs, a list per question is missing, or an item is none
            of these.

    >>> read_evidence([["a kite"], []], num_questions=2)
    [[EvidenceItem(text='a kite', score=0.0, image=None, title='')], []]
    """
    if evidence is None:
        return [[] for _ in range(num_questions)]
    rows = listed(evidence)
    if any(isinstance(row, (str, Mapping)) or _has_text(row) for row in rows):
        came = next(type(row).__name__ for row in rows if isinstance(row, (str, Mapping)) or _has_text(row))
        raise InvalidInputError(
            f"evidence holds a {came} where the passages of one question belong; give a list of passages per "
            "question, also for a single question: evidence=[[passage, ...]]"
        )
    if len(rows) != num_questions:
        raise InvalidInputError(
            f"got evidence for {len(rows)} questions and {num_questions} questions; give one list each"
        )
    return [[] if row is None else [_read_item(item) for item in listed(row)] for row in rows]


def _has_text(item: Any) -> bool:
    return any(hasattr(item, name) for name in TEXT_KEYS[:3])


def _read_item(item: Any) -> EvidenceItem:
    if isinstance(item, str):
        return EvidenceItem(item)
    if isinstance(item, Mapping):
        values: Mapping[str, Any] = {**{str(name).lower(): value for name, value in item.items()}, **item}
    elif _has_text(item):
        values = {name: getattr(item, name, None) for name in (*TEXT_KEYS[:3], "title", "score", "image")}
    else:
        raise InvalidInputError(
            f"evidence of type {type(item).__name__}: expected a string, a dict with 'text', or an object with .text"
        )
    text = next((values[name] for name in TEXT_KEYS if values.get(name) is not None), None)
    title, image = values.get("title"), values.get("image")
    has_words_elsewhere = isinstance(item, Mapping) and any(
        isinstance(item[name], str) for name in item.keys() - _FIELDS
    )
    if text is image is None and (title is None or has_words_elsewhere) and values.keys().isdisjoint(TEXT_KEYS):
        raise InvalidInputError(
            f"a passage has the keys {', '.join(map(repr, item)) or 'of an empty dictionary'}, and none that holds "
            f"its words; expected 'text' (or {', '.join(map(repr, TEXT_KEYS[1:]))}), and 'image' if it has one"
        )
    for name, words in (("text", text), ("title", title)):
        if words is not None and not isinstance(words, str):
            raise InvalidInputError(f"the {name} of a passage is of type {type(words).__name__}; expected a string")
    return EvidenceItem(text or title or "", _score(values.get("score")), image, (title or "") if text else "")


def _score(value: Any) -> float:
    try:
        score = float(value or 0.0)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise InvalidInputError(f"score={value!r} of a passage: expected a finite number, or none")
    return score


def chosen_passages(
    passages: Sequence[EvidenceItem], with_titles: bool, with_images: bool, drop_duplicates: bool
) -> list[int]:
    """Which passages of one question, best first, have something to read, each once with `drop_duplicates`.

    Passages are alike if their words are, whatever their case, blanks and Unicode form; where images are seen, one
    that has an image is like no other.

    >>> chosen_passages([EvidenceItem("A kite"), EvidenceItem(""), EvidenceItem("a  kite")], False, False, True)
    [0]
    """
    chosen, seen = [], set()
    for place, item in enumerate(passages):
        image = with_images and item.image is not None
        words = clean_text(without_controls(item.words(with_titles))).casefold()
        if not image and (not words or (drop_duplicates and words in seen)):
            continue
        seen.add(words)
        chosen.append(place)
    return chosen


def read_answers(answers: str | Sequence[str] | None, num_questions: int) -> list[str] | None:
    """One answer per question, or `None`; raises `InvalidInputError` if the numbers differ."""
    if answers is None:
        return None
    answers = listed(answers)
    for row, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise InvalidInputError(f"answer {row} is of type {type(answer).__name__}; expected a string")
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
