"""A passage, and the Arrow table that holds many: its columns, its rows as objects, its digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ..errors import InvalidInputError
from ..images import safe_image
from .row_spool import release_rows


TEXT_COLUMNS = ("source", "licence", "url", "revision", "title")
STANDARD_COLUMNS = ("id", "text", "image", *TEXT_COLUMNS)

# Images are `large_binary`: a `binary` array holds 2 GB at most.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("text", pa.large_string()),
        ("image", pa.large_binary()),
        *((name, pa.string()) for name in TEXT_COLUMNS),
        ("metadata", pa.large_string()),
    ]
)


_FEW_ROWS = 32  # are sooner found one by one than by looking at every chunk
_ROWS_COMPARED = 1024  # at once, images and all


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
    """The passages in several rows of a table, in the order asked for."""
    return [passage_from_row(row) for row in rows_at(table, rows).to_pylist()]


def rows_at(table: pa.Table, rows: Sequence[int] | np.ndarray) -> pa.Table:
    """Several rows of a table, in the order asked for; `take` would copy all chunks of the table into one first.

    >>> table = pa.concat_tables([pa.table({"id": ["wren", "robin"]}), pa.table({"id": ["owl"]})])
    >>> rows_at(table, [2, 0])["id"].to_pylist()
    ['owl', 'wren']
    """
    rows = np.asarray(rows, np.int64)
    if len(rows) <= _FEW_ROWS:
        return pa.concat_tables([table.slice(0, 0), *(table.slice(row, 1) for row in rows.tolist())])
    batches = table.to_batches()
    starts = np.cumsum([0, *map(len, batches)])
    owners = np.searchsorted(starts, rows, side="right") - 1
    parts = [batches[n].take(pa.array(rows[owners == n] - starts[n])) for n in np.unique(owners).tolist()]
    together = pa.Table.from_batches(parts, table.schema)  # the rows of the first batch, then those of the next
    return together.take(pa.array(np.argsort(np.argsort(owners, kind="stable"))))


def passage_from_row(row: dict[str, Any]) -> Passage:
    """The passage in one row of the table, as `to_pylist` gives it; the row is used up."""
    image_bytes, metadata = row.pop("image"), row.pop("metadata")
    return Passage(image_bytes=image_bytes, metadata=json.loads(metadata) if metadata else {}, **row)


def check_unique_ids(table: pa.Table) -> None:
    """Raises `InvalidInputError` if an id occurs twice in a table."""
    if len(pc.unique(table["id"])) == table.num_rows:
        return
    counts = pc.value_counts(table["id"])
    repeated = [entry["values"] for entry in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    raise InvalidInputError(
        f"Passage ids must be unique, but {len(repeated)} of them occur more than once: {first_few(repeated)}. Rename "
        "or drop the repeated rows."
    )


def first_few(ids: Sequence[str], most: int = 5) -> str:
    """The first ids of a list, for messages.

    >>> first_few(["a", "b", "c"], 2)
    "'a', 'b', ..."
    """
    return ", ".join(map(repr, ids[:most])) + (", ..." if len(ids) > most else "")


def ids_digest(table: pa.Table) -> str:
    """The SHA-256 over the ids of a table, in order: vectors that carry it belong to these rows."""
    lengths, contents = hashlib.sha256(), hashlib.sha256()  # apart, so that the chunks of the table do not matter
    for chunk in table["id"].cast(pa.large_string()).chunks:
        if len(chunk):
            _, places, content = chunk.buffers()
            offsets = np.frombuffer(places, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            lengths.update(np.diff(offsets).astype("<i8").data)
            contents.update(memoryview(content)[offsets[0] : offsets[-1]] if content else b"")
    return hashlib.sha256(lengths.digest() + contents.digest()).hexdigest()


def input_digest(table: pa.Table) -> str:
    """The SHA-256 over the texts and images of a table, in order: what an encoder was given.

    >>> table = pa.table({"text": ["wren", None], "image": [None, b"..."]})
    >>> input_digest(table) == input_digest(pa.concat_tables([table[:1], table[1:]]))
    True
    """
    digest = hashlib.sha256()
    for batch in table.select(["text", "image"]).to_batches(max_chunksize=1024):
        for text, image in zip(batch["text"], batch["image"], strict=True):
            for part in (text.as_buffer(), image.as_buffer()):
                # The length says where a part ends, so that no two knowledge bases run together to the same bytes.
                digest.update(b"none" if part is None else len(part).to_bytes(8, "little"))
                digest.update(b"" if part is None else part)
        release_rows()
    return digest.hexdigest()


def changed_rows(before: pa.Table, after: pa.Table) -> tuple[list[str], pa.Table]:
    """The ids of passages that are gone from a table or are other ones now, and the rows that are new or other ones.

    >>> rows = [{"id": "wren", "text": "small"}, {"id": "robin", "text": "red"}]
    >>> gone, new = changed_rows(pa.Table.from_pylist(rows), pa.Table.from_pylist([{"id": "wren", "text": "tiny"}]))
    >>> gone, new["id"].to_pylist()
    (['wren', 'robin'], ['wren'])
    """
    places = np.asarray(pc.fill_null(pc.index_in(after["id"], value_set=before["id"]), -1), np.int64)
    changed = differing_rows(before, places, after)
    kept = np.zeros(len(before), bool)
    kept[places[~changed]] = True
    return before["id"].filter(pa.array(~kept)).to_pylist(), after.filter(pa.array(changed))


def differing_rows(before: pa.Table, places: np.ndarray, after: pa.Table) -> np.ndarray:
    """Which rows of a table, bool (n,), say something else than those at several places (n,) of another table.

    A place of -1 stands for a row that the other table does not have.
    """
    differs: np.ndarray = places < 0
    for start in range(0, len(after), _ROWS_COMPARED):
        rows = start + np.flatnonzero(places[start : start + _ROWS_COMPARED] >= 0)
        old, new = rows_at(before, places[rows]), rows_at(after, rows)
        for name in after.column_names:
            both_missing = pc.and_(pc.is_null(old[name]), pc.is_null(new[name]))
            equal = pc.or_(both_missing, pc.fill_null(pc.equal(old[name], new[name]), False))
            differs[rows] |= ~np.asarray(equal)
    return differs
