"""Rows of training data.

| key | what |
|---|---|
| `question` | the question, or `None` |
| `image` | anything that `safe_image` takes, several of them in a list, or `None`; searched with is the first |
| `answer` | the answer to learn |
| `answers` | all accepted answers; without an `answer` the most frequent is learned, see `label_first` |
| `gold_ids` | ids of the passages that hold the answer |
| `negative_ids` | passages to distract with, see `EvidenceMix` |
| `known` | `False` if the reader cannot answer without its gold passages, which are then never withheld |
| `exclude_ids` | passages that this row must not see, such as its own caption |
| `evidence` | passages to read instead of retrieved ones |
| `id` | a name for messages |

Of `question`, `image` and `answer` other names are known, too, in any case: `SYNONYMS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ...errors import InvalidInputError
from ...images import first_of, several
from ...metrics.answers import answer_texts
from ...retrieval import KnowledgeBase
from ...retrieval.sources.columns import SYNONYMS as COLUMNS_OF_PASSAGES
from ...retrieval.sources.columns import find_column
from ...retrieval.sources.image_files import undecoded
from ...text import clean_text, plain_text


ROW_NUMBER = "row_number"

SYNONYMS: dict[str, tuple[str, ...]] = {
    "question": ("query", "prompt"),
    "image": (*COLUMNS_OF_PASSAGES["image"], "images"),
    "answer": ("target", "multiple_choice_answer"),
    "answers": ("targets", "direct_answers"),
}


@dataclass(frozen=True)
class TrainingRow:
    """One row, under the names of the table above.

    Attributes:
        name: For messages: its id, or its place in the data set.
        number: Its place in the data set, for random draws; `None` if it has none.
        images: As the user gave them, or decoded: none, one or several.
        answers: Stripped, each once, the label first.
        columns: The user's, for messages.
    """

    name: str = "row ?"
    number: int | None = None
    question: str | None = None
    images: tuple[Any, ...] = ()
    answers: tuple[str, ...] = ()
    gold_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    exclude_ids: tuple[str, ...] = ()
    known: bool = True
    evidence: tuple[Any, ...] | None = None
    columns: tuple[str, ...] = ()

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> TrainingRow:
        """A row from a dictionary; a single id or answer is a list of one.

        Raises:
            InvalidInputError: If an answer is no text, or there is neither a question nor an image.

        >>> row = TrainingRow.parse({"id": "q7", "question": "what ?", "answers": ["a", "b", "b"], "gold_ids": 7})
        >>> row.name, row.label, row.answers, row.gold_ids
        ("'q7'", 'b', ('b', 'a'), ('7',))
        """
        row = named_columns(row)
        name = repr(row["id"]) if row.get("id") is not None else f"row {row.get(ROW_NUMBER, '?')}"
        columns = tuple(sorted(column for column in row if column != ROW_NUMBER))
        images = tuple(several(row.get("image")))
        if row.get("question") is None and not images:
            raise InvalidInputError(
                f"{name} has neither `question` nor `image`; it has {list(columns)}. Rename the columns, or "
                "pass a `data_collator` that knows their names, such as AnswerCollator."
            )
        evidence = row.get("evidence")
        try:
            answers = [*label_first(row.get("answer")), *label_first(row.get("answers"))]
            question = row.get("question")
            question = plain_text(question, "the question") if isinstance(question, str) else question
        except InvalidInputError as error:
            raise InvalidInputError(f"{name}: {error}") from error
        return cls(
            name=name,
            number=row.get(ROW_NUMBER),
            question=question,
            images=images,
            answers=tuple(dict.fromkeys(answers)),
            gold_ids=_ids(row.get("gold_ids")),
            negative_ids=_ids(row.get("negative_ids")),
            exclude_ids=_ids(row.get("exclude_ids")),
            known=bool(row.get("known", True)),
            evidence=None if evidence is None else tuple(evidence),
            columns=columns,
        )

    @property
    def image(self) -> Any:
        """The first image, which is searched with; `None` if there is none."""
        return first_of(self.images)

    @property
    def label(self) -> str:
        """The answer to learn.

        Raises:
            InvalidInputError: If the row has none.
        """
        if not self.answers:
            raise InvalidInputError(
                f"{self.name} has no answer to learn: expected `answer`, or a list `answers`; it has "
                f"{list(self.columns)}."
            )
        return self.answers[0]


def label_first(answers: Any) -> list[str]:
    """Accepted answers, each once and without empty ones, the label first: the most frequent, and of equals the first.

    Raises:
        InvalidInputError: If one is neither a text nor `None`, nor a dictionary of an official file that holds texts.

    >>> label_first(["red", "scarlet", "scarlet "]), label_first(["Oslo", "Kristiania"])
    (['scarlet', 'red'], ['Oslo', 'Kristiania'])
    >>> label_first([{"answer": "net", "answer_id": 3}])
    ['net']
    """
    listed = [answers] if isinstance(answers, (str, Mapping)) or not isinstance(answers, Iterable) else list(answers)
    if wrong := [answer for answer in listed if answer is not None and not isinstance(answer, (str, Mapping))]:
        raise InvalidInputError(f"expected a text, got {type(wrong[0]).__name__}: {str(wrong[0])[:40]!r}")
    texts = [plain_text(answer, "an answer").strip() for answer in answer_texts(listed)]
    counted = Counter(text for text in texts if clean_text(text))
    label = [answer for answer, _ in counted.most_common(1)]
    return list(dict.fromkeys([*label, *counted]))


def named_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row under the names of the table above, where it has others.

    >>> named_columns({"Query": "which bird ?", "img": "a.jpg", "id": 3})
    {'id': 3, 'question': 'which bird ?', 'image': 'a.jpg'}
    """
    found = _columns_of(tuple(row))
    rest = {key: value for key, value in row.items() if key not in found.values()}
    return {**rest, **{name: row[column] for name, column in found.items()}}


@lru_cache(maxsize=256)
def _columns_of(keys: tuple[str, ...]) -> dict[str, str]:
    found = {name: find_column(name, keys, others) for name, others in SYNONYMS.items()}
    return {name: column for name, column in found.items() if column is not None}


class NumberedRows(torch.utils.data.Dataset):
    """A data set whose rows have their place with them.

    >>> NumberedRows([{"question": "which bird ?"}])[0]
    {'question': 'which bird ?', 'row_number': 0}
    """

    def __init__(self, rows: Any) -> None:
        self.rows = undecoded(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], ROW_NUMBER: number}


class NumberedStream(torch.utils.data.IterableDataset):
    """A stream whose rows have their place in it with them.

    >>> next(iter(NumberedStream([{"question": "which bird ?"}])))
    {'question': 'which bird ?', 'row_number': 0}
    """

    def __init__(self, rows: Any) -> None:
        self.rows = undecoded(rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows):
            yield {**row, ROW_NUMBER: number}

    def set_epoch(self, epoch: int) -> None:
        """Hands the epoch on to a stream that shuffles by it."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


def is_stream(rows: Any) -> bool:
    """Whether rows come one after the other, without numbers; such a data set may have a `__getitem__` that fails."""
    return isinstance(rows, torch.utils.data.IterableDataset)


def numbered(rows: Any) -> NumberedRows | NumberedStream:
    """A data set or a stream whose rows have their place with them.

    Raises:
        InvalidInputError: If it is neither.
    """
    if is_stream(rows):
        return NumberedStream(rows)
    if hasattr(rows, "__getitem__") and hasattr(rows, "__len__"):
        return NumberedRows(rows)
    raise InvalidInputError(
        f"the rows came as a {type(rows).__name__}: expected a list, a data set with a length, or a stream "
        "(`datasets.IterableDataset`, `torch.utils.data.IterableDataset`)."
    )


def first_row(rows: Any) -> Mapping[str, Any]:
    """The first row of a data set or stream; an empty one if there is none."""
    if rows is None or is_stream(rows):
        return next(iter(rows or ()), {})
    return rows[0] if len(rows) else {}


def gold_ids_of(rows: Any) -> list[tuple[str, ...]] | None:
    """The gold ids of all rows of a data set; `None` if that takes decoding its images."""
    if isinstance(rows, NumberedRows):
        return gold_ids_of(rows.rows)
    if is_stream(rows):  # told when they come
        return None
    columns = getattr(rows, "column_names", None)
    if isinstance(columns, list):  # a `datasets.Dataset`
        return [_ids(value) for value in (rows["gold_ids"] if "gold_ids" in columns else [])]
    if isinstance(rows, (list, tuple)):
        return [_ids(row.get("gold_ids")) for row in rows]
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


def _ids(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (str(value),) if isinstance(value, (str, int)) else tuple(str(passage_id) for passage_id in value)
