"""Files of tables: JSONL, CSV, TSV and Parquet, compressed or not, read as streams.

A line that cannot be read becomes a `SourceFault` in the place of its row; a file that cannot be read is an error.
The readers of `datasets` and pandas guess types (the id "007" becomes 7) and lose the number of a bad line.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import InvalidInputError
from ..passage import STANDARD_COLUMNS
from .checked_rows import SourceFault, SourceItem
from .columns import (
    SYNONYMS,
    ColumnNames,
    Record,
    RecordItem,
    check_one_name_each,
    choose_columns,
    rows_from_records,
)
from .image_files import ImageRoot, image_file, image_roots
from .text_files import byte_lines, existing_file, open_bytes, parsed_lines, plain_suffix


_ROWS_PER_READ = 256
_MAX_CELL_CHARACTERS = 10_000_000
_MAX_CELL_LINES = 1_000
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # a first line that spreadsheets write
_KNOWN_NAMES = frozenset(
    {*STANDARD_COLUMNS, *(name for names in SYNONYMS.values() for name in names), "question", "answer", "answers"}
)


def rows_from_jsonl(
    path: str | os.PathLike[str], names: ColumnNames, image_root: ImageRoot = None
) -> Iterator[SourceItem]:
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
        yield from _rows_from_records(file, jsonl_records(file), list(seen), names, image_root)


def rows_from_csv(
    path: str | os.PathLike[str], names: ColumnNames, delimiter: str | None = None, image_root: ImageRoot = None
) -> Iterator[SourceItem]:
    """Reads a CSV file with a header line; `delimiter=None` looks at the header, see `csv_delimiter`.

    Raises:
        InvalidInputError: As `rows_from_jsonl`, and if the header cannot be used.
    """
    file = existing_file(path)
    seen = csv_columns(file, delimiter)
    yield from _rows_from_records(file, csv_records(file, delimiter), seen, names, image_root)


def rows_from_parquet(
    path: str | os.PathLike[str], names: ColumnNames, image_root: ImageRoot = None
) -> Iterator[SourceItem]:
    """Reads a Parquet file, a few hundred rows at a time; errors as `rows_from_jsonl`."""
    file = existing_file(path)
    yield from _rows_from_records(file, parquet_records(file), parquet_columns(file), names, image_root)


def table_records(file: Path, delimiter: str | None = None) -> Iterator[RecordItem]:
    """Yields the records of a table of any kind, by its suffix: texts stay texts, whatever they look like.

    Raises:
        InvalidInputError: If the file is missing or damaged, or its suffix is not known.
    """
    kind = plain_suffix(existing_file(file))
    if kind in (".jsonl", ".ndjson"):
        return jsonl_records(file)
    if kind in (".csv", ".tsv"):
        check_one_name_each(csv_columns(file, delimiter), str(file))
        return csv_records(file, delimiter)
    if kind == ".parquet":
        check_one_name_each(parquet_columns(file), str(file))
        return parquet_records(file)
    raise InvalidInputError(f"{file}: expected a table that ends in {', '.join(TABLE_SUFFIXES)}.")


TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def _rows_from_records(
    file: Path, records: Iterable[RecordItem], seen: Sequence[str], names: ColumnNames, image_root: ImageRoot
) -> Iterator[SourceItem]:
    columns = choose_columns(names, seen, str(file))
    return rows_from_records(records, columns, partial(_image_beside, file.parent, image_roots(image_root)))


def _image_beside(folder: Path, roots: Sequence[Path], image: Any, where: str) -> Any:
    """An image cell: a path becomes that of a file beside the data or under a root, bytes stay as they are."""
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    if isinstance(image, str) and image[:11].lower() != "data:image/":
        return image_file(folder, image, roots) if image.strip() else None
    if image is None or isinstance(image, (str, bytes, Mapping)):
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
        record = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where} is not JSON ({error}). Expected one JSON object per line.") from error
    if not isinstance(record, dict):
        raise InvalidInputError(f"{where} is a {type(record).__name__}. Expected one JSON object per line.")
    return Record(where, record)


def _one_value_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the keys {repeated} come twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_one_value_each)


def csv_columns(file: Path, delimiter: str | None = None) -> list[str]:
    """The names in the header line.

    Raises:
        InvalidInputError: If one comes twice, or the header cannot be read.
    """
    with open_bytes(file) as stream:
        header = next(_csv_rows(file, stream, delimiter), (1, []))[1]
    if isinstance(header, str):
        raise InvalidInputError(f"{file.name} line 1 is not CSV ({header}).")
    if not all(map(_is_utf8, header)):
        raise InvalidInputError(f"{file}: the header is not UTF-8. Save the file as UTF-8.")
    check_one_name_each(header, str(file))
    return header


def csv_records(file: Path, delimiter: str | None = None) -> Iterator[RecordItem]:
    """Yields the lines after the header; an empty value is `None`.

    Raises:
        InvalidInputError: If the file is damaged, or a cell or a line has no end.
    """
    with open_bytes(file) as stream:
        rows = _csv_rows(file, stream, delimiter)
        header = next(rows, (1, []))[1]
        for number, values in rows:
            where = f"{file.name} line {number}"
            if isinstance(values, str):
                yield SourceFault(where, InvalidInputError(f"{where} is not CSV ({values}). Close and double quotes."))
            elif len(values) > len(header):
                reason = "has more values than the header has columns. Quote what holds a delimiter."
                yield SourceFault(where, InvalidInputError(f"{where} {reason}"))
            elif not all(map(_is_utf8, values)):
                yield SourceFault(where, InvalidInputError(f"{where} is not UTF-8. Save the file as UTF-8."))
            elif values:
                yield Record(where, {name: value or None for name, value in zip(header, values, strict=False)})


def csv_delimiter(first_line: str, suffix: str = ".csv") -> str:
    """What stands between the names of a header: the mark that gives most known names, else most names.

    >>> csv_delimiter("id;text;image"), csv_delimiter("id|note|caption, short"), csv_delimiter("id,text;long")
    (';', '|', ',')
    """
    plain = re.sub('"[^"]*"', "", first_line)
    if suffix == ".tsv" and "\t" in plain:
        return "\t"

    def worth(mark: str) -> tuple[int, int]:
        names = [name.strip().casefold() for name in first_line.replace('"', "").split(mark)]
        return len(_KNOWN_NAMES.intersection(names)), plain.count(mark)

    return max(_DELIMITERS, key=worth)


def _csv_rows(file: Path, stream: Any, delimiter: str | None) -> Iterator[tuple[int, list[str] | str]]:
    """The number of each row's first line, and its cells or what is wrong with it, the header first."""
    delimiter = "\t" if delimiter == "\\t" else delimiter  # as a shell hands it on
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InvalidInputError(f"delimiter={delimiter!r}: expected one character, such as ';'.")
    lines = _csv_lines(stream)
    first = next(lines, "")
    skipped = 0
    if told := _SEPARATOR_LINE.fullmatch(first):
        delimiter, skipped, first = delimiter or told[1], 1, next(lines, "")
    delimiter = delimiter or csv_delimiter(first.rstrip("\r\n"), plain_suffix(file))
    rows = _tab_rows if delimiter == "\t" else partial(_quoted_rows, file.name, delimiter)
    for number, row in rows(chain([first] if first else [], lines)):
        yield number + skipped, row


def _quoted_rows(name: str, delimiter: str, lines: Iterator[str]) -> Iterator[tuple[int, list[str] | str]]:
    # A setting of the whole process that is only ever widened: Python's own limit of 128 KiB is less than a document.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARACTERS))
    # Strict: otherwise a quote that is not closed swallows the rows behind it without a word.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):  # the rest of the cell would be taken for records
                raise InvalidInputError(
                    f"{name} line {number}: a cell has more than {_MAX_CELL_CHARACTERS:,} characters. Is a quote not "
                    "closed?"
                ) from error
            last = reader.line_num
            yield number, f"{error}" + (f"; lines {number} to {last} were taken for one" if last > number else "")


def _tab_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table with tabs, in which a quote may be a mark of inches or one around a cell.

    A line with a tab for every column is a row, whatever its quotes are. A quote that opens the last cell of a line
    and is closed further down holds the lines between together, unless one of them is a row of its own.
    """
    numbered = enumerate(lines, start=1)
    ahead: deque[tuple[int, str]] = deque()
    width = 0
    while (item := ahead.popleft() if ahead else next(numbered, None)) is not None:
        number, line = item[0], item[1].rstrip("\r\n")
        cells = line.split("\t")
        if '"' in line:
            taken: list[tuple[int, str]] = []
            joined = _strict_cells(line, width)
            while joined is None and cells[-1].startswith('"') and len(taken) < _MAX_CELL_LINES:
                after = ahead.popleft() if ahead else next(numbered, None)
                if after is None:
                    break
                taken.append(after)
                if after[1].count("\t") == width - 1 > 0:
                    break
                line += "\n" + after[1].rstrip("\r\n")
                joined = _strict_cells(line, width) if '"' in after[1] else None
            if joined is None:
                ahead.extendleft(reversed(taken))
                joined = list(map(_unquoted, cells))
            cells = joined
        width = width or len(cells)
        if cells != [""]:
            yield number, cells


def _strict_cells(text: str, width: int) -> list[str] | None:
    """The cells by the rules of CSV, if they hold and give as many as there are columns; 0: as many as there are."""
    try:
        cells = next(csv.reader([text], delimiter="\t", strict=True))
    except csv.Error:
        return None
    return cells if len(cells) == width or not width else None


def _unquoted(cell: str) -> str:
    inner = cell[1:-1].replace('""', "\0")
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner
    return inner.replace("\0", '"') if is_quoted else cell


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
