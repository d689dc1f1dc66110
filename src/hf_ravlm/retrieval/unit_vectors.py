"""Usable vectors: finite, with a direction, and of length 1 before they are stored or compared.

One vector with a NaN, or with a norm of a thousand, would spoil the answers to most queries without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError, UnsafeInputError


_MIN_NORM = 1e-12
UNIT_TOLERANCE = 1e-3
_ROWS_PER_CHECK = 65_536


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

    >>> unit_vectors(np.array([[3.0, 4.0]]), "vectors")
    array([[0.6, 0.8]], dtype=float32)
    """
    array = _float_matrix(vectors, what, dim)
    norms = _norms(array)
    if len(norms) and not (norms.min() >= _MIN_NORM and norms.max() < np.inf):  # NaN fails both
        _refuse(~(np.isfinite(norms) & (norms >= _MIN_NORM)), what, "zero, NaN or infinite", names)
    return np.ascontiguousarray(array / norms[:, None], dtype=np.float32)


def check_unit_vectors(vectors: Any, what: str) -> np.ndarray:
    """Returns unit vectors as contiguous float32, without a copy if they are; errors as `unit_vectors`."""
    array = _float_matrix(vectors, what, None)
    # In blocks: a memory map larger than the memory is read once and never held.
    blocks = [_norms(array[start : start + _ROWS_PER_CHECK]) for start in range(0, len(array), _ROWS_PER_CHECK)]
    norms = np.concatenate([np.zeros(0), *blocks])
    _refuse(~np.isfinite(norms), what, "NaN or infinite")
    _refuse(np.abs(norms - 1) > UNIT_TOLERANCE, what, "not of length 1 (normalise them first)")
    return np.ascontiguousarray(array, dtype=np.float32)


def unit_or_zero(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors of length 1, float32, along the last axis; a zero vector stays zero.

    >>> unit_or_zero(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: np.ndarray = (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
    return units


def _float_matrix(vectors: Any, what: str, dim: int | None) -> np.ndarray:
    if hasattr(vectors, "detach"):  # a torch tensor: bfloat16 and other devices are unknown to numpy
        vectors = vectors.detach().float().cpu().numpy()
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
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
