"""What is asked in an evaluation and what comes back: questions with their accepted answers, and replies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from ..errors import InvalidInputError, UnsafeInputError
from ..images import safe_image, several
from ..images.sources import names_address
from ..metrics.answers import answer_texts
from ..retrieval.sources.checked_rows import SourceFault
from ..retrieval.sources.columns import SYNONYMS, find_column
from ..retrieval.sources.image_files import image_file, undecoded
from ..retrieval.sources.in_memory import framed_rows
from ..retrieval.sources.tables import table_records
from ..retrieval.sources.text_files import existing_file, plain_suffix
from ..sequences import is_column
from ..text import clean_text, plain_text


# What official files and habit call the columns of questions; in any case, and with blanks.
_SYNONYMS = {
    "id": ("question_id", "qid", "data_id"),
    "question": ("query", "q", "prompt"),
    "answers": ("answer", "answer_eval", "direct_answers", "targets", "target", "multiple_choice_answer"),
    "image": (*SYNONYMS["image"], "images"),
    "kind": ("question_type", "type"),
    "gold_ids": ("gold_id",),
    "cluster": (),
    "split": ("data_split",),
}
_OF_ENCYCLOPEDIC_VQA = {"dataset_name", "question_type", "encyclopedic_vqa_split"}


@dataclass(frozen=True)
class Question:
    """One question of a data set.

    Attributes:
        id: Unique in the data set; replies are kept by it.
        question: The words.
        answers: The accepted answers; for VQA accuracy, what each person said.
        image: Anything that the answering function takes, several of them in a list, or `None`.
        gold_ids: The passages that hold the answer, if that is known.
        kind: Results are also reported per kind; the metrics of InfoSeek and Encyclopedic-VQA read it as the type.
        cluster: Questions of one cluster (about one image, say) are drawn together in bootstrap intervals.
        split: Results are also reported per split, such as `"unseen_entity"`, with their harmonic mean.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    image: Any = None
    gold_ids: tuple[str, ...] = ()
    kind: str = ""
    cluster: str | None = None
    split: str = ""

    def digest(self) -> str:
        """Of all that a reply depends on, the image too. Not of `answers`: repaired ones may score old replies."""
        asked = json.dumps([self.id, self.question, self.gold_ids, self.kind], ensure_ascii=False)
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass") + _image_bytes(self.image)).hexdigest()[:16]


@dataclass(frozen=True)
class Reply:
    """What came back for one question.

    Attributes:
        text: The answer.
        confidence: The probability, 0..1, that the answer is right, as the model sees it; `None` if it does not say.
        evidence_ids, evidence_texts: What was found, read or not, best first.
        num_retrievals: How many searches were made.
        num_tokens: How many tokens the reader read and wrote; `None` if they were not counted.
        withheld: What would have been said, where a policy abstained and left `text` empty; `None` elsewhere.
        need: What a gate said before the search: the probability that it helps; `None` without a gate.
        error: Why the question could not be asked, where that was passed over; it counts as answered wrongly.
    """

    text: str
    confidence: float | None = None
    evidence_ids: tuple[str, ...] = ()
    evidence_texts: tuple[str, ...] = ()
    num_retrievals: int = 0
    num_tokens: int | None = None
    withheld: str | None = None
    need: float | None = None
    error: str | None = None


# Answers a batch of questions, in order.
AnswerFunction = Callable[[Sequence[Question]], Sequence[Reply | str]]


class QuestionRows(Sequence[Question]):
    """The questions in rows of a table, made when they are asked for. Made by `questions_from`."""

    def __init__(self, rows: Any, columns: Mapping[str, str], folder: Path | None = None) -> None:
        self._rows, self._columns, self._folder = undecoded(rows), columns, folder
        features = getattr(rows, "features", None) or {}
        # Numbers of classes, as `datasets` keeps them, become their names again.
        self._classes = {name: kind for name, kind in features.items() if hasattr(kind, "int2str")}
        self._is_encyclopedic = len(_OF_ENCYCLOPEDIC_VQA.intersection(_column_names(rows))) >= 2

    def without_images(self) -> QuestionRows:
        """The same questions, which then cost no decoding."""
        columns = {name: column for name, column in self._columns.items() if name != "image"}
        select = getattr(self._rows, "select_columns", None)  # of a `datasets.Dataset`
        return QuestionRows(select(self._kept(columns)) if select else self._rows, columns, self._folder)

    def _kept(self, columns: Mapping[str, str]) -> list[str]:
        return sorted({*columns.values(), *_OF_ENCYCLOPEDIC_VQA.intersection(_column_names(self._rows))})

    def first(self, number: int) -> QuestionRows:
        """The first so many questions.

        Raises:
            InvalidInputError: `number` is not positive.
        """
        if number < 1:
            raise InvalidInputError(f"Expected a positive number of questions; came: {number}.")
        places = range(min(number, len(self)))
        select = getattr(self._rows, "select", None)  # of a `datasets.Dataset`
        return QuestionRows(
            select(places) if select else [self._rows[place] for place in places], self._columns, self._folder
        )

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
        values = {
            name: self._value(row, column) for name, column in self._columns.items() if row.get(column) is not None
        }
        where = f"Row {place}"
        question = values.get("question")
        if not isinstance(question, str) or not clean_text(question, f"{where}: the question"):
            raise InvalidInputError(f"{where} has no question in the column {self._columns['question']!r}.")
        answers = _strings(values.get("answers"), f"{where}, column {self._columns['answers']!r}")
        if self._is_encyclopedic:
            answers = tuple(part.strip() for answer in answers for part in answer.split("|"))
        return Question(
            id=plain_text(str(values.get("id", place)), f"{where}: the id"),
            question=plain_text(question),
            answers=answers,
            image=self._image(values.get("image"), where),
            gold_ids=_strings(values.get("gold_ids", ()), f"{where}, gold ids"),
            kind=str(values.get("kind", "")),
            cluster=None if "cluster" not in values else str(values["cluster"]),
            split=str(values.get("split", "")),
        )

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        value, kind = row[column], self._classes.get(column)
        return kind.int2str(value) if kind is not None and isinstance(value, int) and value >= 0 else value

    def _image(self, image: Any, where: str) -> Any:
        """A path of a file of questions, found beside it; of a data set an image, if it can be decoded; or several."""
        if is_column(image):
            return [self._image(one, where) for one in several(image)] or None
        if self._folder is not None and isinstance(image, Mapping) and image.get("bytes") is None:
            image = image.get("path")
        if isinstance(image, Mapping):
            with suppress(UnsafeInputError):  # whoever asks the question says what is wrong
                return safe_image(image)
        if self._folder is None or not isinstance(image, str):
            return image
        path = Path(image)
        if path.is_absolute() or names_address(image):  # an address is refused where it would be opened
            return image
        return str(_beside(self._folder, image, where))


def _beside(folder: Path, name: str, where: str) -> Path:
    try:
        return image_file(folder, name)
    except ValueError:
        return folder / name  # whoever asks the questions wrote them, too


def questions_from(rows: Any, columns: Mapping[str, str] | None = None) -> QuestionRows:
    """Questions from dictionaries, a `datasets.Dataset`, a `DataFrame`, or a JSONL, JSON, CSV, TSV or Parquet file.

    Texts stay texts: `007`, `NA` and `1e5` in a CSV file are what they are. The official files of VQA, A-OKVQA,
    InfoSeek and Encyclopedic-VQA are read as they are; of several answers in one cell of a CSV file make a JSON list.

    An image is decoded only when its question is asked.

    Args:
        rows: See above. A relative `image` in a file is a path beside it.
        columns (`dict`, *optional*): Which column holds what: from the names of `Question` to those of the table, such
            as `{"answers": "reply", "id": "number"}`. By default the names are the same, in any case, or those that
            people use, such as `query` and `answer`; all but `question` and `answers` may be missing.

    Raises:
        InvalidInputError: A column is missing, or a name is not one of `Question`; both with what there is. Rows are
            checked when they are read.

    Example:

    >>> rows = [{"q": "Which colour is the sun?", "answers": ["yellow", "white"], "type": "colour"}]
    >>> questions_from(rows, {"question": "q", "kind": "type"})[0]
    Question(id='0', question='Which colour is the sun?', answers=('yellow', 'white'), image=None, gold_ids=(),
        kind='colour', cluster=None, split='')
    """
    folder = None
    if isinstance(rows, (str, os.PathLike)):
        folder = Path(rows).parent
        rows = _rows_of_file(Path(rows))
    rows = framed_rows(rows)
    known = Question.__dataclass_fields__
    asked = dict(columns or {})
    if unknown := sorted(set(asked) - set(known)):
        raise InvalidInputError(f"columns names {', '.join(unknown)}; a question has {', '.join(known)}.")
    there = _column_names(rows)
    if missing := sorted(column for column in asked.values() if column not in there):
        raise InvalidInputError(f"There is no column {', '.join(missing)}; there is {', '.join(there) or 'nothing'}.")
    found: dict[str, str] = {}
    for name in known:
        free = [column for column in there if column not in [*found.values(), *asked.values()]]
        if column := asked.get(name) or find_column(name, free, _SYNONYMS[name]):
            found[name] = column
    for name in ("question", "answers"):
        if name not in found:
            raise InvalidInputError(
                f"No column holds the {name}; there is {', '.join(there) or 'nothing'}. "
                f'Say which one: columns={{"{name}": ...}}.'
            )
    return QuestionRows(rows, found, folder)


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
    try:
        return tuple(plain_text(text, where) for text in answer_texts(value))
    except InvalidInputError as error:
        raise InvalidInputError(f"{where} holds {error}") from error


def _column_names(rows: Any) -> list[str]:
    return list(getattr(rows, "column_names", None) or {name: None for row in rows for name in row})


def _rows_of_file(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InvalidInputError(f"There is no file {path}. Expected a table of questions.")
    if plain_suffix(path) == ".json":
        return _json_rows(path)
    is_text = plain_suffix(path) in (".csv", ".tsv")
    rows: list[dict[str, Any]] = []
    for record in table_records(path):
        if isinstance(record, SourceFault):
            raise record.error
        rows.append({name: _cell(value) if is_text else value for name, value in record.values.items()})
    return rows


def _cell(value: Any) -> Any:
    """A cell of a text table: the text itself, or the strings of a JSON list in it."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            listed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return listed if listed and all(isinstance(item, str) for item in listed) else value
    return value


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON file: a list, or a list under the name that official files give it."""
    try:
        found = json.loads(existing_file(path).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{path} is not JSON ({error}). Expected a list of objects; .jsonl for lines."
        ) from None
    if isinstance(found, dict):
        parts = [
            found[key] for key in ("questions", "annotations", "data", "rows") if isinstance(found.get(key), list)
        ]
        if not parts:
            raise InvalidInputError(f"{path}: there is no list of questions; its keys are {list(found)}.")
        found = parts[0] if len(parts) == 1 else _joined(*parts[:2])
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InvalidInputError(f"{path}: expected a list of objects, one per question.")
    return found


def _joined(questions: list[Any], annotations: list[Any]) -> list[Any]:
    """VQA's questions with its annotations, by `question_id`."""
    of_question = {row.get("question_id"): row for row in annotations if isinstance(row, dict)}
    return [{**of_question.get(row.get("question_id"), {}), **row} for row in questions if isinstance(row, dict)]


def _image_bytes(image: Any) -> bytes:
    if image is None:
        return b""
    if is_column(image):
        return b"".join(hashlib.sha256(_image_bytes(one)).digest() for one in image)
    if isinstance(image, (str, Path)):
        # A pipe would block; `safe_image` refuses it, and what is not there, when the question is asked.
        return Path(image).read_bytes() if os.path.isfile(image) else b""
    if isinstance(image, Mapping):
        return _image_bytes(image.get("bytes") or image.get("path"))
    if isinstance(image, bytes):
        return image
    if hasattr(image, "tobytes"):
        return repr((getattr(image, "mode", None), getattr(image, "size", None))).encode() + bytes(image.tobytes())
    return repr(type(image)).encode()
