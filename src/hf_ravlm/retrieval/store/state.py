"""A state of the knowledge: passages, the index that finds them, and which of them are alive.

Every change makes a new state, and a search keeps the one it began with. Passages are rows of a table with a vector
each. A row that was added keeps its place; one that was removed stays in table and index, but is no longer alive and
never returned, until `compacted` makes a state without it. An update removes the old row and adds a new one at the
end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError
from ..indexes.vector_index import VectorIndex, build_index
from ..metadata import metadata_table
from ..passage import Passage, differing_rows, first_few, passages_at
from ..unit_vectors import check_unit_vectors
from .growing_array import GrowingArray


_MOST_PARTS = 1_000  # of a table that is put together without a copy
_FEW_IDS = 100  # times as many are known as are asked for


class IndexOptions(NamedTuple):
    """What an index is to be, for building it again: see `build_index`; and how passages are grouped in a search.

    `group_by` and `group_query` are those of `SearchOptions`, for searches that do not say otherwise.
    """

    kind: str = "flat"
    memory_budget: int | None = None
    recall: float = 0.95
    group_by: str | None = None
    group_query: str = "both"

    def build(self, vectors: np.ndarray) -> VectorIndex:
        """Builds the index over unit vectors (N, D)."""
        return build_index(vectors, self.kind, memory_budget=self.memory_budget, recall=self.recall)


@dataclass(frozen=True)
class KnowledgeState:
    """One state of N rows.

    Attributes:
        table: All rows, also those that were removed.
        index: Over the vectors of all rows.
        alive: Shape (N,), bool.
        options: What the index is to be.
        buffer: Holds the vectors, once some were added; shared by all states whose tables begin with the same rows.
    """

    table: pa.Table
    index: VectorIndex
    alive: np.ndarray
    options: IndexOptions = IndexOptions()
    buffer: GrowingArray = field(default_factory=GrowingArray, repr=False)

    @classmethod
    def of(cls, table: pa.Table, vectors: np.ndarray, options: IndexOptions) -> KnowledgeState:
        """The state in which all rows are alive."""
        return cls(table, options.build(vectors), np.ones(len(table), bool), options)

    def __len__(self) -> int:
        """The number of passages that are alive."""
        return len(self.live_rows)

    @cached_property
    def live_rows(self) -> np.ndarray:
        """The rows of the table that are alive, in order: row `i` of `live_table` is row `live_rows[i]` of `table`."""
        rows: np.ndarray = np.flatnonzero(self.alive)
        return rows

    @property
    def all_alive(self) -> bool:
        """Whether no row was removed."""
        return len(self.live_rows) == len(self.table)

    def differs(self, table: pa.Table) -> pa.Array:
        """Which rows of a table say something else than the living passage with their id, or have a new id."""
        return pa.array(differing_rows(self.table, self.rows_of(table["id"]), table))

    def continues(self, earlier: KnowledgeState) -> bool:
        """Whether this state was made from another one by adding and removing alone."""
        return self.buffer is earlier.buffer and len(self.table) >= len(earlier.table)

    @cached_property
    def live_table(self) -> pa.Table:
        """The passages that are alive: parts of the table, not copied, unless they are very many."""
        if self.all_alive:
            return self.table
        ends = np.append(np.flatnonzero(np.diff(self.live_rows) != 1), len(self.live_rows) - 1)
        if len(ends) > _MOST_PARTS or not len(self):
            return self.table.filter(pa.array(self.alive))
        starts = np.append(0, ends[:-1] + 1)
        parts = zip(self.live_rows[starts].tolist(), (ends - starts + 1).tolist(), strict=True)
        return pa.concat_tables([self.table.slice(start, length) for start, length in parts])

    @cached_property
    def vectors(self) -> np.ndarray:
        """The vectors of the passages that are alive, in the order of `live_table`, read-only."""
        if self.all_alive:
            return self.index.vectors
        vectors: np.ndarray = self.index.vectors[self.live_rows]
        vectors.flags.writeable = False
        return vectors

    @cached_property
    def decoded_metadata(self) -> pa.Table:
        """The metadata of all rows of the table, a column per key, for filters."""
        return metadata_table(self.table)

    def search(self, queries: Any, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the table, (n, k') each, of the `k` nearest passages that are alive and allowed.

        Args:
            queries: Vectors of shape (n, D).
            k: At most so many per query.
            allowed: Shape (N,), bool: which rows of the table may be returned; `None` for all.
        """
        if not self.all_alive:
            allowed = self.alive if allowed is None else allowed & self.alive
        return self.index.search(queries, k, allowed=allowed)

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """The passages in several rows of the table, in the order asked for."""
        return passages_at(self.table, rows)

    def rows_of(self, ids: Sequence[str] | pa.ChunkedArray) -> np.ndarray:
        """The rows of the table in which passages with these ids are alive; -1 where there is none."""
        known = self.table["id"] if self.all_alive else self.table["id"].take(pa.array(self.live_rows))
        wanted = ids if isinstance(ids, pa.ChunkedArray) else pa.array(ids, pa.string())
        # Of few ids a small table of these is asked for every known one; of many, a large one is made of the known.
        if len(ids) * _FEW_IDS < len(known):
            there = np.flatnonzero(np.asarray(pc.is_in(known, value_set=wanted)))
            known, live = known.take(pa.array(there)), self.live_rows[there]
        else:
            live = self.live_rows
        places = pc.fill_null(pc.index_in(wanted, value_set=known), -1)
        rows: np.ndarray = np.append(live, -1)[np.asarray(places)]  # place -1 is the last
        return rows

    def stored(self, ids: Sequence[str]) -> list[Passage | None]:
        """The living passages with some ids, in their order; `None` where there is none."""
        rows = self.rows_of(ids)
        found = iter(passages_at(self.table, rows[rows >= 0].tolist()))
        return [next(found) if row >= 0 else None for row in rows]

    def added(self, table: pa.Table, vectors: np.ndarray) -> KnowledgeState:
        """The state after passages were added at the end; errors as `check_new` and `appended`."""
        self.check_new(table["id"])
        return self.appended(table, vectors)

    def check_new(self, ids: pa.ChunkedArray) -> None:
        """Raises `InvalidInputError` if ids are taken."""
        taken = ids.filter(pa.array(self.rows_of(ids) >= 0)).to_pylist()
        if taken:
            raise InvalidInputError(
                f"{len(taken)} of {len(ids)} passages have ids that are in the knowledge base already: "
                f"{first_few(taken)}. Use `update` to replace passages, or give the new ones other ids."
            )

    def updated(self, table: pa.Table, vectors: np.ndarray) -> KnowledgeState:
        """The state after passages with the same ids were replaced, and those with new ids added."""
        rows = self.rows_of(table["id"])
        return self._without(rows[rows >= 0]).appended(table, vectors)

    def removed(self, ids: Sequence[str]) -> KnowledgeState:
        """The state without passages; `InvalidInputError` if there is none with one of the ids."""
        rows = self.rows_of(ids)
        if (rows < 0).any():
            unknown = [passage_id for passage_id, row in zip(ids, rows, strict=True) if row < 0]
            raise InvalidInputError(
                f"{len(unknown)} of {len(ids)} ids are not in the knowledge base: {first_few(unknown)}. Nothing was "
                f"removed; the knowledge base holds {len(self)} passages."
            )
        return self._without(rows)

    def compacted(self) -> KnowledgeState:
        """The state in which nothing is left of removed passages; itself, if there are none."""
        if self.all_alive:
            return self
        return KnowledgeState.of(self.live_table, self.vectors, self.options)

    def appended(self, table: pa.Table, vectors: np.ndarray) -> KnowledgeState:
        """The state with more rows at the end, whatever their ids.

        Raises:
            InvalidInputError: If there are more or fewer vectors than rows, or they have another width.
            UnsafeInputError: If one of them is not a unit vector.
        """
        vectors = check_unit_vectors(vectors, "passage vectors")
        if len(vectors) != len(table):
            raise InvalidInputError(f"{len(table)} passages came with {len(vectors)} vectors. Pass one per passage.")
        if len(table) == 0:
            return self
        if len(self.table) and vectors.shape[1] != self.index.dim:
            raise InvalidInputError(
                f"The new vectors are {vectors.shape[1]} wide, those of the knowledge base {self.index.dim}. Use the "
                "encoder that built it."
            )
        if len(self.table) == 0:  # an empty index knows no width
            index = self.options.build(vectors)
        else:
            together = self.buffer.extended(self.index.vectors, vectors)
            # What was searched exactly because it was small may have grown.
            outgrown = self.options.kind != "flat" and self.index.spec["kind"] == "flat"
            index = self.options.build(together) if outgrown else self.index.grow(together)
        alive = np.concatenate([self.alive, np.ones(len(table), bool)])
        return replace(self, table=pa.concat_tables([self.table, table]), index=index, alive=alive)

    def renewed(self) -> KnowledgeState:
        """The same passages as a state of its own, compacted: all of its files are written again."""
        return replace(self.compacted(), buffer=GrowingArray())

    def with_alive(self, alive: np.ndarray) -> KnowledgeState:
        """The same rows, of which others are alive."""
        return self if np.array_equal(alive, self.alive) else replace(self, alive=alive)

    def _without(self, rows: np.ndarray) -> KnowledgeState:
        alive = self.alive.copy()
        alive[rows] = False
        return self.with_alive(alive)
