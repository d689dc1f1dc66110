"""What training looks up about the passages of a retriever: rows by id, modality, entity, texts, image hashes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ...errors import InvalidInputError
from ...retrieval import RavlmRetriever
from ...retrieval.passage import rows_at
from .leakage import image_hash


_ENTITY_COLUMNS = ("source", "licence", "url", "revision", "title")


class PassageView:
    """The passages of a retriever as they are now; rows are those of its `knowledge_base` and `vectors`.

    Args:
        retriever: With the passages.
        entity: The column that says what a passage is about, such as `"title"`, or `"metadata.<key>"`.

    Raises:
        InvalidInputError: If there is no such column.
    """

    def __init__(self, retriever: RavlmRetriever, entity: str = "title") -> None:
        if entity not in _ENTITY_COLUMNS and not entity.startswith("metadata."):
            raise InvalidInputError(f"entity={entity!r}: expected one of {list(_ENTITY_COLUMNS)} or 'metadata.<key>'.")
        self.retriever, self.entity = retriever, entity
        self.knowledge_base, self.vectors = retriever.knowledge_base, retriever.vectors
        self._image_hashes: dict[int, int | None] = {}

    def __len__(self) -> int:
        return len(self.knowledge_base)

    def ids(self, rows: Sequence[int]) -> list[str]:
        """The ids in some rows."""
        return list(rows_at(self.knowledge_base.table.select(["id"]), rows)["id"].to_pylist())

    def rows(self, ids: Sequence[str]) -> list[int]:
        """The rows of some ids, in their order, without those that are not there."""
        found = map(self.knowledge_base.row_of, ids)
        return [row for row in found if row is not None]

    @cached_property
    def modality(self) -> np.ndarray:
        """1 for text, 2 for image, 3 for both, `(N,)`."""
        text, image = (self.knowledge_base.table[name].is_valid().to_numpy() for name in ("text", "image"))
        return np.asarray(text + 2 * image)

    @cached_property
    def entities(self) -> np.ndarray:
        """A number for what each passage is about, -1 for nothing, `(N,)`."""
        table = self.knowledge_base.table
        if self.entity.startswith("metadata."):
            key = self.entity.removeprefix("metadata.")
            texts = (text.as_py() for text in table["metadata"])
            values = (json.loads(text).get(key) if text else None for text in texts)
        else:
            values = (value.as_py() for value in table[self.entity])
        numbers: dict[str, int] = {}
        found = (-1 if value is None else numbers.setdefault(str(value), len(numbers)) for value in values)
        return np.fromiter(found, np.int64, len(table))

    @cached_property
    def rows_of_entity(self) -> dict[int, np.ndarray]:
        """The rows of every entity."""
        order = np.argsort(self.entities, kind="stable")
        values, starts = np.unique(self.entities[order], return_index=True)
        return {
            int(value): rows for value, rows in zip(values, np.split(order, starts[1:]), strict=True) if value >= 0
        }

    def texts(self, rows: Sequence[int]) -> list[str | None]:
        """The texts in some rows."""
        return list(rows_at(self.knowledge_base.table.select(["text"]), rows)["text"].to_pylist())

    def image_hashes(self, rows: Sequence[int]) -> list[int | None]:
        """`image_hash` of the images in some rows, `None` where there is none; each is decoded once."""
        new = [row for row in dict.fromkeys(rows) if row not in self._image_hashes]
        with_image = [row for row in new if self.modality[row] & 2]
        self._image_hashes.update(dict.fromkeys(new))
        for row, passage in zip(with_image, self.knowledge_base.passages(with_image), strict=True):
            self._image_hashes[row] = image_hash(passage.image)
        return [self._image_hashes[row] for row in rows]
