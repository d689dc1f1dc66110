"""Passages with their text, image, origin and licence, in a fixed order, backed by one Arrow table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InvalidInputError
from ..saving.safe_paths import at_home
from ..text import plain_text
from .hub.download import store_folder
from .id_places import IdPlaces
from .passage import SCHEMA, STANDARD_COLUMNS, Passage, check_unique_ids, passage_from_row, passages_at
from .sources.checked_rows import OnError, SkippedItem, SourceItem, table_from_rows
from .sources.chunking import Chunking, chunked_rows
from .sources.columns import ColumnNames
from .sources.folder import rows_from_folder
from .sources.image_files import ImageRoot
from .sources.in_memory import framed_rows, row_from_dict, rows_from_dataset, rows_from_dicts, standard_keys
from .sources.pdf.rows import Pages
from .sources.pdf_files import Files, rows_from_pdf_files
from .sources.tables import rows_from_csv, rows_from_jsonl, rows_from_parquet
from .store.loading import load_passages
from .store.saving import find_store


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from typing_extensions import Unpack


class ReadingOptions(TypedDict, total=False):
    """How any source is read; see `KnowledgeBase`."""

    chunking: Chunking | None
    on_error: OnError
    report_file: str | os.PathLike[str] | None


class TableOptions(ReadingOptions, ColumnNames, total=False):
    """How a table is read, and which of its columns holds what; see `KnowledgeBase`."""


class FileOptions(TableOptions, total=False):
    """How a file of a table is read, and where its images may lie; see `KnowledgeBase`."""

    image_root: ImageRoot


class KnowledgeBase:
    """Passages in a fixed order, found by position or by id.

    The `from_...` methods read a source as a stream; the functions of `hf_ravlm.corpora` read WordNet, ConceptNet and
    Wikipedia. These are their common `**options`; the names of columns are for tables and data sets alone:

    * `chunking=None` cuts long texts into several passages, see `hf_ravlm.Chunking`: passage `"12-3"` is the fourth
      chunk of `"12"`, with its title, url, licence and metadata. `None` takes texts as they are.
    * `on_error="raise"` says what happens to an item that cannot be used: a line that is not JSON, a row without id or
      with neither text nor image, a text over 64 KiB, a broken image, a damaged page, an id that comes again.
      `"raise"` stops; `"skip"` leaves it out, logs a warning and lists it in `skipped`; `"keep_text"` does likewise,
      but a passage whose image alone is missing or broken keeps its text. A file that is missing, cut or
      of another kind stops in either case.
    * `report_file=None`, with `on_error="skip"` or `"keep_text"`, is a file to which the items left out are written as
      they are met: JSON lines with `where`, `id` and `reason`.
    * `id_column`, `text_column`, `image_column`, `source_column`, `licence_column`, `url_column`, `revision_column`,
      `title_column` name the columns of a table; the defaults are `"id"`, `"text"` and so on. A default column that a
      table lacks is taken as empty, a named one must exist. `id_column=None` numbers the rows. Names are found in any
      case and with blanks around them, and so are `license`, for the text `caption`, `description`, `content`,
      `page_content`, `body`, for the image `image_path`, `file_name`, `img`, `picture`, and for the title `name` and
      `label`, which stay in the metadata, too.
    * `metadata_columns=None` lists the columns kept as metadata; `None` keeps all the others.
    * `numeric_columns=()` lists those of them whose texts are numbers, so that `{"min": ..., "max": ...}` finds them.
      What is no number (`"3,5"`) is an item that cannot be used.
    * `image_root=None`, for tables and folders, is a folder, or several, under which images may lie beside the folder
      of the source: relative paths are looked up there as well, and absolute paths and links may lead there.

    Strings pass the gate of `hf_ravlm.text`: one Unicode form, no control characters, nothing that nobody sees.

    All of them raise `InvalidInputError` if an item or a column cannot be used or there is nothing to read, and
    `UnsafeInputError` if an image cannot be used or its path leads out of the folder of the source.

    Args:
        table: An Arrow table with the schema of `hf_ravlm.retrieval.passage`; `None` for an empty one.
        skipped: The items that were left out while reading, as `(id, reason, where)`.

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

    def __init__(self, table: pa.Table | None = None, skipped: Sequence[SkippedItem] = ()) -> None:
        table = SCHEMA.empty_table() if table is None else table
        if not isinstance(table, pa.Table):
            raise InvalidInputError(
                f"A knowledge base is made of an Arrow table, and this is a {type(table).__name__}: "
                "`KnowledgeBase.from_dicts` reads a list of dictionaries, and the other `from_...` methods files."
            )
        if not table.schema.equals(SCHEMA):
            raise InvalidInputError(
                f"A knowledge base needs the columns\n{SCHEMA}\nbut the table has\n{table.schema}\n"
                "Use one of the `KnowledgeBase.from_...` methods."
            )
        check_unique_ids(table)
        self.table = table
        self.skipped = list(skipped)

    @classmethod
    def _read(
        cls,
        rows: Iterable[SourceItem],
        *,
        chunking: Chunking | None = None,
        on_error: OnError = "raise",
        report_file: str | os.PathLike[str] | None = None,
    ) -> KnowledgeBase:
        rows = rows if chunking is None else chunked_rows(rows, chunking)
        return cls(*table_from_rows(rows, on_error, report_file))

    @classmethod
    def _read_table(cls, rows_of: Callable[..., Iterable[SourceItem]], options: Mapping[str, Any]) -> KnowledgeBase:
        reading = {name: value for name, value in options.items() if name in ReadingOptions.__annotations__}
        columns = {name: value for name, value in options.items() if name not in reading}
        where = {"image_root": columns.pop("image_root")} if "image_root" in columns else {}
        return cls._read(rows_of(columns, **where), **reading)

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[str, Any]], **options: Unpack[ReadingOptions]) -> KnowledgeBase:
        """Reads dictionaries with the keys `id`, `text`, `image`, `source`, `licence`, `url`, `revision`, `title`.

        Args:
            rows: The dictionaries, or a `DataFrame` of pandas. An `image` may be anything that
                `hf_ravlm.images.safe_image` takes. A dictionary under `metadata`, and all other keys, become metadata.
            **options: As of the class; so are the errors.
        """
        return cls._read(rows_from_dicts(rows), **options)

    @classmethod
    def from_dataset(cls, dataset: Dataset | IterableDataset, **options: Unpack[TableOptions]) -> KnowledgeBase:
        """Reads a `datasets.Dataset`, or a streamed `datasets.IterableDataset`.

        Images are taken as they are encoded, from a column of type `datasets.Image`.

        Args:
            dataset: One split. Of a stream that does not know its columns the first row counts; its images may be
                `PIL` images or encoded bytes.
            **options: As of the class; so are the errors.
        """
        return cls._read_table(partial(rows_from_dataset, dataset), options)

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        image_root: ImageRoot = None,
        pages: Pages = "both",
        **options: Unpack[ReadingOptions],
    ) -> KnowledgeBase:
        """Reads a folder of images, texts and PDF files, with all its sub-folders.

        An image becomes a passage, with the texts of the files of the same stem beside it: `.txt`, `.md`, `.caption`,
        and `.json` with an object such as `{"text": ..., "title": ...}`. A `.txt` or `.md` file without an image
        becomes a passage of text. A `metadata.jsonl`, `.csv` or `.parquet` with a `file_name` column, as for the
        `imagefolder` of `datasets`, gives the images beside it text, title, licence and so on; several captions of one
        file become lines of its text. The id is the path from the folder, without suffix; the source is the path
        itself. PDF files are read as by `from_pdf`, if pypdfium2 is there. Files of other kinds are counted and named
        in `skipped`.

        Args:
            folder: The folder. Names that begin with a dot are left out.
            image_root: Where links may lead to, see the class.
            pages: What PDF files become, see `from_pdf`.
            **options: As of the class; so are the errors.
        """
        return cls._read(rows_from_folder(folder, image_root, pages, options.get("chunking")), **options)

    @classmethod
    def from_pdf(cls, files: Files, *, pages: Pages = "both", **options: Unpack[ReadingOptions]) -> KnowledgeBase:
        """Reads PDF files: pieces of their text, their pages as images, and figures that have a caption.

        A piece of text is called `manual.pdf#page=12-0` (the first one of page 12), and so on; its `url` is
        `manual.pdf#page=12`, which opens the page; its metadata tell `page`, `section` (the headings above it) and
        `box`: left, top, right and bottom, as shares of the page's size, from its upper left corner. The page itself,
        `manual.pdf#page=12`, is an image of a million pixels with its title and headings as text; pages without words,
        such as scans, are found by it. A figure is called `manual.pdf#page=12-figure-0`, and its text is the caption.
        `metadata["kind"]` is `"text"`, `"page"` or `"figure"`. Running heads and tables of contents are left out.

        It needs pypdfium2: `pip install "hf_ravlm[pdf]"`.

        Args:
            files: A file, several, or a folder, whose other files are passed over.
            pages: `"both"`; `"text"` for pieces of text alone, for encoders of words; `"image"` for pages and figures
                alone, for encoders of images such as ColPali.
            **options: As of the class; so are the errors. Text is always cut: without `chunking` into pieces of a
                thousand characters that begin with title and headings. A file that is encrypted or damaged, and a
                page that cannot be read, are items that cannot be used.
        """
        return cls._read(rows_from_pdf_files(files, pages, options.get("chunking")), **options)

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str], **options: Unpack[FileOptions]) -> KnowledgeBase:
        """Reads a file with one JSON object per line; an image is a path relative to the file's folder.

        Args:
            path: The file, in UTF-8; it may be compressed with gzip, bzip2 or xz.
            **options: As of the class; so are the errors.
        """
        return cls._read_table(partial(rows_from_jsonl, path), options)

    @classmethod
    def from_csv(
        cls, path: str | os.PathLike[str], *, delimiter: str | None = None, **options: Unpack[FileOptions]
    ) -> KnowledgeBase:
        """Reads a CSV or TSV file with a header line; every value is text, an empty one is missing.

        Args:
            path: The file, as in `from_jsonl`; image paths are likewise relative to its folder.
            delimiter: What stands between values; `None` looks at the header: comma, semicolon, tab or `|`.
            **options: As of the class; so are the errors.
        """
        return cls._read_table(partial(rows_from_csv, path, delimiter=delimiter), options)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str], **options: Unpack[FileOptions]) -> KnowledgeBase:
        """Reads a Parquet file; an image is encoded bytes, a `{"bytes", "path"}` struct, or a relative path.

        Args:
            path: The file.
            **options: As of the class; so are the errors.
        """
        return cls._read_table(partial(rows_from_parquet, path), options)

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
        return cls(load_passages(find_store(at_home(folder), subfolder)))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        subfolder: str = "knowledge_base",
        *,
        repo_type: Literal["model", "dataset"] = "dataset",
        **hub_kwargs: Any,
    ) -> KnowledgeBase:
        """Reads the passages of a published or saved knowledge base; its vectors are not even downloaded.

        Args:
            source: The id of a Hub repository, or a folder, as for `load`.
            subfolder: The name of the knowledge base beside a model.
            repo_type: `"dataset"` for one that was published on its own, `"model"` for one beside a model.
            **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            KnowledgeBaseNotFoundError, KnowledgeBaseCorruptError: As `load`; also if it was published without them.
            HubUnavailableError: If the Hub cannot be reached, and the passages are not in the cache.
        """
        store, _ = store_folder(source, subfolder, hub_kwargs, repo_type, ("passages",))
        return cls(load_passages(store))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        num_texts, num_images = (len(self) - self.table[name].null_count for name in ("text", "image"))
        return f"KnowledgeBase({len(self)} passages: {num_texts} with text, {num_images} with image)"

    def __iter__(self) -> Iterator[Passage]:
        for batch in self.table.to_batches(max_chunksize=256):
            yield from map(passage_from_row, batch.to_pylist())

    def __contains__(self, passage_id: object) -> bool:
        return isinstance(passage_id, str) and self.row_of(passage_id) is not None

    def __getitem__(self, key: int | str) -> Passage:
        if isinstance(key, str):
            row = self.row_of(key)
            if row is None:
                raise KeyError(f"No passage has the id {key!r}; the knowledge base holds {len(self)} passages.")
            key = row
        if not -len(self) <= key < len(self):
            raise IndexError(f"Position {key} is out of range; the knowledge base holds {len(self)} passages.")
        return self.passages([key % len(self)])[0]

    def row_of(self, passage_id: str) -> int | None:
        """The position of the passage with an id, in whatever Unicode form it is spelled; `None` if there is none."""
        row = self._places.row_of(passage_id)
        is_plain = row is not None or passage_id.isascii()
        return row if is_plain else self._places.row_of(plain_text(passage_id, "the id"))

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """Returns the passages at several positions, in the order asked for."""
        return passages_at(self.table, rows)

    @property
    def ids(self) -> list[str]:
        """The ids of all passages, in order."""
        return list(self.table["id"].to_pylist())

    @cached_property
    def _places(self) -> IdPlaces:
        return IdPlaces(self.table["id"])

    def text_lengths(self) -> list[int]:
        """The number of characters of every passage's text; 0 where there is none."""
        return list(pc.fill_null(pc.utf8_length(self.table["text"]), 0).to_pylist())


PassageSource = KnowledgeBase | Iterable[Mapping[str, Any] | Passage]


def as_knowledge_base(passages: PassageSource) -> KnowledgeBase:
    """Passages as a user gives them, see `RavlmRetriever.add`."""
    if isinstance(passages, KnowledgeBase):
        return passages
    given = framed_rows(_several(passages))
    rows: list[Any] = [_row_of(passage) if isinstance(passage, Passage) else passage for passage in given]
    return KnowledgeBase.from_dicts(rows) if rows else KnowledgeBase()


def _several(passages: Any) -> Any:
    """Refuses a dictionary, whose keys would be taken for passages."""
    if isinstance(passages, Mapping):
        raise InvalidInputError("one dictionary came: expected a list of dictionaries, one for each passage")
    return passages


def completed(passages: PassageSource, stored: Callable[[list[str]], Sequence[Passage | None]]) -> KnowledgeBase:
    """Passages of an update, with what they do not give as it is stored under their ids.

    Args:
        passages: As of `as_knowledge_base`. In dictionaries a key with `None` drops what was there; in a
            `KnowledgeBase` and in a `Passage`, `None` is what is not given.
        stored: The stored passages with some ids; `None` where there is none.
    """
    if isinstance(passages, KnowledgeBase):
        parts = [_completed_part(passages.table.slice(start, 256), stored) for start in range(0, len(passages), 256)]
        return KnowledgeBase(pa.concat_tables(parts), passages.skipped) if parts else passages
    rows: list[Any] = list(_several(passages))
    if any(isinstance(row, Passage) for row in rows):
        return completed(as_knowledge_base(rows), stored)
    ids = [str(row.get("id", "")) if isinstance(row, Mapping) else "" for row in rows]
    known = stored([plain_text(passage_id, "an id") for passage_id in ids])
    rows = [row if old is None else _completed_row(row, old) for row, old in zip(rows, known, strict=True)]
    return KnowledgeBase.from_dicts(rows) if rows else KnowledgeBase()


def _completed_part(table: pa.Table, stored: Callable[[list[str]], Sequence[Passage | None]]) -> pa.Table:
    olds = stored(table["id"].to_pylist())
    before = [{} if old is None else _row_of(old) for old in olds]
    metadata = [
        json.dumps({**old.get("metadata", {}), **(json.loads(new) if new else {})}) if old.get("metadata") else new
        for old, new in zip(before, table["metadata"].to_pylist(), strict=True)
    ]
    columns = [
        table["id"],
        *(
            pc.coalesce(table[field.name], pa.array([old.get(field.name) for old in before], field.type))
            for field in SCHEMA
            if field.name not in ("id", "metadata")
        ),
        pa.array(metadata, SCHEMA.field("metadata").type),
    ]
    return pa.table(columns, schema=SCHEMA)


def _completed_row(row: Mapping[str, Any], old: Passage) -> dict[str, Any]:
    keys, before = standard_keys(tuple(row)), _row_of(old)
    given = row_from_dict(f"passage {old.id!r}", row)
    metadata = given.metadata if "metadata" in row and not row["metadata"] else {**old.metadata, **given.metadata}
    return {
        **{name: before[name] if keys[name] is None else given.values[name] for name in STANDARD_COLUMNS},
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }


def _row_of(passage: Passage) -> dict[str, Any]:
    row = {item.name: getattr(passage, item.name) for item in fields(Passage)}
    row["image"] = row.pop("image_bytes")
    return row
