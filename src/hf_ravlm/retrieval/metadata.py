"""The metadata of passages, decoded into a table with a column per key."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def metadata_table(table: pa.Table) -> pa.Table:
    """Decodes the metadata of all passages into one column per key; a key that a passage lacks is null there.

    A key whose values are of several types that Arrow cannot unite (a number here, a text there) becomes text
    throughout, in JSON where it is no text.
    """
    column = table["metadata"]
    lines = [] if column.null_count == len(column) else pc.fill_null(column, "{}").to_pylist()
    try:
        decoded = _read_lines(lines)
    except pa.ArrowInvalid:
        rows = [_whole_characters(json.loads(line)) for line in lines]
        keys = dict.fromkeys(key for row in rows for key in row)
        decoded = pa.table({key: _one_type([row.get(key) for row in rows]) for key in keys})
    # `pa.table` makes no rows without a column; `select` does.
    return decoded if decoded.num_columns else pa.table({"": pa.nulls(len(column))}).select([])


def _read_lines(lines: list[str]) -> pa.Table:
    from pyarrow import json as arrow_json

    # Keys of dates become text again: Arrow would make timestamps of them, which equal no text.
    data = "\n".join(lines).encode()
    options = arrow_json.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1 << 20))
    parsed = arrow_json.read_json(io.BytesIO(data), read_options=options)
    if any(_holds_time(field.type) for field in parsed.schema):
        raise pa.ArrowInvalid("times")
    return parsed


def _whole_characters(row: dict[str, Any]) -> dict[str, Any]:
    """A row without halves of character pairs, which bases of earlier versions may hold and Arrow does not."""
    text = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    found: dict[str, Any] = json.loads(text)
    return found


def _one_type(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, pa.large_string())


def _holds_time(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_time(kind.field(place).type) for place in range(kind.num_fields))
    if pa.types.is_list(kind):
        return _holds_time(kind.value_type)
    return bool(pa.types.is_temporal(kind))
