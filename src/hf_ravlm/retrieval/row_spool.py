"""Record batches on their way into one table: in memory, and on the disk from where they are too many.

Rows on the disk are mapped: the system reads them where they are used, and may drop them whenever it needs the memory.
Until then they count as memory of the process, so whoever has gone through many calls `release_rows`.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from types import TracebackType
from typing import Any

import pyarrow as pa


# More than this goes into a temporary file (`TMPDIR`).
MAX_BYTES_IN_MEMORY = 200_000_000
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def release_rows() -> None:
    """Rows on the disk that were read are no memory of this process any more, until they are read again."""
    for rows in _mapped if hasattr(mmap, "MADV_DONTNEED") else ():
        rows.madvise(mmap.MADV_DONTNEED)


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
        rows = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        _mapped.add(rows)
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(rows))).read_all()

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(prefix="hf_ravlm_rows_")
            self._writer = pa.ipc.new_file(self._file, self._schema)
        for batch in self._batches:
            self._writer.write_batch(batch)
        self._batches, self._num_bytes = [], 0
