"""Collators that take the columns of any data set by their names; rows are dictionaries."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from ...errors import InvalidInputError, UnsafeInputError
from ...images import safe_image, several
from ...model.processing_ravlm import RavlmProcessor
from .broken_images import OnError, blank_image, check_on_error
from .rows import TrainingRow, label_first


logger = logging.getLogger(__name__)

__all__ = ["AnswerCollator", "RetrievalCollator", "read_rows"]


@dataclass(frozen=True, kw_only=True)
class RetrievalCollator:
    """Batches of queries with their passages, for [`RavlmPreTrainer`]; also of images with their captions.

    Args:
        processor: Of the model.
        query_image, query_text: Columns of the query, one at least.
        passage_image, passage_text: Columns of its passage, one at least.
        negatives: Column with a list of hard negatives per row: texts, images, or dictionaries with `text` and
            `image`.
        label: Column that is equal where passages belong to the same queries (an entity, a page), beside passages with
            the same words and pixels, which always do.
        id: Column that names a row in messages.
        on_error: For images that cannot be used (see [`undecoded`]): `"raise"` an error, `"skip"` the row, or read a
            grey image (`"blank"`). A row that lacks its query or passage is skipped by `"skip"`, and else an error.

    Example:

    ```python
    collator = RetrievalCollator(processor=processor, query_image="image", passage_text="caption")
    RavlmPreTrainer(model, arguments, data_collator=collator, train_dataset=dataset).train()
    ```
    """

    processor: RavlmProcessor
    query_image: str | None = None
    query_text: str | None = None
    passage_image: str | None = None
    passage_text: str | None = None
    negatives: str | None = None
    label: str | None = None
    id: str | None = None
    on_error: OnError = "raise"

    def __post_init__(self):
        check_on_error(self.on_error)
        for side, columns in (
            ("query", (self.query_image, self.query_text)),
            ("passage", (self.passage_image, self.passage_text)),
        ):
            if not any(columns):
                raise InvalidInputError(f"name the column of the {side}: {side}_image=..., {side}_text=... or both")

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        sides = (self.query_image, self.query_text, self.passage_image, self.passage_text)
        return [name for name in (*sides, self.negatives, self.label, self.id) if name]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Inputs of `RavlmModel.forward`: the positives in the order of the queries, then all hard negatives.

        Labels are equal where passages belong together: by their words and pixels, and with `label=` by that column.
        Both are then also given apart, as `query_marks` and `passage_marks`, by which processes join their batches.

        Raises:
            InvalidInputError: If a column is missing, a row lacks its query or passage, or no row can be used.
            UnsafeInputError: If an image cannot be used.
        """
        read = read_rows(rows, self.columns, self._read, self.id, self.on_error)
        queries, positives, further, names, marks = zip(*read, strict=True)
        passages = [*positives, *chain(*further)]
        data: dict[str, Any] = {}
        for prefix, items in (("", queries), ("passage_", passages)):
            images, texts = map(list, zip(*items, strict=True))
            side = self.processor.for_retrieval(images=images, texts=texts)
            data |= {prefix + name: tensor for name, tensor in side.items()}
        contents = [_fingerprint(data, row) for row in range(len(passages))]
        entities = contents
        if self.label:
            own = [f"label {mark}" for mark in marks]
            of_content = dict(zip(contents[: len(own)], own, strict=True))
            # A hard negative has the label of the positive that it repeats, and else none but its own.
            entities = own + [of_content.get(content, content) for content in contents[len(own) :]]
            both = torch.stack([_numbers(entities), _numbers(contents)], dim=1)  # (N, 2)
            data |= {"query_marks": both[: len(queries)], "passage_marks": both}
        labels = _numbers(_joined_groups(entities, contents))
        data |= {"query_labels": labels[: len(queries)], "passage_labels": labels, "batch_ids": list(names)}
        return BatchFeature(data)

    def _read(self, row: Mapping[str, Any], name: Any) -> tuple:
        query = _image_and_text(row, self.query_image, self.query_text, "query", self.on_error)
        passage = _image_and_text(row, self.passage_image, self.passage_text, "positive passage", self.on_error)
        further = row[self.negatives] if self.negatives else None
        negatives = [self._negative(item) for item in (() if further is None else further)]
        return query, passage, negatives, name, row[self.label] if self.label else None

    def _negative(self, item: Any) -> tuple[Image.Image | None, str | None]:
        if isinstance(item, str):
            item = {"text": item}
        elif not isinstance(item, Mapping) or not {"text", "image"} & set(item):
            item = {"image": item}
        item = {"image": None, "text": None, **item}
        return _image_and_text(item, "image", "text", "hard negative", self.on_error)


@dataclass(frozen=True, kw_only=True)
class AnswerCollator:
    """Batches for a reader that learns to answer questions about images, or to describe them.

    Args:
        processor: Of the model.
        answer: Column of the answer or caption; of several answers the most frequent is learned, and of equals the
            first.
        image: Column of the image, or of a list of several, for readers that see images by themselves; questions
            without an image may stand in one batch with others.
        question: Column of the question.
        evidence: Column with the passages, best first, as the processor takes them.
        prompt: The question if there is no such column; by default the processor's own, which asks for a caption.
        id: Column that names a row in messages.
        on_error: As in [`RetrievalCollator`].

    Example:

    ```python
    AnswerCollator(processor=processor, image="image", question="question", answer="answers")
    AnswerCollator(processor=processor, image="image", answer="caption", prompt="Write a caption.")
    ```
    """

    processor: RavlmProcessor
    answer: str
    image: str | None = None
    question: str | None = None
    evidence: str | None = None
    prompt: str | None = None
    id: str | None = None
    on_error: OnError = "raise"

    def __post_init__(self):
        check_on_error(self.on_error)
        if self.image is None and self.question is None:
            raise InvalidInputError("name the column of the image or of the question: image=..., question=...")

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.image, self.question, self.answer, self.evidence, self.id) if name]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Inputs of the reader with `labels`.

        Raises:
            InvalidInputError: If a column is missing, a row lacks its question or answer, or no row can be used.
            UnsafeInputError: If an image cannot be used.
        """
        read = read_rows(rows, self.columns, self._read, self.id, self.on_error)
        return self.processor(
            images=[list(row.images) for row in read] if any(row.images for row in read) else None,
            text=None if read[0].question is None else [row.question for row in read],
            answers=[row.label for row in read],
            evidence=[list(row.evidence or ()) for row in read] if self.evidence else None,
        )

    def _read(self, row: Mapping[str, Any], name: Any) -> TrainingRow:
        shown = several(row[self.image]) if self.image else []
        if self.image and not shown and not self.question:
            raise InvalidInputError(f"no image: the column {self.image!r} is empty, and there is no question")
        images = tuple(_opened(image, self.on_error) for image in shown)
        question = _text(row[self.question]) if self.question else self.prompt
        if self.question and not question:
            raise InvalidInputError(f"no question: the column {self.question!r} is empty")
        answers = label_first(row[self.answer])
        if not answers:
            raise InvalidInputError(f"no answer: the column {self.answer!r} is empty")
        evidence = tuple(row[self.evidence] or ()) if self.evidence else None
        return TrainingRow(str(name), question=question, images=images, answers=tuple(answers), evidence=evidence)


def read_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    read: Callable[[Mapping[str, Any], Any], Any],
    id_column: str | None,
    on_error: OnError,
) -> list[Any]:
    """`read(row, name)` of every row of a batch; rows that it refuses are errors, or left out.

    Raises:
        InvalidInputError: If one of `columns` is missing, or every row is broken.
    """
    kept, faults = [], []
    for number, row in enumerate(rows):
        if missing := [column for column in columns if column not in row]:
            raise InvalidInputError(
                f"there is no column {missing[0]!r}: the data has {sorted(row)}. Name the right column in the "
                "collator, or set remove_unused_columns=False in the training arguments, if they took it away"
            )
        name = row[id_column] if id_column else number
        try:
            kept.append(read(row, name))
        except (InvalidInputError, UnsafeInputError) as error:
            if on_error != "skip":
                raise type(error)(f"row {name}: {error}") from error
            faults.append((name, error))
    if faults:
        logger.warning("left out %d of %d rows, first row %s: %s", len(faults), len(rows), *faults[0])
    if not kept:
        raise InvalidInputError(
            f"none of the {len(rows)} rows of the batch can be used; row {faults[0][0]}: {faults[0][1]}"
        )
    return kept


def _image_and_text(
    row: Mapping[str, Any], image_column: str | None, text_column: str | None, what: str, on_error: OnError
) -> tuple[Image.Image | None, str | None]:
    image = row[image_column] if image_column else None
    text = _text(row[text_column]) if text_column else None
    if image is None and not text:
        columns = [column for column in (image_column, text_column) if column]
        raise InvalidInputError(f"no {what}: the columns {columns} are empty")
    return None if image is None else _opened(image, on_error), text or None


def _opened(image: Any, on_error: OnError) -> Image.Image:
    try:
        return safe_image(image)
    except UnsafeInputError as error:
        if on_error != "blank":
            raise
        logger.warning("an image cannot be used; a grey one takes its place: %s", error)
        return blank_image()


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(f"expected a text, got {type(value).__name__}: {str(value)[:40]!r}")
    return (value or "").strip()


def _joined_groups(entities: Sequence[str], contents: Sequence[str]) -> list[str]:
    """One name for each item, equal where items are linked through a chain of equal entities or contents.

    >>> _joined_groups(["wren", "owl", "owl", "crow"], ["small", "small", "large", "black"])
    ['owl', 'owl', 'owl', 'crow']
    """
    before: dict[tuple[int, str], tuple[int, str]] = {}

    def first(node: tuple[int, str]) -> tuple[int, str]:
        while before.get(node, node) != node:
            node = before[node]
        return node

    for entity, content in zip(entities, contents, strict=True):
        low, high = sorted((first((0, entity)), first((1, content))))
        before[high] = low
    return [first((0, entity))[1] for entity in entities]


def _numbers(marks: Sequence[str]) -> torch.Tensor:
    """One whole number for each mark, equal where the marks are."""
    digests = [hashlib.blake2b(mark.encode(), digest_size=8).digest() for mark in marks]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])


def _fingerprint(data: Mapping[str, torch.Tensor], row: int) -> str:
    """A digest of a passage's words and pixels."""
    digest = hashlib.blake2b(digest_size=8)
    for name, mask in (("input_ids", "attention_mask"), ("pixel_values", "image_mask")):
        if f"passage_{name}" in data and bool(data[f"passage_{mask}"][row].any()):
            values = data[f"passage_{name}"][row]
            values = values[data[f"passage_{mask}"][row].bool()] if name == "input_ids" else values
            digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()
