"""Vectors for tests of indexes: they gather around a few places, as those of an encoder do, or point anywhere."""

from __future__ import annotations

import numpy as np

from hf_ravlm.retrieval.unit_vectors import unit_vectors


DIM = 32


def clustered(num_rows: int, seed: int = 0) -> np.ndarray:
    """Unit vectors (num_rows, 32) around 40 centres, which are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(40, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(40, size=num_rows)] + rng.normal(size=(num_rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_units(num_rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Unit vectors (num_rows, dim) in all directions alike, float32."""
    return unit_vectors(np.random.default_rng(seed).normal(size=(num_rows, dim)), "vectors")
