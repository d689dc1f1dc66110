"""Batches for classifiers: images with their classes, and with their neighbours; questions with one of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.feature_extraction_utils import BatchFeature

from ...errors import InvalidInputError
from ...model.heads.neighbors import NO_NEIGHBOR
from ...model.processing_ravlm import RavlmProcessor
from ...retrieval import RavlmRetriever
from .rows import TrainingRow


@dataclass(frozen=True, kw_only=True)
class ClassificationCollator:
    """Batches of images with their classes, for training an encoder with its head.

    Args:
        processor: Of the model.
        labels: The names of the classes, in the order of the head.
        image, label: Columns; a label is a name, or the number of one.

    Example:

    ```python
    collator = ClassificationCollator(processor=processor, labels=list(model.config.label2id))
    Trainer(model, arguments, data_collator=collator, train_dataset=dataset).train()
    ```
    """

    processor: RavlmProcessor
    labels: Sequence[str]
    image: str = "image"
    label: str = "label"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        pixels = self.processor.for_retrieval(images=[row[self.image] for row in rows])["pixel_values"]
        return BatchFeature({"pixel_values": pixels, "labels": class_numbers(rows, self.labels, self.label)})


class RowsWithNeighbors(Dataset):
    """Vectors of images, their classes, and the labelled entries nearest to each, all found once.

    For training a head, and how much neighbours count, on an encoder that stays as it is: no image is looked at twice.
    An image that is an entry itself (by its `id`) is not its own neighbour.

    Args:
        rows: With the columns `image`, `label`, and `id` where they are entries.
        labels: The names of the classes, in the order of the head.
        retriever: Its encoder is that of the model; its entries have these labels.
        k: Neighbours of each image.
        image, label, id: Other names of the columns.

    Raises:
        InvalidInputError: If a label is no class, of a row or of an entry.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        retriever: RavlmRetriever,
        k: int,
        image: str = "image",
        label: str = "label",
        id: str = "id",
    ) -> None:
        numbers = class_numbers(rows, labels, label)
        number_of = {name: place for place, name in enumerate(labels)}
        entries = retriever.labels()
        counts = dict(zip(entries.names, entries.counts.tolist(), strict=True))
        if unknown := [name for name in entries.names if name not in number_of]:
            raise InvalidInputError(
                f"{len(unknown)} labels of entries are no classes: {unknown[:3]}. Put them into the head, or leave "
                "their entries out."
            )
        vectors = retriever.encoder.encode_queries([row[image] for row in rows], None)
        found = retriever.nearest(vectors, k + 1)
        self.items = []
        for row, vector, number, nearest in zip(rows, vectors, numbers, found, strict=True):
            others = [entry for entry in nearest if entry.id != str(row.get(id))][:k]
            names = [str(entry.metadata["label"]) for entry in others]
            missing = k - len(others)
            self.items.append(
                {
                    "image_embeds": torch.from_numpy(vector.copy()),
                    "labels": number,
                    "neighbor_scores": torch.tensor([entry.score for entry in others] + [0.0] * missing),
                    "neighbor_labels": torch.tensor([number_of[name] for name in names] + [NO_NEIGHBOR] * missing),
                    "neighbor_counts": torch.tensor([counts[name] for name in names] + [1] * missing),
                }
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self.items[number]


def class_numbers(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], column: str) -> torch.Tensor:
    """The classes of rows as numbers `(n,)`.

    Raises:
        InvalidInputError: If a row has none, or one that is not among `labels`.

    >>> class_numbers([{"label": "wren"}, {"label": 0}], ["robin", "wren"], "label").tolist()
    [1, 0]
    """
    number_of = {name: place for place, name in enumerate(labels)}
    found = []
    for place, row in enumerate(rows):
        given = row.get(column)
        number = given if isinstance(given, int) and 0 <= given < len(labels) else number_of.get(given)
        if number is None:
            raise InvalidInputError(
                f"row {place} has the label {given!r} in {column!r}: expected one of the {len(labels)} classes "
                f"({', '.join(map(str, labels[:5]))}, ...), or its number"
            )
        found.append(number)
    return torch.tensor(found)


@dataclass(frozen=True, kw_only=True)
class ClosedAnswerCollator:
    """Batches for a head over a closed set of answers: prompts with what the retriever finds, and the right answers.

    Rows are those of `hf_ravlm.training.batches.rows`. A row none of whose answers is in the set teaches nothing.

    Args:
        processor: Of the model.
        labels: The answers, in the order of the head.
        retriever: Finds the evidence; `None` reads none.
        k: Passages of each question.
        soft: Whether every accepted answer is right as far as the share of people who gave it, as in VQA v2; else the
            first is the right one.

    Example:

    ```python
    collator = ClosedAnswerCollator(processor=processor, labels=list(model.config.label2id), retriever=retriever)
    Trainer(model, arguments, data_collator=collator, train_dataset=rows).train()
    ```
    """

    processor: RavlmProcessor
    labels: Sequence[str]
    retriever: RavlmRetriever | None = None
    k: int = 4
    soft: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        parsed = [TrainingRow.parse(row) for row in rows]
        images = [row.image for row in parsed]
        shown = None if all(image is None for image in images) else images
        asked = [row.question for row in parsed]
        evidence = None if self.retriever is None else self.retriever.retrieve(shown, asked, k=self.k)
        inputs = self.processor(images=shown, text=asked, evidence=evidence)
        inputs["labels"] = self._soft(rows) if self.soft else self._first(parsed)
        return inputs

    def _first(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        number_of = {name: place for place, name in enumerate(self.labels)}
        known = [[number_of[answer] for answer in row.answers if answer in number_of] for row in rows]
        return torch.tensor([places[0] if places else NO_NEIGHBOR for places in known])

    def _soft(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        number_of = {name: place for place, name in enumerate(self.labels)}
        scores = torch.zeros(len(rows), len(self.labels))
        for row, given in enumerate(rows):
            answers = [*(given.get("answers") or [given.get("answer")])]
            for answer in set(answers) & set(number_of):
                scores[row, number_of[answer]] = min(answers.count(answer) / min(3, len(answers)), 1.0)
        return scores
