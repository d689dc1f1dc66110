"""Knows what one piece of knowledge is, and how it is read from a row of the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
from PIL import Image

from ..images import safe_image


@dataclass(frozen=True)
class Passage:
    """One piece of knowledge: a text, an image, or both.

    Attributes:
        id: Unique in its knowledge base.
        text: The text, or `None`.
        image_bytes: The encoded image (JPEG, PNG, ...), or `None`; `image` decodes it.
        source: Where the passage comes from, such as a file or a collection.
        licence: Its licence, such as `"CC-BY-SA-4.0"`.
        url: A page to show the reader.
        revision: Which state of the source it was taken from, such as the revision of a wiki page.
        title: A heading to show the reader.
        metadata: Everything else, as plain JSON values.
    """

    id: str
    text: str | None = None
    image_bytes: bytes | None = field(default=None, repr=False)
    source: str | None = None
    licence: str | None = None
    url: str | None = None
    revision: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def image(self) -> Image.Image | None:
        """The image, upright and in RGB, decoded when first asked for."""
        if self.image_bytes is None:
            return None
        return safe_image({"bytes": self.image_bytes, "path": f"image of passage {self.id!r}"})


def passages_at(table: pa.Table, rows: Sequence[int]) -> list[Passage]:
    """Returns the passages in several rows of a table, in the order asked for."""
    return [passage_from_row(row) for row in table.take(pa.array(rows, pa.int64())).to_pylist()]


def passage_from_row(row: dict[str, Any]) -> Passage:
    """Returns the passage in one row of the table, as `to_pylist` gives it; the row is used up."""
    image_bytes, metadata = row.pop("image"), row.pop("metadata")
    return Passage(image_bytes=image_bytes, metadata=json.loads(metadata) if metadata else {}, **row)
