"""Knows where passages come from: dictionaries, data sets, folders and tables, each read into one stream of rows.

Nothing is checked here but what only the source can know: which columns exist, which line is broken, and that a file
named in the data lies inside the folder of the data.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa

from ..errors import InvalidInputError
from .passage_table import STANDARD_COLUMNS, SourceRow
from .safe_paths import resolve_inside


if TYPE_CHECKING:
    from datasets import Dataset

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TEXT_SUFFIXES = {".txt", ".md"}
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_ROWS_PER_READ = 256


class ColumnNames(TypedDict, total=False):
    """Which column of a table holds what; see `KnowledgeBase`."""

    id_column: str | None
    text_column: str | None
    image_column: str | None
    source_column: str | None
    licence_column: str | None
    url_column: str | None
    title_column: str | None
    metadata_columns: Sequence[str] | None


def rows_from_dicts(rows: Iterable[Mapping[str, Any]]) -> Iterator[SourceRow]:
    """Reads dictionaries; keys that are no standard column become metadata."""
    for number, row in enumerate(rows):
        where = f"row {number}"
        if not isinstance(row, Mapping):
            raise InvalidInputError(
                f"{where} is of type {type(row).__name__}. Expected a dictionary with the keys "
                f"{', '.join(STANDARD_COLUMNS)} and metadata."
            )
        if row.get("id") is None:
            raise InvalidInputError(f"{where} has no `id`; its keys are {list(row)}. Give every passage an id.")
        yield _row_from_dict(where, row)


def _row_from_dict(where: str, row: Mapping[str, Any]) -> SourceRow:
    values = {name: row.get(name) for name in STANDARD_COLUMNS}
    if "licence" not in row:
        values["licence"] = row.get("license")
    nested = row.get("metadata") or {}
    if not isinstance(nested, Mapping):
        raise InvalidInputError(f"{where}: `metadata` is of type {type(nested).__name__}. Expected a dictionary.")
    known = {*STANDARD_COLUMNS, "metadata", *(() if "licence" in row else ("license",))}
    return SourceRow(where, values, {**{key: row[key] for key in row if key not in known}, **nested})


def rows_from_dataset(dataset: Dataset, names: ColumnNames) -> Iterator[SourceRow]:
    """Reads a split of a data set without decoding its images."""
    from datasets import Dataset, Image

    if not isinstance(dataset, Dataset):
        hint = (
            f"Pick one of its splits {list(dataset)}." if isinstance(dataset, dict) else "Load it without streaming."
        )
        raise InvalidInputError(f"Expected a `datasets.Dataset`, got {type(dataset).__name__}. {hint}")
    columns, metadata_columns = _choose_columns(names, dataset.column_names, "the data set")
    image_column = columns.get("image")
    if image_column is not None:
        if not isinstance(dataset.features[image_column], Image):
            raise InvalidInputError(
                f"The column {image_column!r} has the type {dataset.features[image_column]}. Expected images: use "
                f"`dataset.cast_column({image_column!r}, datasets.Image())`, or `image_column=None` to leave it out."
            )
        dataset = dataset.cast_column(image_column, Image(decode=False))
    dataset = dataset.select_columns([*{*columns.values(), *metadata_columns}]).with_format(None)
    for number, record in enumerate(dataset):
        yield _row_from_record(f"row {number}", number, record, columns, metadata_columns)


def rows_from_jsonl(path: str | os.PathLike[str], names: ColumnNames) -> Iterator[SourceRow]:
    """Reads a file with one JSON object per line; the columns are the keys of all lines."""
    file = _existing_file(path)
    records = list(_jsonl_records(file))
    seen = list(dict.fromkeys(key for _, record in records for key in record))
    yield from _rows_from_records(file, records, seen, names)


def rows_from_csv(path: str | os.PathLike[str], names: ColumnNames) -> Iterator[SourceRow]:
    """Reads a CSV file with a header line."""
    file = _existing_file(path)
    yield from _rows_from_records(file, _csv_records(file), _csv_columns(file), names)


def rows_from_parquet(path: str | os.PathLike[str], names: ColumnNames) -> Iterator[SourceRow]:
    """Reads a Parquet file, a few hundred rows at a time."""
    import pyarrow.parquet as pq

    file = _existing_file(path)
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            records = (
                (f"{file.name} row {number}", record)
                for number, record in enumerate(
                    record for batch in parquet.iter_batches(batch_size=_ROWS_PER_READ) for record in batch.to_pylist()
                )
            )
            yield from _rows_from_records(file, records, parquet.schema_arrow.names, names)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{file}: this is not a sound Parquet file ({error}). Write it again.") from error


def _rows_from_records(
    file: Path, records: Iterable[tuple[str, Mapping[str, Any]]], seen: Sequence[str], names: ColumnNames
) -> Iterator[SourceRow]:
    columns, metadata_columns = _choose_columns(names, seen, str(file))
    for number, (where, record) in enumerate(records):
        row = _row_from_record(where, number, record, columns, metadata_columns)
        yield row._replace(values={**row.values, "image": _image_beside(file.parent, row.values.get("image"), where)})


def _choose_columns(names: ColumnNames, seen: Sequence[str], source: str) -> tuple[dict[str, str], list[str]]:
    """Returns the column that holds each standard value, and the columns that become metadata."""
    unknown = set(names) - set(ColumnNames.__annotations__)
    if unknown:
        raise TypeError(f"Unknown arguments {sorted(unknown)}. Choose from {list(ColumnNames.__annotations__)}.")
    columns: dict[str, str] = {}
    for standard in STANDARD_COLUMNS:
        name = names.get(f"{standard}_column", standard)
        if name == "licence" and name not in seen:
            name = "license" if "license" in seen else name
        if name in seen:
            columns[standard] = str(name)
        elif name is not None and (name != standard or standard == "id"):
            hint = " `id_column=None` numbers the rows." if standard == "id" else ""
            raise InvalidInputError(
                f"There is no column {name!r} in {source}. Its columns are {list(seen)}. Name the right one with "
                f"`{standard}_column=...`.{hint}"
            )
    if "text" not in columns and "image" not in columns:
        raise InvalidInputError(
            f"Neither text nor image was found in {source}. Its columns are {list(seen)}. Name them with "
            "`text_column=...` or `image_column=...`."
        )
    return columns, _choose_metadata(names.get("metadata_columns"), seen, columns, source)


def _choose_metadata(
    asked: Sequence[str] | None, seen: Sequence[str], columns: Mapping[str, str], source: str
) -> list[str]:
    if asked is None:
        return [name for name in seen if name not in columns.values()]
    missing = [name for name in asked if name not in seen]
    if missing:
        raise InvalidInputError(f"There are no columns {missing} in {source}. Its columns are {list(seen)}.")
    return list(asked)


def _row_from_record(
    where: str, number: int, record: Mapping[str, Any], columns: Mapping[str, str], metadata_columns: Sequence[str]
) -> SourceRow:
    values: dict[str, Any] = {standard: record.get(name) for standard, name in columns.items()}
    if "id" not in columns:
        values["id"] = number
    return SourceRow(where, values, {name: record[name] for name in metadata_columns if record.get(name) is not None})


def _image_beside(folder: Path, image: Any, where: str) -> Any:
    """An image cell: a relative path becomes a path inside the folder of the data, bytes stay as they are."""
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    if isinstance(image, str):
        return resolve_inside(folder, image)
    if image is None or isinstance(image, (bytes, Mapping)):
        return image
    raise InvalidInputError(
        f"{where}: the image is of type {type(image).__name__}. Expected a relative path, encoded bytes or "
        '{"bytes", "path"}.'
    )


def _existing_file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"{file}: there is no such file. Check the path.")
    return file


def _jsonl_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(_decoded(lines, file), start=1):
            if not line.strip():
                continue
            where = f"{file.name} line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(
                    f"{where} is not JSON ({error}). Expected one JSON object per line."
                ) from error
            if not isinstance(record, dict):
                raise InvalidInputError(f"{where} is a {type(record).__name__}. Expected one JSON object per line.")
            yield where, record


def _csv_columns(file: Path) -> list[str]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(_decoded(lines, file)), [])
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InvalidInputError(f"{file}: the columns {repeated} occur twice in the header. Rename them.")
    return header


def _csv_records(file: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(_decoded(lines, file))
        try:
            for record in reader:
                where = f"{file.name} line {reader.line_num}"
                if None in record:
                    raise InvalidInputError(f"{where} has more values than the header has columns. Quote commas.")
                yield where, {name: value or None for name, value in record.items()}
        except csv.Error as error:
            raise InvalidInputError(f"{file.name} line {reader.line_num} is not CSV ({error}).") from error


def _decoded(lines: Iterable[str], file: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file}: the file is not UTF-8 ({error}). Save it as UTF-8.") from error


def rows_from_folder(folder: str | os.PathLike[str]) -> Iterator[SourceRow]:
    """Reads images with the texts beside them, texts alone, and the rows of `metadata.jsonl` or `metadata.csv`."""
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInputError(f"{root}: there is no such folder. Check the path.")
    names = _visible_files(root)
    described = _metadata_rows(root, names)
    stems = {_stem(name) for name in names if _suffix(name) in _IMAGE_SUFFIXES}
    for name in names:
        is_image = _suffix(name) in _IMAGE_SUFFIXES
        is_text = _suffix(name) in _TEXT_SUFFIXES and _stem(name) not in stems
        if not is_image and not is_text:
            continue
        values: dict[str, Any] = {"id": _stem(name), "source": name}
        if is_image:
            values["image"] = resolve_inside(root, name)
        text_file = f"{_stem(name)}.txt" if is_image else name
        if text_file in names:
            values["text"] = _read_text(resolve_inside(root, text_file))
        given = described.get(name)
        if given is not None:
            values.update((column, value) for column, value in given.values.items() if value is not None)
        yield SourceRow(name, values, given.metadata if given is not None else {})


def _visible_files(root: Path) -> dict[str, None]:
    """All file names under a folder in a fixed order, as paths from it with `/`; a dictionary for fast look-up."""
    names = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(parent) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return dict.fromkeys(sorted(names))


def _metadata_rows(root: Path, names: Mapping[str, None]) -> dict[str, SourceRow]:
    described: dict[str, SourceRow] = {}
    for metadata_name in (name for name in names if name.rsplit("/", 1)[-1] in _METADATA_NAMES):
        file = resolve_inside(root, metadata_name)
        records = _jsonl_records(file) if file.suffix == ".jsonl" else _csv_records(file)
        for where, record in records:
            where = f"{metadata_name}: {where}"
            file_name = record.get("file_name")
            if not isinstance(file_name, str):
                raise InvalidInputError(f"{where} has no `file_name`; its columns are {list(record)}. Add it.")
            path = resolve_inside(file.parent, file_name)
            name = path.relative_to(root).as_posix()
            if name not in names or _suffix(name) not in _IMAGE_SUFFIXES | _TEXT_SUFFIXES:
                raise InvalidInputError(f"{where} names {file_name!r}, and no such image or text is there.")
            rest = {key: value for key, value in record.items() if key != "file_name" and value is not None}
            described[name] = _row_from_dict(where, {**rest, "image": None})
    return described


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file}: the text cannot be read ({error}). Save it as UTF-8.") from error


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _stem(name: str) -> str:
    return name[: len(name) - len(Path(name).suffix)]
