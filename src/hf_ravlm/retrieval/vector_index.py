"""Knows how to find the nearest of many unit vectors exactly, and which vectors may take part.

Similarity is the inner product of unit vectors, the cosine. One vector with a NaN, or with a norm of a thousand, would
spoil the answers to most queries without an error; so nothing enters, as passage or as query, unless it is finite and
has a direction.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import InvalidInputError, UnsafeInputError


_MIN_NORM = 1e-12
_UNIT_TOLERANCE = 1e-3
# From this many queries on, one matrix product beats as many scans of the vectors.
_MIN_QUERIES_FOR_BLAS = 8
_BLAS_LOCK = threading.Lock()


class FlatIndex:
    """Exact inner-product search (the scan of `faiss.IndexFlatIP`) over vectors that stay where they are.

    The array is searched in place: no second copy of the vectors is made, and nothing can be stale.

    Args:
        vectors: Unit vectors of shape (N, D); `N` may be 0.

    Raises:
        InvalidInputError: If the array has a wrong shape or type.
        UnsafeInputError: If a vector is not finite or not of length 1.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_ravlm.retrieval import FlatIndex
    >>> index = FlatIndex(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    >>> scores, rows = index.search(np.array([[0.0, 2.0]]), k=2)
    >>> rows.tolist(), scores.round(2).tolist()
    ([[1, 2]], [[1.0, 0.800000011920929]])

    ```
    """

    def __init__(self, vectors: Any) -> None:
        self.vectors = check_unit_vectors(vectors, "passage vectors").view()
        self.vectors.flags.writeable = False

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        return int(self.vectors.shape[1])

    def search(self, queries: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best `min(k, N)` passages of every query, best first; equal scores in the order of rows.

        Args:
            queries: Vectors of shape (n, D), array or tensor, of any length but zero: they are normalised.
            k: How many to return.

        Returns:
            Scores of shape (n, min(k, N)) in float32, cosines; and rows of the same shape in int64, all of them valid.

        Raises:
            InvalidInputError: If `k < 1` or the queries have a wrong shape or width.
            UnsafeInputError: If a query is zero or not finite.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InvalidInputError(f"k={k!r}: expected a whole number of at least 1 passages per query.")
        if len(self) == 0:
            num_queries = len(queries)
            return np.zeros((num_queries, 0), np.float32), np.zeros((num_queries, 0), np.int64)
        vectors = unit_vectors(queries, "query vectors", dim=self.dim)
        k = min(int(k), len(self))
        if len(vectors) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        scores, rows = _inner_product_search(vectors, self.vectors, k)
        order = np.lexsort((rows, -scores), axis=-1)  # (n, k)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _inner_product_search(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Searching a knowledge base needs FAISS: pip install faiss-cpu") from error
    if len(queries) < _MIN_QUERIES_FOR_BLAS:
        scores, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        with _matrix_products(faiss):
            scores, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    # FAISS pads with -1, and `passages[-1]` would be the last passage.
    if rows.min() < 0 or rows.max() >= len(vectors):
        raise RuntimeError(
            f"FAISS {faiss.__version__} returned rows outside 0..{len(vectors) - 1}; please report this."
        )
    return scores, rows


@contextmanager
def _matrix_products(faiss: Any) -> Iterator[None]:
    """Lets FAISS use BLAS for small batches too; its own threshold makes these 4 to 8 times slower."""
    # The threshold belongs to the process: without the lock a second thread would save the lowered value as its own.
    with _BLAS_LOCK:
        threshold = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = threshold


def unit_vectors(vectors: Any, what: str, dim: int | None = None, names: Sequence[str] | None = None) -> np.ndarray:
    """Returns vectors of any length as contiguous float32 unit vectors, or refuses them.

    Args:
        vectors: An array or a tensor of shape (n, D), of any float type, on any device.
        what: What they are, for messages.
        dim: The width `D` that is expected; `None` takes any.
        names: What messages call the rows; `None` for their numbers.

    Raises:
        InvalidInputError: If the shape, width or type is wrong.
        UnsafeInputError: If a vector is zero, NaN or infinite, with its row or name.
    """
    array = _float_matrix(vectors, what, dim)
    norms = _norms(array)
    _refuse(~(np.isfinite(norms) & (norms >= _MIN_NORM)), what, "zero, NaN or infinite", names)
    return np.ascontiguousarray(array / norms[:, None], dtype=np.float32)


def check_unit_vectors(vectors: Any, what: str) -> np.ndarray:
    """Returns unit vectors unchanged, as a contiguous float32 array, or refuses them; errors as `unit_vectors`."""
    array = _float_matrix(vectors, what, None)
    norms = _norms(array)
    _refuse(~np.isfinite(norms), what, "NaN or infinite")
    _refuse(np.abs(norms - 1) > _UNIT_TOLERANCE, what, "not of length 1 (normalise them first)")
    return np.ascontiguousarray(array, dtype=np.float32)


def _float_matrix(vectors: Any, what: str, dim: int | None) -> np.ndarray:
    if hasattr(vectors, "detach"):  # a torch tensor: bfloat16 and other devices are unknown to numpy
        vectors = vectors.detach().float().cpu().numpy()
    array = np.asarray(vectors)
    if not np.issubdtype(array.dtype, np.floating):
        raise InvalidInputError(f"The {what} have the type {array.dtype}. Expected floating-point numbers.")
    if array.ndim != 2:
        raise InvalidInputError(
            f"The {what} have the shape {array.shape}. Expected (n, D); use `vector.reshape(1, -1)` for a single one."
        )
    if dim is not None and array.shape[1] != dim:
        raise InvalidInputError(
            f"The {what} are {array.shape[1]} wide, but the knowledge base holds vectors of width {dim}. Use the "
            "encoder that built it."
        )
    return array


def _norms(array: np.ndarray) -> np.ndarray:
    # float64: the square of a large float32 would be infinite.
    norms: np.ndarray = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    return norms


def _refuse(bad: np.ndarray, what: str, why: str, names: Sequence[str] | None = None) -> None:
    if bad.any():
        rows = np.flatnonzero(bad).tolist()
        shown = ", ".join(str(row) if names is None else names[row] for row in rows[:5])
        more = ", ..." if len(rows) > 5 else ""
        raise UnsafeInputError(f"{len(rows)} of {len(bad)} {what} are {why}: {shown}{more}. Check the encoder.")
