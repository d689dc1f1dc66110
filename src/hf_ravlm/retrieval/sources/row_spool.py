"""Record batches on their way into one table: in memory, and on the disk from where they are too many."""

from __future__ import annotations

import os
import tempfile
from types import TracebackType
from typing import Any

import pyarrow as pa


# More than this goes into a temporary file (`TMPDIR`), which is mapped: its pages are no memory of the process.
MAX_BYTES_IN_MEMORY = 400_000_000


class RowSpool:
    """Collects batches of one schema; `table()` gives them as one.

    >>> schema = pa.schema([("id", pa.string())])
    >>> with RowSpool(schema) as spool:
    ...     spool.add(pa.RecordBatch.from_pylist([{"id": "wren"}], schema=schema))
    ...     spool.table()["id"].to_pylist()
    ['wren']
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._num_bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()  # which removes its name; what is mapped stays

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes a batch.

        Raises:
            OSError: If the disk is full.
        """
        self._batches.append(batch)
        self._num_bytes += batch.nbytes
        if self._num_bytes > MAX_BYTES_IN_MEMORY and os.name == "posix":
            self._write()

    def table(self) -> pa.Table:
        """All batches as one table."""
        if self._file is None:
            return pa.Table.from_batches(self._batches, self._schema)
        self._write()
        self._writer.close()
        self._file.flush()
        with pa.memory_map(self._file.name) as mapped:
            return pa.ipc.open_file(mapped).read_all()

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(prefix="hf_ravlm_rows_")
            self._writer = pa.ipc.new_file(self._file, self._schema)
        for batch in self._batches:
            self._writer.write_batch(batch)
        self._batches, self._num_bytes = [], 0
