"""What is asked in an evaluation and what comes back: questions with their accepted answers, and replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Question:
    """One question of a data set.

    Attributes:
        id: Unique in the data set; replies are kept by it.
        question: The words.
        answers: The accepted answers; for VQA accuracy, what each person said.
        image: Anything that the answering function takes, or `None`.
        gold_ids: The passages that hold the answer, if that is known.
        kind: Results are also reported per kind; the metrics of InfoSeek and Encyclopedic-VQA read it as the type.
        cluster: Questions of one cluster (about one image, say) are drawn together in bootstrap intervals.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    image: Any = None
    gold_ids: tuple[str, ...] = ()
    kind: str = ""
    cluster: str | None = None

    def digest(self) -> str:
        """Of all that a reply depends on, the image too. Not of `answers`: repaired ones may score old replies."""
        asked = json.dumps([self.id, self.question, self.gold_ids, self.kind], ensure_ascii=False)
        return hashlib.sha256(asked.encode() + _image_bytes(self.image)).hexdigest()[:16]


@dataclass(frozen=True)
class Reply:
    """What came back for one question.

    Attributes:
        text: The answer.
        confidence: The probability, 0..1, that the answer is right, as the model sees it; `None` if it does not say.
        evidence_ids, evidence_texts: What was read, best first.
        num_retrievals: How many searches were made.
        num_tokens: How many tokens the reader read and wrote; `None` if they were not counted.
        withheld: What would have been said, where a policy abstained and left `text` empty; `None` elsewhere.
        need: What a gate said before the search: the probability that it helps; `None` without a gate.
    """

    text: str
    confidence: float | None = None
    evidence_ids: tuple[str, ...] = ()
    evidence_texts: tuple[str, ...] = ()
    num_retrievals: int = 0
    num_tokens: int | None = None
    withheld: str | None = None
    need: float | None = None


# Answers a batch of questions, in order.
AnswerFunction = Callable[[Sequence[Question]], Sequence[Reply | str]]


class QuestionRows(Sequence[Question]):
    """The questions in rows of a table, made when they are asked for. Made by `questions_from`."""

    def __init__(self, rows: Any, columns: Mapping[str, str]) -> None:
        self._rows, self._columns = rows, columns

    def without_images(self) -> QuestionRows:
        """The same questions, which then cost no decoding."""
        columns = {name: column for name, column in self._columns.items() if name != "image"}
        select = getattr(self._rows, "select_columns", None)  # of a `datasets.Dataset`
        return QuestionRows(select(sorted(set(columns.values()))) if select else self._rows, columns)

    def first(self, number: int) -> QuestionRows:
        """The first so many questions.

        Raises:
            InvalidInputError: `number` is not positive.
        """
        if number < 1:
            raise InvalidInputError(f"Expected a positive number of questions; came: {number}.")
        places = range(min(number, len(self)))
        select = getattr(self._rows, "select", None)  # of a `datasets.Dataset`
        return QuestionRows(select(places) if select else [self._rows[place] for place in places], self._columns)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Question: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Question]: ...
    def __getitem__(self, place: int | slice) -> Question | Sequence[Question]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        row = self._rows[place]
        values = {name: row[column] for name, column in self._columns.items() if row.get(column) is not None}
        where = f"Row {place}"
        if not isinstance(values.get("question"), str) or not values["question"].strip():
            raise InvalidInputError(f"{where} has no question in the column {self._columns['question']!r}.")
        return Question(
            id=str(values.get("id", place)),
            question=values["question"],
            answers=_strings(values.get("answers"), f"{where}, column {self._columns['answers']!r}"),
            image=values.get("image"),
            gold_ids=_strings(values.get("gold_ids", ()), f"{where}, gold ids"),
            kind=str(values.get("kind", "")),
            cluster=None if "cluster" not in values else str(values["cluster"]),
        )


def questions_from(rows: Any, columns: Mapping[str, str] | None = None) -> QuestionRows:
    """Questions from a `datasets.Dataset`, a list of dictionaries, or a path to a file with one JSON object per line.

    An image is decoded only when its question is asked.

    Args:
        rows: See above. A relative `image` in a file is a path beside it.
        columns (`dict`, *optional*): Which column holds what: from the names of `Question` to those of the table, such
            as `{"answers": "answer_eval", "id": "data_id"}`. By default the names are the same; all but `question` and
            `answers` may be missing.

    Raises:
        InvalidInputError: A column is missing, or a name is not one of `Question`; both with what there is. Rows are
            checked when they are read.

    Example:

    >>> rows = [{"q": "Which colour is the sun?", "answers": ["yellow", "white"], "type": "colour"}]
    >>> questions_from(rows, {"question": "q", "kind": "type"})[0]
    Question(id='0', question='Which colour is the sun?', answers=('yellow', 'white'), image=None, gold_ids=(),
        kind='colour', cluster=None)
    """
    if isinstance(rows, (str, Path)):
        rows = _read_json_lines(Path(rows))
    known = Question.__dataclass_fields__
    asked = dict(columns or {})
    if unknown := sorted(set(asked) - set(known)):
        raise InvalidInputError(f"columns names {', '.join(unknown)}; a question has {', '.join(known)}.")
    there = list(getattr(rows, "column_names", None) or {name: None for row in rows for name in row})
    if missing := sorted(column for column in asked.values() if column not in there):
        raise InvalidInputError(f"There is no column {', '.join(missing)}; there is {', '.join(there) or 'nothing'}.")
    found = {name: asked.get(name, name) for name in known if asked.get(name, name) in there}
    for name in ("question", "answers"):
        if name not in found:
            raise InvalidInputError(
                f"No column holds the {name}; there is {', '.join(there) or 'nothing'}. "
                f'Say which one: columns={{"{name}": ...}}.'
            )
    return QuestionRows(rows, found)


def check_questions(questions: Iterable[Question]) -> list[Question]:
    """Returns the questions without their images, after a look at their ids and answers.

    Raises:
        InvalidInputError: There is none, two have one id, or one has no answer.
    """
    kept: dict[str, Question] = {}
    for question in questions.without_images() if isinstance(questions, QuestionRows) else questions:
        if question.id in kept:
            raise InvalidInputError(
                f"Two questions have the id {question.id!r}. Results are kept by id; make it unique."
            )
        if not question.answers:
            raise InvalidInputError(f"Question {question.id!r} has no accepted answer, so nothing could be right.")
        kept[question.id] = replace(question, image=None)
    if not kept:
        raise InvalidInputError("There is no question to evaluate.")
    return list(kept.values())


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        raise InvalidInputError(f"{where} is empty; expected one or more strings.")
    values = [value] if isinstance(value, (str, int, float)) else list(value)
    if wrong := [item for item in values if not isinstance(item, (str, int, float)) or isinstance(item, bool)]:
        raise InvalidInputError(f"{where} holds {wrong[0]!r}; expected a string or a list of strings.")
    return tuple(map(str, values))


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InvalidInputError(f"There is no file {path}. Expected one with a JSON object per line.")
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidInputError(f"{path}, line {number}, is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise InvalidInputError(f"{path}, line {number}, is not a JSON object.")
            if isinstance(row.get("image"), str):
                row["image"] = str(path.parent / row["image"])
            rows.append(row)
    return rows


def _image_bytes(image: Any) -> bytes:
    if image is None:
        return b""
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    if hasattr(image, "tobytes"):
        return repr((getattr(image, "mode", None), getattr(image, "size", None))).encode() + bytes(image.tobytes())
    return repr(type(image)).encode()
