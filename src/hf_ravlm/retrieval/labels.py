"""The labels of entries: which classes a knowledge base holds, how many entries each has, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InvalidInputError
from .passage import first_few
from .ranking.filters import matching_rows
from .store.state import KnowledgeState


LABEL_KEY = "label"


@dataclass(frozen=True)
class Labels:
    """The classes of labelled entries.

    Attributes:
        names: Of the `C` classes, in the order in which they come first.
        classes: Shape (n,), the class of every entry.
        vectors: Shape (n, D), the unit vectors of the entries.
    """

    names: list[str]
    classes: np.ndarray
    vectors: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """How many entries every class has, (C,)."""
        found: np.ndarray = np.bincount(self.classes, minlength=len(self.names))
        return found

    @cached_property
    def means(self) -> np.ndarray:
        """The directions of the classes, (C, D): of each the mean of its entries, made a unit vector."""
        sums = np.zeros((len(self.names), self.vectors.shape[1]), np.float64)
        np.add.at(sums, self.classes, self.vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(lengths, 1e-12), np.float32)


def labels_of(knowledge: KnowledgeState, key: str = LABEL_KEY, where: Mapping[str, Any] | None = None) -> Labels:
    """The labels of all entries that are alive and satisfy `where`.

    Args:
        knowledge: One state of a knowledge base.
        key: Of the metadata.
        where: Conditions, as of `hf_ravlm.retrieval.ranking.filters`.

    Raises:
        InvalidInputError: If there is no entry, one has no label, or a label is no text and no whole number.
    """
    chosen = knowledge.alive
    if where is not None:
        chosen = chosen & matching_rows(knowledge.table, where, knowledge.decoded_metadata)
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        raise InvalidInputError("No labelled entry is left to compare with. Add some, or ask for others by `where=`.")
    metadata = knowledge.decoded_metadata
    if key not in metadata.column_names:
        raise InvalidInputError(
            f"No entry of this knowledge base has {key!r} in its metadata: it seems to be made of passages, not of "
            "labelled images. Give every entry a label, or name the key that holds it (`label_key=`). A folder with "
            'one sub-folder per class is read by `load_dataset("imagefolder")` and '
            "`KnowledgeBase.from_dataset(..., id_column=None)`."
        )
    column = metadata[key].combine_chunks().take(pa.array(rows))
    names = texts_of(column, key)
    if names.null_count:
        ids = knowledge.table["id"].take(pa.array(rows)).filter(pc.is_null(names)).to_pylist()
        raise InvalidInputError(
            f"{len(ids)} of {len(rows)} entries have no {key!r}: {first_few(ids)}. Give them one (`update`), remove "
            "them, or leave them out by `where=`."
        )
    encoded = pc.dictionary_encode(names)
    return Labels(encoded.dictionary.to_pylist(), np.asarray(encoded.indices), knowledge.index.vectors[rows])


def texts_of(column: pa.Array, key: str) -> pa.Array:
    """Labels as texts; whole numbers are written out.

    Raises:
        InvalidInputError: If they are of another type.

    >>> texts_of(pa.array([7, None]), "label").to_pylist()
    ['7', None]
    """
    if pa.types.is_null(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    raise InvalidInputError(f"{key!r} holds values of the type {column.type}. Expected the name of a class per entry.")
