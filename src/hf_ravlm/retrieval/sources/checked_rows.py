"""Rows of any source, checked one by one and packed into the table of a knowledge base.

Every source (a list, a folder, a table, a data set, a dump) is read into the same stream of `SourceRow`s, with a
`SourceFault` in the place of each item that could not be read; here the stream is checked and packed into one Arrow
table, so that a million passages cost no million Python objects. What is large lies in a mapped file, see `RowSpool`.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TextIO
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils.logging import tqdm

from ...errors import InvalidInputError, UnsafeInputError
from ...images import encoded_image
from ...text import clean_text, plain_json, plain_text
from ..passage import SCHEMA, TEXT_COLUMNS, check_unique_ids
from ..row_spool import RowSpool


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip", "keep_text"]

MAX_TEXT_BYTES = 65_536
_ROWS_PER_BATCH = 1_000
# Images make rows heavy: a batch is packed when its images reach this size, too.
_IMAGE_BYTES_PER_BATCH = 64_000_000
_SECONDS_BEFORE_PROGRESS_BAR = 10


class SourceRow(NamedTuple):
    """One row of a source: where it stands (for messages), its standard columns, everything else; is its text cut?"""

    where: str
    values: Mapping[str, Any]
    metadata: Mapping[str, Any]
    is_cut: bool = False


class SourceFault(NamedTuple):
    """One item that a source could not read: where it stands, what is wrong, and its id if that much is known."""

    where: str
    error: InvalidInputError | UnsafeInputError
    id: str | None = None


class SourceNote(NamedTuple):
    """What a source leaves out on purpose, such as files of a kind that holds no passages: counted, never an error."""

    where: str
    reason: str


SourceItem = SourceRow | SourceFault | SourceNote


class SkippedItem(NamedTuple):
    """One item that was left out while reading."""

    id: str | None
    reason: str
    where: str


def table_from_rows(
    rows: Iterable[SourceItem], on_error: OnError = "raise", report_file: str | os.PathLike[str] | None = None
) -> tuple[pa.Table, list[SkippedItem]]:
    """Checks rows and packs them into a table with `SCHEMA`; returns it, and the items left out.

    Args:
        rows: The rows and faults; an `image` may be anything that `safe_image` takes, and is stored as encoded bytes.
        on_error: `"raise"` stops at an item that cannot be used (a fault of the source, a bad or missing id, neither
            text nor image, a value of a wrong type, a text over the limit, a broken image) and at an id that comes
            again; `"skip"` leaves the item out; `"keep_text"` does so, too, but where the image alone is missing or
            broken, the passage is kept with its text, and listed among the items left out.
        report_file: With another `on_error`, a file to which the items left out are written as they are met, one JSON
            object with `where`, `id` and `reason` a line. It is there even when nothing was left out.

    Raises:
        InvalidInputError: If `on_error="raise"` and an item cannot be used; if there is no row.
        UnsafeInputError: If `on_error="raise"` and an image or a file name cannot be used.
    """
    if on_error not in ("raise", "skip", "keep_text"):
        raise InvalidInputError(f'on_error={on_error!r} is not known. Choose "keep_text", "raise" or "skip".')
    if report_file is not None and on_error == "raise":
        raise InvalidInputError('A report file lists what is left out. Give it together with on_error="skip".')
    pending: list[dict[str, Any]] = []
    num_image_bytes = 0
    skipped: list[SkippedItem] = []
    reporting = nullcontext() if report_file is None else open(report_file, "w", encoding="utf-8", newline="\n")
    with reporting as report, RowSpool(SCHEMA) as spool:
        for item in tqdm(rows, desc="Reading", unit=" rows", delay=_SECONDS_BEFORE_PROGRESS_BAR, mininterval=1.0):
            checked, left_out = _checked_item(item, on_error)
            skipped += left_out
            _write_skipped(report, left_out)
            if checked is None:
                continue
            pending.append(checked)
            num_image_bytes += len(checked["image"] or b"")
            if len(pending) == _ROWS_PER_BATCH or num_image_bytes > _IMAGE_BYTES_PER_BATCH:
                spool.add(pa.RecordBatch.from_pylist(pending, schema=SCHEMA))
                pending, num_image_bytes = [], 0
        spool.add(pa.RecordBatch.from_pylist(pending, schema=SCHEMA))
        table, repeated = _unique_rows(spool.table(), on_error)
        _write_skipped(report, repeated)
    skipped += repeated
    if skipped:
        logger.warning("%d items were skipped; the first: %s", len(skipped), skipped[0].reason)
    if table.num_rows == 0:
        raise InvalidInputError(
            f"There is no passage to take: {len(skipped)} rows were skipped and no other row was found. Check the "
            "source; `KnowledgeBase()` makes an empty knowledge base on purpose."
        )
    return table, skipped


def _write_skipped(report: TextIO | None, skipped: Iterable[SkippedItem]) -> None:
    """One line per item, written through at once, so that the report of a run that dies is there to read."""
    if report is not None:
        report.writelines(json.dumps(item._asdict(), ensure_ascii=True) + "\n" for item in skipped)
        report.flush()


def _checked_item(item: SourceItem, on_error: OnError) -> tuple[dict[str, Any] | None, list[SkippedItem]]:
    """The row to keep, if any, and what is left out: the item, or its image alone."""
    if isinstance(item, SourceNote):
        return None, [SkippedItem(None, item.reason, item.where)]
    if isinstance(item, SourceFault):
        return None, [_skipped(item, on_error)]
    passage_id = None
    try:
        passage_id = _checked_id(item.values.get("id"), item.where)
        try:
            return _checked_row(passage_id, item), []
        except _ImageError as error:
            row = item._replace(values={**item.values, "image": None})
            if on_error != "keep_text" or not isinstance(row.values.get("text"), str):
                raise
            kept = _checked_row(passage_id, row)
            return kept, [SkippedItem(passage_id, f"{error} The text was kept.", item.where)]
    except (InvalidInputError, UnsafeInputError) as error:
        return None, [_skipped(SourceFault(item.where, error, passage_id), on_error)]


def _skipped(fault: SourceFault, on_error: OnError) -> SkippedItem:
    if on_error == "raise":
        kind = UnsafeInputError if isinstance(fault.error, UnsafeInputError) else InvalidInputError
        raise kind(f'{fault.error} (on_error="skip" leaves such items out.)') from fault.error
    return SkippedItem(fault.id, str(fault.error), fault.where)


class _ImageError(UnsafeInputError):
    """The image of a passage cannot be used, and all else may be sound."""


def _unique_rows(table: pa.Table, on_error: OnError) -> tuple[pa.Table, list[SkippedItem]]:
    """Keeps the first row of each id, or (`"raise"`) refuses a table in which one comes again."""
    if len(pc.unique(table["id"])) == table.num_rows:
        return table, []
    if on_error == "raise":
        check_unique_ids(table)
    codes = table["id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    is_first = np.zeros(len(codes), bool)
    is_first[np.unique(codes, return_index=True)[1]] = True
    rows = np.flatnonzero(~is_first)
    repeated = [
        SkippedItem(passage_id, f"The id {passage_id!r} comes again; the first row was kept.", f"passage {row}")
        for row, passage_id in zip(rows, table["id"].take(rows).to_pylist(), strict=True)
    ]
    return table.filter(pa.array(is_first)), repeated


def _checked_id(value: Any, where: str) -> str:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InvalidInputError(
            f"{where}: the id is {value!r} of type {type(value).__name__}. Expected a string or a whole number."
        )
    if not clean_text(value, f"{where}: `id`"):
        raise InvalidInputError(f"{where}: the id is empty. Give every passage an id of its own.")
    return plain_text(value)


def _checked_row(passage_id: str, row: SourceRow) -> dict[str, Any]:
    where = f"{row.where} (id {passage_id!r})"
    text = _checked_text(row.values.get("text"), where)
    image = row.values.get("image")
    if text is None and image is None:
        keys = [*(name for name, value in row.values.items() if value is not None), *row.metadata]
        raise InvalidInputError(
            f"{where}: the passage has neither text nor image. Its columns: {keys}. Give it a `text`, an "
            "`image`, or both."
        )
    try:
        if isinstance(image, InvalidInputError):  # a cell that is no image at all
            raise image
        if isinstance(image, Exception):
            raise UnsafeInputError(str(image))
        image = None if image is None else encoded_image(image)
    except UnsafeInputError as error:
        raise _ImageError(f"{row.where}: the image of passage {passage_id!r} cannot be used: {error}") from error
    return {
        "id": passage_id,
        "text": text,
        "image": image,
        **{name: _checked_string(row.values.get(name), name, where) for name in TEXT_COLUMNS},
        "metadata": _metadata_json(row.metadata, where),
    }


def _checked_text(value: Any, where: str) -> str | None:
    text = _checked_string(value, "text", where)
    if text is None or not text.strip():
        return None
    num_bytes = len(text.encode())
    if num_bytes > MAX_TEXT_BYTES:
        raise InvalidInputError(
            f"{where}: the text has {num_bytes:,} bytes, more than the limit of {MAX_TEXT_BYTES:,}. Split it into "
            "passages of a few sentences each (`chunking=Chunking()` does it); that is also what an encoder can read."
        )
    return text


def _checked_string(value: Any, name: str, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(
            f"{where}: `{name}` is {str(value)[:80]!r} of type {type(value).__name__}. Expected a string or None."
        )
    return None if value is None else plain_text(value, f"{where}: `{name}`")


def _metadata_json(metadata: Mapping[str, Any], where: str) -> str | None:
    # Not-a-number is how tables say that a cell is empty. JSON has no word for it, nor for infinity, which is refused.
    kept = {
        key: value
        for key, value in metadata.items()
        if not isinstance(value, (float, np.floating)) or not np.isnan(value)
    }
    if not kept:
        return None
    try:
        return json.dumps(plain_json(kept, f"{where}: the metadata"), allow_nan=False, default=_json_value)
    except InvalidInputError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{where}: the metadata cannot be written as JSON ({error}). Columns: {sorted(map(str, metadata))}. "
            "Keep only plain values, for tables with `metadata_columns=[...]`."
        ) from error


def _json_value(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Decimal):  # prices, as databases export them
        return int(value) if float(value).is_integer() else float(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
