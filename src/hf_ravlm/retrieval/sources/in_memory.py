"""Rows from memory: dictionaries, and data sets of `datasets`, loaded or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInputError, UnsafeInputError
from ...images import MAX_BYTES, fetch_bytes, is_address
from ..passage import STANDARD_COLUMNS
from .checked_rows import SourceFault, SourceItem, SourceRow
from .columns import SYNONYMS, ColumnNames, Record, choose_columns, find_column, rows_from_records


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Of a dictionary that its user wrote, other keys than these are metadata.
_TAKEN = ("text", "licence")


def framed_rows(rows: Any) -> Any:
    """The rows of a `DataFrame` of pandas as dictionaries, without empty cells; anything else as it is."""
    if not (hasattr(rows, "to_dict") and hasattr(rows, "notna")):
        return rows
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return [{name: value for name, value in row.items() if value is not None} for row in records]


def rows_from_dicts(rows: Iterable[Mapping[str, Any]]) -> Iterator[SourceItem]:
    """Reads dictionaries; keys that are no standard column become metadata."""
    for number, row in enumerate(framed_rows(rows)):
        where = f"row {number}"
        try:
            if not isinstance(row, Mapping):
                raise InvalidInputError(
                    f"{where} is of type {type(row).__name__}. Expected a dictionary with the keys "
                    f"{', '.join(STANDARD_COLUMNS)} and metadata."
                )
            if row.get("id") is None:
                raise InvalidInputError(f"{where} has no `id`; its keys are {list(row)}. Give every passage an id.")
            yield row_from_dict(where, row)
        except InvalidInputError as error:
            yield SourceFault(where, error)


def row_from_dict(where: str, row: Mapping[str, Any]) -> SourceRow:
    """Makes a row of a dictionary whose keys are standard columns, `metadata`, and metadata.

    Raises:
        InvalidInputError: If `metadata` is no dictionary.
    """
    columns = standard_keys(tuple(row))
    values = {name: row.get(column or name) for name, column in columns.items()}
    nested = row.get("metadata") or {}
    if not isinstance(nested, Mapping):
        raise InvalidInputError(f"{where}: `metadata` is of type {type(nested).__name__}. Expected a dictionary.")
    known = {*columns.values(), "metadata"}
    return SourceRow(where, values, {**{key: row[key] for key in row if key not in known}, **nested})


@lru_cache(maxsize=256)
def standard_keys(keys: tuple[str, ...]) -> dict[str, str | None]:
    """The key of each standard value; most rows of a source have the same keys."""
    return {name: find_column(name, keys, SYNONYMS[name] if name in _TAKEN else ()) for name in STANDARD_COLUMNS}


def rows_from_dataset(dataset: Dataset | IterableDataset, names: ColumnNames) -> Iterator[SourceItem]:
    """Reads a split of a data set, loaded or streamed, without decoding its images.

    Raises:
        InvalidInputError: If it is no split, a column that is needed is missing, or the image column holds no images.
    """
    from datasets import Dataset, Image, IterableDataset

    if not isinstance(dataset, (Dataset, IterableDataset)):
        hint = f"Pick one of its splits {list(dataset)}." if isinstance(dataset, dict) else "Load one split."
        raise InvalidInputError(
            f"Expected a `datasets.Dataset` or `datasets.IterableDataset`, got {type(dataset).__name__}. {hint}"
        )
    records: Iterable[Mapping[str, Any]]
    if dataset.features is not None:
        columns = choose_columns(names, list(dataset.features), "the data set")
        image_column = columns.standard.get("image")
        is_meant = "image_column" in names or image_column == "image"
        if not is_meant and not isinstance(dataset.features.get(image_column), Image):
            names = {**names, "image_column": None}  # such as names of files
            columns, image_column = choose_columns(names, list(dataset.features), "the data set"), None
        if image_column is not None and not isinstance(dataset.features[image_column], Image):
            raise InvalidInputError(
                f"The column {image_column!r} has the type {dataset.features[image_column]}. Expected images: use "
                f"`dataset.cast_column({image_column!r}, datasets.Image())`, or `image_column=None` to leave it out."
            )
        dataset = dataset.with_format(None)
        if image_column is not None:
            dataset = dataset.cast_column(image_column, Image(decode=False))
        kept = dataset.select_columns([*{*columns.standard.values(), *columns.metadata}])
        records = map(_class_names(dataset.features), kept)
    else:  # a stream that does not say what it holds: its first row does
        stream = iter(dataset)
        first = list(islice(stream, 1))
        records = chain(first, stream)
        columns = choose_columns(names, list(first[0]) if first else [], "the data set")
    numbered = (Record(f"row {number}", record) for number, record in enumerate(records))
    image_of = partial(_readable_image, is_typed=dataset.features is not None)
    yield from rows_from_records(numbered, columns, image_of)


def _class_names(features: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Puts the names of classes in the place of their numbers."""
    from datasets import ClassLabel

    classes = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    lists = {
        name: inner
        for name, feature in features.items()
        if isinstance(inner := getattr(feature, "feature", None), ClassLabel)
    }

    def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
        found = {name: kind.int2str(row[name]) for name, kind in classes.items() if _is_class(row.get(name), kind)}
        found |= {name: list(map(kind.int2str, row[name])) for name, kind in lists.items() if row.get(name)}
        return {**row, **found}

    return named if classes or lists else lambda row: row


def _is_class(value: Any, kind: Any) -> bool:
    return isinstance(value, int) and 0 <= value < kind.num_classes  # -1 stands for "not known"


def _readable_image(image: Any, where: str, is_typed: bool) -> Any:
    """An image cell: a file inside an archive or on a host, as streams name them, is read with `fsspec`."""
    if not is_typed and isinstance(image, str):  # data, not a file that we may open
        raise InvalidInputError(
            f"{where}: the image is a string. Expected an image or encoded bytes: use "
            "`dataset.cast_column(..., datasets.Image())` to read files."
        )
    if not is_typed or not isinstance(image, Mapping) or image.get("bytes") is not None:
        return image
    path = str(image.get("path"))
    if "://" not in path or path.lower().startswith(("file:", "local:")):
        return image  # which `safe_image` reads within its limits, or refuses
    import fsspec

    try:
        if is_address(path):
            return fetch_bytes(path)
        with fsspec.open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except Exception as error:  # each kind of host has its own errors
        raise UnsafeInputError(f"{where}: the image {path[:200]} cannot be read ({str(error)[:200]}).") from error
