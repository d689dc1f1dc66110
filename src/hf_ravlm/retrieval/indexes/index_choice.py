"""What an index will need before it is built, and which kind suits a size, a budget and a wanted recall."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidInputError
from .index_types import INDEX_KINDS, index_type, is_available, num_lists


# Up to so many numbers (27,000 vectors of width 384) a single exact query takes about two milliseconds.
_MAX_NUMBERS_TO_SCAN = 10_500_000
# Beyond, the links of a graph take ten minutes and more to build, and lists a fraction of that.
_MAX_VECTORS_FOR_GRAPH = 2_000_000
_RECALL_FOR_EXACT = 0.999


@dataclass(frozen=True)
class IndexEstimate:
    """What an index needs; the vectors themselves are counted apart, for they are kept anyway.

    Attributes:
        kind: The kind of index.
        ram_bytes: Memory for quick answers. `"flat"` reads all vectors, the others a few, from a memory map.
        disk_bytes: The size of the index file; 0 for `"flat"`.
        vector_bytes: The size of the vectors, on disk in any case.
    """

    kind: str
    ram_bytes: int
    disk_bytes: int
    vector_bytes: int

    def __str__(self) -> str:
        ram, disk, vectors = (f"{size / 1e6:,.0f} MB" for size in (self.ram_bytes, self.disk_bytes, self.vector_bytes))
        return f"{self.kind} index: {ram} of memory, {disk} on disk beside {vectors} of vectors"


def estimate_index(num_vectors: int, dim: int, kind: str) -> IndexEstimate:
    """Estimates what an index will need, before it is built.

    Args:
        num_vectors: How many vectors, `N`.
        dim: How wide they are, `D`.
        kind: One of `INDEX_KINDS` except `"auto"`.

    Raises:
        InvalidInputError: If there is no such kind.

    >>> print(estimate_index(1_000_000, 384, "hnsw_sq8"))
    hnsw_sq8 index: 656 MB of memory, 656 MB on disk beside 1,536 MB of vectors
    >>> print(estimate_index(1_000_000, 384, "ivf_sq8"))
    ivf_sq8 index: 398 MB of memory, 398 MB on disk beside 1,536 MB of vectors
    """
    vector_bytes = 4 * num_vectors * dim
    if kind == "flat":
        return IndexEstimate(kind, vector_bytes, 0, vector_bytes)
    entry = index_type(kind)
    num_bytes = int(num_vectors * entry.bytes_per_vector(dim))
    if entry.effort == "nprobe":
        num_bytes += 4 * dim * num_lists(num_vectors)
    if kind in ("ivf_opq_pq", "binary"):  # which keep a rotation
        num_bytes += 4 * dim * dim
    return IndexEstimate(kind, num_bytes, num_bytes, vector_bytes)


def suitable_kinds(
    num_vectors: int, dim: int, memory_budget: int | None = None, recall: float = 0.95
) -> tuple[str, ...]:
    """Returns the kinds that suit, the best first, among those that the installed FAISS has.

    Few vectors are searched exactly. For more, lists of product codes are built soonest, answer soonest and are the
    smallest; vectors that four-bit codes describe badly come off better with one byte per number.

    Args:
        num_vectors: How many vectors, `N`.
        dim: How wide they are, `D`.
        memory_budget: Bytes that searching may keep in memory; `None` for no limit.
        recall: The wanted share of the exact ten best, above 0 and at most 1.

    Raises:
        InvalidInputError: If the budget is too small for every kind, or `recall` is out of range.

    >>> suitable_kinds(5_000, 384)[0], suitable_kinds(100_000, 384)
    ('flat', ('ivf_pq', 'hnsw_sq8', 'ivf_sq8', 'ivf_rabitq'))
    """
    check_recall(recall)
    preference = ["ivf_pq", "hnsw_sq8", "ivf_sq8", "ivf_rabitq"]
    if num_vectors > _MAX_VECTORS_FOR_GRAPH:
        preference.remove("hnsw_sq8")
    if num_vectors * dim <= _MAX_NUMBERS_TO_SCAN or recall > _RECALL_FOR_EXACT:
        preference.insert(0, "flat")
    estimates = [estimate_index(num_vectors, dim, kind) for kind in preference if is_available(kind)]
    fitting = [entry.kind for entry in estimates if memory_budget is None or entry.ram_bytes <= memory_budget]
    if fitting:
        return tuple(fitting)
    least = min(estimates, key=lambda estimate: estimate.ram_bytes)
    problem = f"memory_budget={memory_budget:,} bytes is too little for {num_vectors:,} vectors of width {dim}"
    raise InvalidInputError(f"{problem}. The smallest is the {least}.")


def check_budget(estimate: IndexEstimate, memory_budget: int | None) -> None:
    """Refuses an index that needs more memory than it may have, with an `InvalidInputError`."""
    if memory_budget is not None and estimate.ram_bytes > memory_budget:
        raise InvalidInputError(
            f"memory_budget={memory_budget:,} bytes is too little for the {estimate}. Choose another kind of "
            f'{", ".join(INDEX_KINDS)}; "auto" takes one that fits.'
        )


def check_recall(recall: float) -> None:
    """Refuses a recall that is not above 0 and at most 1, with an `InvalidInputError`."""
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise InvalidInputError(f"recall={recall!r}: expected a share above 0 and at most 1, such as 0.95.")
