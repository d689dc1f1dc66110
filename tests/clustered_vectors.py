"""Vectors for tests of indexes: they gather around a few places, as those of an encoder do."""

from __future__ import annotations

import numpy as np


DIM = 32


def clustered(num_rows: int, seed: int = 0) -> np.ndarray:
    """Unit vectors (num_rows, 32) around 40 centres, which are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(40, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(40, size=num_rows)] + rng.normal(size=(num_rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
