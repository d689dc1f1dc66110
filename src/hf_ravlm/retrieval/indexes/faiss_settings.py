"""The settings of FAISS that belong to the whole process, changed for the length of one call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import InvalidInputError


_LOCK = threading.Lock()
_READ_LOCK = threading.Lock()
_BYTES_BEYOND_FILE = 64_000_000
_MAX_LOOP = 10_000_000

_num_users_of_matrix_products = 0
_own_threshold = 0


def import_faiss() -> Any:
    """Returns the module `faiss`, or raises an `ImportError` that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Searching a knowledge base needs FAISS: pip install faiss-cpu") from error
    return faiss


@contextmanager
def matrix_products() -> Iterator[None]:
    """Lets FAISS use BLAS for small batches too, 4 to 14 times faster, until the last of several threads leaves."""
    global _num_users_of_matrix_products, _own_threshold
    faiss = import_faiss()
    with _LOCK:
        if _num_users_of_matrix_products == 0:
            _own_threshold = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
        _num_users_of_matrix_products += 1
    try:
        yield
    finally:
        with _LOCK:
            _num_users_of_matrix_products -= 1
            if _num_users_of_matrix_products == 0:
                faiss.cvar.distance_compute_blas_threshold = _own_threshold


@contextmanager
def thread_limit(num_threads: int | None) -> Iterator[None]:
    """Lets the calling thread use so many threads inside FAISS and torch; `None` changes nothing.

    Raises:
        InvalidInputError: If `num_threads < 1`.
    """
    if num_threads is None:
        yield
        return
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise InvalidInputError(f"num_threads={num_threads!r}: expected a whole number of at least 1, or None.")
    import torch

    faiss = import_faiss()
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(num_threads)
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


@contextmanager
def reading_limits(num_bytes: int) -> Iterator[None]:
    """Bounds what a damaged or malicious file of `num_bytes` can make FAISS allocate while it is read (else 1 TiB)."""
    faiss = import_faiss()
    with _READ_LOCK:  # the limits belong to the process
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(num_bytes + _BYTES_BEYOND_FILE)
        faiss.set_deserialization_loop_limit(_MAX_LOOP)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])
