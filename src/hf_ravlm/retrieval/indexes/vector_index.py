"""Indexes over unit vectors: exact, or one that finds nearly all of the nearest sooner.

Both give the same scores, cosines. Indexes never change: growing gives a new one while threads search the old one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ...errors import InvalidInputError, KnowledgeBaseCorruptError
from ...numbers_given import check_whole
from ..unit_vectors import check_unit_vectors, unit_vectors
from .approximate_search import FilledIndex, approximate_search, exact_is_cheaper
from .exact_search import best_first, exact_search
from .faiss_settings import import_faiss, thread_limit
from .index_building import add_rows, own_copy, read_faiss_index, trained_index
from .index_choice import check_budget, check_recall, estimate_index, suitable_kinds
from .index_tuning import TUNED_K, EffortTable, tune
from .index_types import (
    INDEX_KINDS,
    factory_string,
    index_type,
    inverted_lists,
    search_parameters,
    unknown_kind,
)


logger = logging.getLogger(__name__)

# An index that has grown beyond this is built anew: its lists and its effort were made for fewer vectors.
_MAX_GROWTH = 2.0
# So many new vectors are searched exactly beside an index, which takes less time than its own search.
_MIN_BESIDE, _MAX_SHARE_BESIDE = 1_000, 0.005
# Fewer vectors give an index nothing to learn from.
_MIN_ROWS = 100
_PROBE_CANDIDATES = 20
_MOST_PROBES = 8
_RECALL_TOLERANCE = 0.01
_MAX_CHOICES = 2


class VectorIndex(Protocol):
    """What the retriever needs of an index over `vectors`, unit vectors (N, D)."""

    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        return int(self.vectors.shape[1])

    @property
    def spec(self) -> dict[str, Any]:
        """What is known about the index, as JSON values."""
        ...

    def search(
        self, queries: Any, k: int, allowed: np.ndarray | None = None, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `FlatIndex.search`."""
        ...

    def grow(self, vectors: Any) -> VectorIndex:
        """Returns an index over a longer array (N + m, D) that begins with the vectors of this one."""
        ...


class FlatIndex(VectorIndex):
    """Exact inner-product search over vectors that stay where they are, without a copy.

    Args:
        vectors: Unit vectors (N, D), perhaps none; may be a memory map.

    Raises:
        InvalidInputError: If the array has a wrong shape or type.
        UnsafeInputError: If a vector is not finite or not of length 1.

    >>> index = FlatIndex(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    >>> scores, rows = index.search(np.array([[0.0, 2.0]]), k=2)
    >>> rows.tolist(), scores.round(2).tolist()
    ([[1, 2]], [[1.0, 0.800000011920929]])
    """

    def __init__(self, vectors: Any) -> None:
        self.vectors = _read_only(check_unit_vectors(vectors, "passage vectors"))

    @classmethod
    def _over(cls, checked: np.ndarray) -> FlatIndex:
        """An index over vectors that are known to be sound, which are not read."""
        index = cls.__new__(cls)
        index.vectors = _read_only(checked)
        return index

    @property
    def spec(self) -> dict[str, Any]:
        """See `VectorIndex`."""
        return {"kind": "flat", "rows": len(self), "dim": self.dim}

    def search(
        self, queries: Any, k: int, allowed: np.ndarray | None = None, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best passages of every query, best first; equal scores in the order of rows.

        Args:
            queries: Vectors of shape (n, D), array or tensor, of any length but zero: they are normalised.
            k: How many to return.
            allowed: Which rows may be found, bool of shape (N,); `None` for all.
            num_threads: `None` for what FAISS and torch are set to.

        Returns:
            Cosines (n, min(k, number of allowed rows)) in float32, and rows of the same shape in int64, all valid.

        Raises:
            InvalidInputError: If `k < 1`, or queries or `allowed` have a wrong shape or width.
            UnsafeInputError: If a query is zero or not finite.
        """
        checked, k, allowed = _checked_search(self, queries, k, allowed)
        with thread_limit(num_threads):
            return exact_search(checked, self.vectors, k, allowed)

    def grow(self, vectors: Any) -> FlatIndex:
        """See `VectorIndex`."""
        return FlatIndex._over(_longer(self, vectors))


class ApproximateIndex(VectorIndex):
    """An index that finds nearly all of the nearest vectors, sooner; make one with `build_index` or `open_index`.

    Args:
        index: A FAISS index of this kind over the vectors, or over the first of them: the others are searched exactly.
        vectors: Unit vectors (N, D), checked and contiguous in float32; may be a memory map.
        table: How hard to search.
        spec: The facts of the build: `kind`, `rows`, `dim`, `seed`, `recall` and so on.
    """

    def __init__(self, index: Any, vectors: np.ndarray, table: EffortTable, spec: Mapping[str, Any]) -> None:
        self.kind = str(spec["kind"])
        self.vectors = _read_only(vectors)
        self._filled = FilledIndex(index, self.kind, self.vectors[: index.ntotal])
        self._table = table
        self._facts = dict(spec)
        lists = inverted_lists(index)
        self._num_lists = None if lists is None else int(lists.nlist)

    @property
    def spec(self) -> dict[str, Any]:
        """What is known about the index, as JSON values; `open_index` wants it back."""
        table = self._table
        columns = (table.depths, table.efforts, table.costs, table.candidates)
        return {**self._facts, "rows": len(self), "effort": [list(row) for row in zip(*columns, strict=True)]}

    def search(
        self, queries: Any, k: int, allowed: np.ndarray | None = None, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best passages that are found; arguments, shapes and errors as `FlatIndex.search`.

        A filter that leaves few rows, and a query for which the index finds too little, are answered exactly.
        """
        checked, k, allowed = _checked_search(self, queries, k, allowed)
        num_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, num_allowed)
        depth = max(k / TUNED_K, 1.0) * len(self) / max(num_allowed, 1)
        candidates = self._table.candidates_at(depth)
        with thread_limit(num_threads):
            if k * len(checked) == 0 or exact_is_cheaper(
                self._table.cost(depth), k * candidates, self.kind, len(self), num_allowed, len(checked)
            ):
                return exact_search(checked, self.vectors, k, allowed)
            effort = self._table.effort(depth)
            effort = effort if self._num_lists is None else min(effort, self._num_lists)
            some = allowed if num_allowed < len(self) else None
            scores, rows = self._search_both(checked, k, effort, candidates, some)
            short = rows[:, -1] < 0
            if short.any():
                scores[short], rows[short] = exact_search(checked[short], self.vectors, k, allowed)
            return scores, rows

    def _search_both(
        self, queries: np.ndarray, k: int, effort: int, candidates: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the index finds, and what exact search finds among the vectors that came after it."""
        num_indexed = len(self._filled.vectors)
        indexed = None if allowed is None else allowed[:num_indexed]
        scores, rows = approximate_search(self._filled, queries, k, effort, candidates, indexed)
        if num_indexed == len(self):
            return scores, rows
        newer = None if allowed is None else allowed[num_indexed:]
        new_scores, new_rows = exact_search(queries, self.vectors[num_indexed:], k, newer)
        together = np.concatenate([scores, new_scores], axis=1), np.concatenate([rows, new_rows + num_indexed], axis=1)
        return best_first(*together, k)

    def finds_itself(self) -> bool:
        """Whether the vector in the middle is found at its own row, or else most of a few others."""
        # Nearly always the first is, with the least effort; every further one reads all centres of a mapped index
        # again. But of a large graph some vectors are never found.
        middle, effort = len(self) // 2, self._table.efforts[0]
        others = np.linspace(0, len(self) - 1, _MOST_PROBES, dtype=int).tolist()
        return self._finds(middle, 1) or 2 * sum(self._finds(row, effort) for row in others) > len(others)

    def _finds(self, row: int, effort: int) -> bool:
        probe = np.ascontiguousarray(self.vectors[row : row + 1])
        parameters = search_parameters(self.kind, effort, None)
        found = self._filled.index.search(probe, _PROBE_CANDIDATES, params=parameters)[1][0]
        # There may be more equal vectors than candidates.
        first = found[0] if 0 <= found[0] < len(self) else row
        return row in found or bool(first != row and (self.vectors[first] == probe[0]).all())

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the index, without the vectors, as one FAISS file; `open_index` reads it."""
        import_faiss().write_index(self._over_all(self.vectors), os.fspath(path))

    def _over_all(self, vectors: np.ndarray) -> Any:
        """The FAISS index over all vectors: itself, or a copy to which those that came after it are added."""
        num_indexed = len(self._filled.vectors)
        if num_indexed == len(vectors):
            return self._filled.index
        index = own_copy(self._filled.index)
        add_rows(index, vectors[num_indexed:])
        return index

    def grow(self, vectors: Any) -> VectorIndex:
        """See `VectorIndex`.

        A few new vectors stay beside the index and are searched exactly; of more, a copy of it grows; and all are
        indexed anew if they have more than doubled since the build.
        """
        longer = _longer(self, vectors)
        if len(longer) > _MAX_GROWTH * self._facts["built_rows"]:
            recall = self._facts["recall"]["wanted"]
            return build_index(longer, self.kind, recall=recall, seed=self._facts["seed"])
        num_beside = len(longer) - len(self._filled.vectors)
        few = num_beside <= max(_MIN_BESIDE, _MAX_SHARE_BESIDE * len(self._filled.vectors))
        return ApproximateIndex(
            self._filled.index if few else self._over_all(longer), longer, self._table, self._facts
        )


def build_index(
    vectors: Any,
    kind: str = "flat",
    *,
    memory_budget: int | None = None,
    recall: float = 0.95,
    queries: Any | None = None,
    num_threads: int | None = None,
    seed: int = 0,
) -> VectorIndex:
    """Builds an index, sets how hard it searches, and measures its recall against exact search.

    Its sizes and its recall are logged (INFO; a warning if the recall falls short).

    Args:
        vectors: Unit vectors (N, D); float32 in C order is not copied, so a memory map stays one.
        kind: One of `INDEX_KINDS`. `"flat"` is exact; `"auto"` chooses by size, memory and recall, see
            `suitable_kinds`, and takes the second best if the best falls short of the recall.
        memory_budget: Bytes that searching may keep in memory; `None` for no limit.
        recall: The wanted share of the exact ten best.
        queries: Some hundred vectors (n, D) of typical queries, to set the effort by; `None` makes some of passages.
        num_threads: `None` for what FAISS is set to. A graph that several threads build differs from run to run.
        seed: Seed of samples and k-means.

    Returns:
        A `FlatIndex` or an `ApproximateIndex`. Fewer than 100 vectors get a `FlatIndex` whatever the kind.

    Raises:
        InvalidInputError: If the kind is unknown or missing in FAISS, or the budget is too small.
        UnsafeInputError: If a vector is not finite or not of length 1.

    >>> vectors = np.random.default_rng(0).normal(size=(500, 16))
    >>> index = build_index(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), kind="ivf_sq8")
    >>> index.spec["factory"], index.spec["recall"]["measured"] > 0.9
    ('IVF12,SQ8', True)
    >>> index.search(vectors[7:8], k=1)[1].tolist()
    [[7]]
    """
    if kind not in INDEX_KINDS:
        raise unknown_kind(kind)
    check_recall(recall)
    checked = check_unit_vectors(vectors, "passage vectors")
    num_rows, dim = checked.shape
    kinds = suitable_kinds(num_rows, dim, memory_budget, recall) if kind == "auto" else (kind,)
    indexes: list[ApproximateIndex] = []
    for choice in kinds[:_MAX_CHOICES]:
        estimate = estimate_index(num_rows, dim, choice)
        check_budget(estimate, memory_budget)
        logger.info("%d vectors of width %d. %s.", num_rows, dim, estimate)
        if choice == "flat" or num_rows < _MIN_ROWS:
            return FlatIndex(checked)
        with thread_limit(num_threads):
            index = trained_index(checked, choice, seed)
            add_rows(index, checked)
            indexes.append(_tuned_index(index, choice, checked, recall, queries, seed))
        if indexes[-1].spec["recall"]["measured"] >= recall - _RECALL_TOLERANCE:
            break
    return max(indexes, key=lambda built: float(built.spec["recall"]["measured"]))


def open_index(
    path: str | os.PathLike[str], spec: Mapping[str, Any], vectors: Any, mmap: bool = True
) -> ApproximateIndex:
    """Opens an index that `ApproximateIndex.write` wrote.

    Args:
        path: The file, its checksum compared: FAISS does not notice changed numbers. Never write to it while mapped.
        spec: The `spec` of the index that was written.
        vectors: The unit vectors (N, D) that it was built of.
        mmap: Whether to map the file into memory (open at once, one copy for all processes) or to read it.

    Raises:
        KnowledgeBaseCorruptError: If the file is missing, damaged, of another kind or size, or of other vectors.
    """
    array = np.asarray(vectors)
    if array.dtype != np.float32 or array.ndim != 2 or not array.flags.c_contiguous:
        array = check_unit_vectors(vectors, "passage vectors")
    table, facts = EffortTable.from_spec(spec, path)
    index = read_faiss_index(path, facts["kind"], len(array), array.shape[1], mmap)
    opened = ApproximateIndex(index, array, table, facts)
    if not opened.finds_itself():
        problem = f"the index does not find the vector of row {len(opened) // 2}. It was built of others"
        raise KnowledgeBaseCorruptError(f"{path}: {problem}: build it again with `build_index`.")
    return opened


def _tuned_index(
    index: Any, kind: str, vectors: np.ndarray, recall: float, queries: Any | None, seed: int
) -> ApproximateIndex:
    sample = None if queries is None else unit_vectors(queries, "query vectors", vectors.shape[1])
    if sample is not None and len(sample) < 2:
        raise InvalidInputError(f"{len(sample)} queries: expected at least 2, half to tune with and half to measure.")
    table = tune(FilledIndex(index, kind, vectors), recall, sample, seed)
    origin = "made" if sample is None else "given"
    report = "The %s index finds %.3f of the exact %d best (wanted: %.3f) for %s queries, with %s %d."
    level = logging.INFO if table.recall >= recall - _RECALL_TOLERANCE else logging.WARNING
    effort = index_type(kind).effort
    value = table.candidates[0] if effort == "candidates" else table.efforts[0]
    logger.log(level, report, kind, table.recall, TUNED_K, recall, origin, effort, value)
    facts = {
        "kind": kind,
        "factory": factory_string(kind, len(vectors), vectors.shape[1]),
        "built_rows": len(vectors),
        "dim": int(vectors.shape[1]),
        "seed": seed,
        "recall": {"k": TUNED_K, "wanted": recall, "measured": round(table.recall, 4), "queries": origin},
        "faiss": import_faiss().__version__,
    }
    return ApproximateIndex(index, vectors, table, facts)


def _checked_search(
    index: FlatIndex | ApproximateIndex, queries: Any, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, int, np.ndarray | None]:
    check_whole("k", k, lowest=1, meaning=" passages per query")
    if allowed is not None:
        allowed = np.asarray(allowed)
        if allowed.shape != (len(index),) or allowed.dtype != np.bool_:
            raise InvalidInputError(
                f"`allowed` has the shape {allowed.shape} and type {allowed.dtype}. Expected one bool for each of the "
                f"{len(index)} rows."
            )
    if len(index) == 0:
        return np.zeros((len(queries), index.dim), np.float32), int(k), None
    return unit_vectors(queries, "query vectors", dim=index.dim), int(k), allowed


def _longer(index: FlatIndex | ApproximateIndex, vectors: Any) -> np.ndarray:
    """The vectors, of which those behind the ones that the index holds are looked at."""
    array = np.asarray(vectors)
    if array.dtype != np.float32 or array.ndim != 2 or not array.flags.c_contiguous:
        array = check_unit_vectors(vectors, "passage vectors")
    if len(array) < len(index) or array.shape[1] != index.dim:
        raise InvalidInputError(
            f"The vectors have the shape {array.shape}. Expected at least the {len(index)} of width {index.dim} that "
            "the index holds, and more behind them."
        )
    check_unit_vectors(array[len(index) :], "passage vectors")
    return array


def _read_only(vectors: np.ndarray) -> np.ndarray:
    view = vectors.view()
    view.flags.writeable = False
    return view
