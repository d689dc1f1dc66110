"""Knows what one row of training data says: a question, an image, accepted answers, and which passages are right.

| key | what |
|---|---|
| `question` | the words of the question, or `None` |
| `image` | anything that `safe_image` takes, or `None` |
| `answer` | the answer to learn |
| `answers` | all accepted answers; the first is learned where there is no `answer` |
| `gold_ids` | ids of the passages that hold the answer |
| `negative_ids` | passages to distract with; `EvidenceMix` |
| `known` | `False` where the reader cannot answer without its gold passages, which are then never withheld |
| `exclude_ids` | passages that this row must not see, such as its own caption |
| `evidence` | passages to read as they are, instead of retrieved ones |
| `id` | a name for messages |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...errors import InvalidInputError
from ...retrieval import KnowledgeBase
from .broken_images import undecoded


ROW_NUMBER = "row_number"


class NumberedRows(torch.utils.data.Dataset):
    """A data set whose rows know their place, so that an error can name them.

    >>> NumberedRows([{"question": "which bird ?"}])[0]
    {'question': 'which bird ?', 'row_number': 0}
    """

    def __init__(self, rows: Any) -> None:
        self.rows = undecoded(rows)  # a broken picture is the trainer's matter

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], ROW_NUMBER: number}


def name_of(row: Mapping[str, Any]) -> str:
    """How messages call a row: its id, or its place in the data set.

    >>> name_of({"id": "q7"}), name_of({"row_number": 3})
    ("'q7'", 'row 3')
    """
    return repr(row["id"]) if row.get("id") is not None else f"row {row.get(ROW_NUMBER, '?')}"


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """All accepted answers, the one to learn first.

    >>> answers_of({"answer": "Oslo", "answers": ["Kristiania", "Oslo"]})
    ['Oslo', 'Kristiania']
    """
    answers = row.get("answers")
    listed = [answers] if isinstance(answers, str) else list(answers if answers is not None else ())
    first = [row["answer"]] if row.get("answer") else []
    return list(dict.fromkeys([*first, *listed]))


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer to learn.

    Raises:
        InvalidInputError: If the row has none.
    """
    answers = answers_of(row)
    if not answers or not answers[0].strip():
        raise InvalidInputError(
            f"{name_of(row)} has no answer to learn: expected `answer`, or a list `answers`; it has {columns_of(row)}."
        )
    return answers[0]


def check_row(row: Mapping[str, Any]) -> None:
    """Refuses a row that asks nothing: its columns must have other names.

    Raises:
        InvalidInputError: If there is neither a question nor an image.
    """
    if row.get("question") is None and row.get("image") is None:
        raise InvalidInputError(
            f"{name_of(row)} has neither `question` nor `image`; it has {columns_of(row)}. Rename the columns, or "
            "pass a `data_collator` that knows their names, such as AnswerCollator."
        )


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row as its data set has them.

    >>> columns_of({"row_number": 3, "picture": None, "caption": "a wren"})
    ['caption', 'picture']
    """
    return sorted(name for name in row if name != ROW_NUMBER)


def ids_of(row: Mapping[str, Any], key: str = "gold_ids") -> list[str]:
    """Ids of passages in a row, as strings; a single one is a list of one.

    >>> ids_of({"gold_ids": 7}), ids_of({})
    (['7'], [])
    """
    value = row.get(key)
    if value is None:
        return []
    return [str(value)] if isinstance(value, (str, int)) else [str(passage_id) for passage_id in value]


def gold_ids_of(rows: Any) -> list[list[str]] | None:
    """The gold ids of all rows of a data set, without decoding its images; `None` where that cannot be done."""
    if isinstance(rows, NumberedRows):
        return gold_ids_of(rows.rows)
    columns = getattr(rows, "column_names", None)
    if isinstance(columns, list):  # a `datasets.Dataset`
        values = rows["gold_ids"] if "gold_ids" in columns else []
        return [ids_of({"gold_ids": value}) for value in values]
    if isinstance(rows, (list, tuple)):
        return [ids_of(row) for row in rows]
    return None


def check_gold_ids(gold_ids: Sequence[Sequence[str]], knowledge_base: KnowledgeBase) -> None:
    """Refuses gold passages that the knowledge base does not hold.

    Raises:
        InvalidInputError: With the missing ids and the rows that want them.

    >>> check_gold_ids([["wren"]], KnowledgeBase.from_dicts([{"id": "robin", "text": "red"}]))
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    hf_ravlm.errors.InvalidInputError: 1 of 1 gold ids are not in the knowledge base of 1 passages: 'wren' (row 0)...
    """
    wanted = {passage_id: row for row, ids in reversed(list(enumerate(gold_ids))) for passage_id in ids}
    missing = {passage_id: row for passage_id, row in wanted.items() if passage_id not in knowledge_base}
    if missing:
        shown = ", ".join(f"{passage_id!r} (row {row})" for passage_id, row in sorted(missing.items())[:5])
        raise InvalidInputError(
            f"{len(missing)} of {len(wanted)} gold ids are not in the knowledge base of {len(knowledge_base)} "
            f"passages: {shown}{', ...' if len(missing) > 5 else ''}. Add these passages, or train with the knowledge "
            "base that the ids come from."
        )
