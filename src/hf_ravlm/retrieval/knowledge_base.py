"""Knows what is known: passages with their text, image, origin and licence, in a fixed order.

A `KnowledgeBase` is a list of `Passage` with unique ids, backed by one Arrow table. How passages are found is the
retriever's matter, how they are kept on disk the storage's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ..errors import InvalidInputError
from ..images import safe_image
from . import sources
from .passage_table import SCHEMA, OnError, check_unique_ids, table_from_rows


if TYPE_CHECKING:
    from datasets import Dataset
    from typing_extensions import Unpack


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
        title: A heading to show the reader.
        metadata: Everything else, as plain JSON values.
    """

    id: str
    text: str | None = None
    image_bytes: bytes | None = field(default=None, repr=False)
    source: str | None = None
    licence: str | None = None
    url: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def image(self) -> Image.Image | None:
        """The image, upright and in RGB, decoded when first asked for."""
        if self.image_bytes is None:
            return None
        return safe_image({"bytes": self.image_bytes, "path": f"image of passage {self.id!r}"})


class KnowledgeBase:
    """Passages in a fixed order, found by position or by id.

    The `from_...` methods read a source. They share these arguments:

    * `id_column`, `text_column`, `image_column`, `source_column`, `licence_column`, `url_column`, `title_column` name
      the columns of a table; the defaults are `"id"`, `"text"` and so on. A default column that a table lacks is
      taken as empty, a named one must exist. `id_column=None` numbers the rows. `"license"` is found as well.
    * `metadata_columns` lists the columns kept as metadata; `None` keeps all the others.
    * `on_error` says what happens to a passage with a broken image: `"raise"` stops; `"skip"` leaves it out, logs a
      warning and lists it in `skipped`.

    Args:
        table: An Arrow table with the schema of `hf_ravlm.retrieval.passage_table`; `None` for an empty one.
        skipped: Pairs of id and reason for the passages that were left out while reading.

    Example:

    ```python
    >>> from hf_ravlm.retrieval import KnowledgeBase
    >>> knowledge_base = KnowledgeBase.from_dicts(
    ...     [
    ...         {"id": "robin", "text": "The robin has an orange breast.", "licence": "CC0-1.0"},
    ...         {"id": "wren", "text": "The wren is small and loud.", "length_cm": 10},
    ...     ]
    ... )
    >>> knowledge_base
    KnowledgeBase(2 passages: 2 with text, 0 with image)
    >>> knowledge_base["wren"].metadata, knowledge_base[0].licence
    ({'length_cm': 10}, 'CC0-1.0')

    ```
    """

    def __init__(self, table: pa.Table | None = None, skipped: Sequence[tuple[str, str]] = ()) -> None:
        table = SCHEMA.empty_table() if table is None else table
        if not table.schema.equals(SCHEMA):
            raise InvalidInputError(
                f"A knowledge base needs the columns\n{SCHEMA}\nbut the table has\n{table.schema}\n"
                "Use one of the `KnowledgeBase.from_...` methods."
            )
        check_unique_ids(table)
        self.table = table
        self.skipped = list(skipped)

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[str, Any]], *, on_error: OnError = "raise") -> KnowledgeBase:
        """Reads dictionaries with the keys `id`, `text`, `image`, `source`, `licence`, `url`, `title`, `metadata`.

        Args:
            rows: The dictionaries. An `image` may be anything that `hf_ravlm.images.safe_image` takes. Other keys
                become metadata.
            on_error: See the class.

        Raises:
            InvalidInputError: If a row has no id or neither text nor image, if an id comes twice, or if there is
                no row.
            UnsafeInputError: If an image cannot be used.
        """
        return cls(*table_from_rows(sources.rows_from_dicts(rows), on_error))

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, *, on_error: OnError = "raise", **columns: Unpack[sources.ColumnNames]
    ) -> KnowledgeBase:
        """Reads a `datasets.Dataset`; images are taken as they are encoded, from a column of type `datasets.Image`.

        Args:
            dataset: One split.
            on_error: See the class.
            **columns: Column names, see the class.

        Raises:
            InvalidInputError: As `from_dicts`, and if a named column does not exist.
            UnsafeInputError: If an image cannot be used.
        """
        return cls(*table_from_rows(sources.rows_from_dataset(dataset, columns), on_error))

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, on_error: OnError = "raise") -> KnowledgeBase:
        """Reads a folder of images and texts, with all its sub-folders.

        An image becomes a passage, with the text of the `.txt` file of the same stem beside it. A `.txt` or `.md`
        file without an image becomes a passage of text. A `metadata.jsonl` or `metadata.csv` with a `file_name`
        column, as for the `imagefolder` of `datasets`, gives the images beside it text, title, licence and so on.
        The id is the path from the folder, without suffix; the source is the path itself.

        Args:
            folder: The folder. Names that begin with a dot are left out.
            on_error: See the class.

        Raises:
            InvalidInputError: If the folder does not exist or holds nothing to read.
            UnsafeInputError: If an image cannot be used, or a name or a link leads out of the folder.
        """
        return cls(*table_from_rows(sources.rows_from_folder(folder), on_error))

    @classmethod
    def from_jsonl(
        cls, path: str | os.PathLike[str], *, on_error: OnError = "raise", **columns: Unpack[sources.ColumnNames]
    ) -> KnowledgeBase:
        """Reads a file with one JSON object per line; an image is a path relative to the file's folder.

        Args:
            path: The file, in UTF-8.
            on_error: See the class.
            **columns: Column names, see the class.

        Raises:
            InvalidInputError: As `from_dicts`, and if a named column does not exist or a line is not JSON.
            UnsafeInputError: If an image cannot be used or its path leaves the file's folder.
        """
        return cls(*table_from_rows(sources.rows_from_jsonl(path, columns), on_error))

    @classmethod
    def from_csv(
        cls, path: str | os.PathLike[str], *, on_error: OnError = "raise", **columns: Unpack[sources.ColumnNames]
    ) -> KnowledgeBase:
        """Reads a CSV file with a header line; every value is text, an empty one is missing.

        Args, errors and image paths are those of `from_jsonl`.
        """
        return cls(*table_from_rows(sources.rows_from_csv(path, columns), on_error))

    @classmethod
    def from_parquet(
        cls, path: str | os.PathLike[str], *, on_error: OnError = "raise", **columns: Unpack[sources.ColumnNames]
    ) -> KnowledgeBase:
        """Reads a Parquet file; an image is encoded bytes, a `{"bytes", "path"}` struct, or a relative path.

        Args, errors and image paths are those of `from_jsonl`.
        """
        return cls(*table_from_rows(sources.rows_from_parquet(path, columns), on_error))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], subfolder: str = "knowledge_base") -> KnowledgeBase:
        """Reads the passages of a saved retriever, without its vectors and whatever encoder made them.

        Args:
            folder: A folder written by `RavlmRetriever.save_pretrained`, or the knowledge base inside it.
            subfolder: The name of the knowledge base in the folder.

        Raises:
            KnowledgeBaseNotFoundError: If there is no knowledge base.
            KnowledgeBaseCorruptError: If a stored passage file is damaged.
        """
        from .stored_knowledge import find_store, load_passages

        return cls(load_passages(find_store(folder, subfolder)))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        num_texts, num_images = (len(self) - self.table[name].null_count for name in ("text", "image"))
        return f"KnowledgeBase({len(self)} passages: {num_texts} with text, {num_images} with image)"

    def __iter__(self) -> Iterator[Passage]:
        for batch in self.table.to_batches(max_chunksize=256):
            yield from map(_passage_from_row, batch.to_pylist())

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self._row_of_id

    def __getitem__(self, key: int | str) -> Passage:
        if isinstance(key, str):
            if key not in self._row_of_id:
                raise KeyError(f"No passage has the id {key!r}; the knowledge base holds {len(self)} passages.")
            key = self._row_of_id[key]
        if not -len(self) <= key < len(self):
            raise IndexError(f"Position {key} is out of range; the knowledge base holds {len(self)} passages.")
        return self.passages([key % len(self)])[0]

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """Returns the passages at several positions, in the order asked for."""
        return [_passage_from_row(row) for row in self.table.take(pa.array(rows, pa.int64())).to_pylist()]

    @property
    def ids(self) -> list[str]:
        """The ids of all passages, in order."""
        return list(self._row_of_id)

    @cached_property
    def _row_of_id(self) -> dict[str, int]:
        return {passage_id: row for row, passage_id in enumerate(self.table["id"].to_pylist())}

    def text_lengths(self) -> list[int]:
        """The number of characters of every passage's text; 0 where there is none."""
        return list(pc.fill_null(pc.utf8_length(self.table["text"]), 0).to_pylist())


def _passage_from_row(row: dict[str, Any]) -> Passage:
    image_bytes, metadata = row.pop("image"), row.pop("metadata")
    return Passage(image_bytes=image_bytes, metadata=json.loads(metadata) if metadata else {}, **row)
