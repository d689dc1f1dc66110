"""Where an id stands: in a dictionary, or, of many ids, by their order, which costs eight bytes for each."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


MOST_IN_DICTIONARY = 100_000  # a dictionary of a million strings takes 150 MB, and a second to be made


class IdPlaces:
    """The row of every id of a column without repeated ids.

    >>> places = IdPlaces(pa.chunked_array([["wren", "robin"], ["owl"]]))
    >>> places.row_of("owl"), places.row_of("kite")
    (2, None)
    """

    def __init__(self, ids: pa.ChunkedArray) -> None:
        self._rows: dict[str, int] | None = None
        if len(ids) <= MOST_IN_DICTIONARY:
            self._rows = {passage_id: row for row, passage_id in enumerate(ids.to_pylist())}
            return
        self._ids = pa.chunked_array(ids.chunks, ids.type).cast(pa.large_string()).combine_chunks()
        # Arrow orders by the bytes of UTF-8, which is the order of the characters.
        self._order: np.ndarray = np.asarray(pc.array_sort_indices(self._ids))

    def row_of(self, passage_id: str) -> int | None:
        """The row; `None` if the id is not there."""
        if self._rows is not None:
            return self._rows.get(passage_id)
        place = bisect_left(self._order, passage_id, key=lambda row: self._ids[int(row)].as_py())
        row = int(self._order[place]) if place < len(self._order) else None
        return row if row is not None and self._ids[row].as_py() == passage_id else None
