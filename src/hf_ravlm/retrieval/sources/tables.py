"""Files of tables: JSONL, CSV, TSV and Parquet, compressed or not, read as streams.

A line that cannot be read becomes a `SourceFault` in the place of its row; a file that cannot be read is an error.
The readers of `datasets` and pandas guess types (the id "007" becomes 7) and lose the number of a bad line.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import InvalidInputError
from ...saving.safe_paths import resolve_inside
from .checked_rows import SourceFault, SourceItem
from .columns import ColumnNames, Record, RecordItem, choose_columns, rows_from_records
from .text_files import byte_lines, existing_file, open_bytes, parsed_lines, plain_suffix


_ROWS_PER_READ = 256
_MAX_CELL_CHARACTERS = 10_000_000


def rows_from_jsonl(path: str | os.PathLike[str], names: ColumnNames) -> Iterator[SourceItem]:
    """Reads a file with one JSON object per line, twice: for its columns, the keys of all lines, and for its rows.

    Raises:
        InvalidInputError: If the file is missing or damaged, or a column that is needed is missing.
    """
    file = existing_file(path)
    seen: dict[str, None] | None = None
    for item in jsonl_records(file):
        if isinstance(item, Record):
            seen = seen or {}
            seen.update(dict.fromkeys(item.values))
    if seen is None:
        yield from (item for item in jsonl_records(file) if isinstance(item, SourceFault))
    else:
        yield from _rows_from_records(file, jsonl_records(file), list(seen), names)


def rows_from_csv(
    path: str | os.PathLike[str], names: ColumnNames, delimiter: str | None = None
) -> Iterator[SourceItem]:
    """Reads a CSV file with a header line; `delimiter=None` means a tab for `.tsv` and a comma otherwise.

    Raises:
        InvalidInputError: As `rows_from_jsonl`, and if the header cannot be used.
    """
    file = existing_file(path)
    yield from _rows_from_records(file, csv_records(file, delimiter), csv_columns(file, delimiter), names)


def rows_from_parquet(path: str | os.PathLike[str], names: ColumnNames) -> Iterator[SourceItem]:
    """Reads a Parquet file, a few hundred rows at a time; errors as `rows_from_jsonl`."""
    file = existing_file(path)
    yield from _rows_from_records(file, parquet_records(file), parquet_columns(file), names)


def _rows_from_records(
    file: Path, records: Iterable[RecordItem], seen: Sequence[str], names: ColumnNames
) -> Iterator[SourceItem]:
    columns, metadata_columns = choose_columns(names, seen, str(file))
    return rows_from_records(records, columns, metadata_columns, partial(_image_beside, file.parent))


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


def jsonl_records(file: Path) -> Iterator[RecordItem]:
    """Yields the object of each line that is not blank."""
    return parsed_lines(file, _json_record)


def _json_record(line: str, where: str) -> Record | None:
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where} is not JSON ({error}). Expected one JSON object per line.") from error
    if not isinstance(record, dict):
        raise InvalidInputError(f"{where} is a {type(record).__name__}. Expected one JSON object per line.")
    return Record(where, record)


def csv_columns(file: Path, delimiter: str | None = None) -> list[str]:
    """The names in the header line.

    Raises:
        InvalidInputError: If one comes twice, or the header cannot be read.
    """
    with open_bytes(file) as stream:
        try:
            header: list[str] = next(_csv_reader(file, _csv_lines(stream), delimiter), [])
        except csv.Error as error:
            raise InvalidInputError(f"{file.name} line 1 is not CSV ({error}).") from error
    if not all(map(_is_utf8, header)):
        raise InvalidInputError(f"{file}: the header is not UTF-8. Save the file as UTF-8.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InvalidInputError(f"{file}: the columns {repeated} occur twice in the header. Rename them.")
    return header


def csv_records(file: Path, delimiter: str | None = None) -> Iterator[RecordItem]:
    """Yields the lines after the header; an empty value is `None`.

    Raises:
        InvalidInputError: If the file is damaged, or a cell or a line has no end.
    """
    with open_bytes(file) as stream:
        reader = _csv_reader(file, _csv_lines(stream), delimiter)
        header: list[str] = next(reader, [])
        while True:
            where = f"{file.name} line {reader.line_num + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "field limit" in str(error):  # the rest of the cell would be taken for records
                    raise InvalidInputError(
                        f"{where}: a cell has more than {_MAX_CELL_CHARACTERS:,} characters. Is a quote not closed?"
                    ) from error
                yield SourceFault(where, InvalidInputError(f"{where} is not CSV ({error}). Close and double quotes."))
                continue
            if len(values) > len(header):
                reason = "has more values than the header has columns. Quote commas."
                yield SourceFault(where, InvalidInputError(f"{where} {reason}"))
            elif not all(map(_is_utf8, values)):
                yield SourceFault(where, InvalidInputError(f"{where} is not UTF-8. Save the file as UTF-8."))
            elif values:
                yield Record(where, {name: value or None for name, value in zip(header, values, strict=False)})


def _csv_reader(file: Path, lines: Iterator[str], delimiter: str | None) -> Any:
    # A setting of the whole process that is only ever widened: Python's own limit of 128 KiB is less than a document.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARACTERS))
    # Strict: otherwise a quote that is not closed swallows the rows behind it without a word.
    return csv.reader(lines, delimiter=delimiter or ("\t" if plain_suffix(file) == ".tsv" else ","), strict=True)


def _csv_lines(stream: Any) -> Iterator[str]:
    """Lines for the CSV reader; bytes that are no UTF-8 become halves of pairs, which `_is_utf8` finds."""
    for number, line in byte_lines(stream):
        if line is None:
            raise InvalidInputError(f"Line {number} is too long for a table. Is this a CSV file?")
        yield line.decode("utf-8", "surrogateescape")


def _is_utf8(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def parquet_columns(file: Path) -> list[str]:
    """The names of the columns; errors as `parquet_records`."""
    with _open_parquet(file) as parquet:
        return list(parquet.schema_arrow.names)


def parquet_records(file: Path, columns: Sequence[str] | None = None) -> Iterator[RecordItem]:
    """Yields the rows, with all or some of their columns.

    Raises:
        InvalidInputError: If the file is damaged.
    """
    with _open_parquet(file) as parquet:
        batches = parquet.iter_batches(batch_size=_ROWS_PER_READ, columns=columns)
        for number, values in enumerate(values for batch in batches for values in batch.to_pylist()):
            yield Record(f"{file.name} row {number}", values)


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{file}: this is not a sound Parquet file ({error}). Write it again.") from error
