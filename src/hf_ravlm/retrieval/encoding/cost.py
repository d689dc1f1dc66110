"""What it costs to embed a knowledge base, from what its first passages cost."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ..passage import passages_at
from .encoders import Encoder, encode_passages


logger = logging.getLogger(__name__)

_FLOAT_BYTES = 4
_SAMPLE = 32
_MINUTE = 60.0


@dataclass(frozen=True)
class EmbeddingCost:
    """An estimate.

    Attributes:
        num_passages, dim: `N` vectors of width `D`.
        seconds: With one process, from the passages that were measured.
        vector_bytes: Of the vectors, in memory and on disk.
        staging_bytes: On the disk of unfinished work, where shards and the whole lie side by side at the end.
    """

    num_passages: int
    dim: int
    seconds: float
    vector_bytes: int
    staging_bytes: int

    def describe(self) -> str:
        """One line for people.

        >>> EmbeddingCost(10_000, 384, 7_200.0, 15_360_000, 30_720_000).describe()
        '10,000 passages: about 2.0 h at 1.4 a second; vectors of 384 numbers take 15.4 MB, unfinished work 30.7 MB'
        """
        rate = self.num_passages / max(self.seconds, 1e-9)
        return (
            f"{self.num_passages:,} passages: about {duration(self.seconds)} at {rate:,.1f} a second; vectors of "
            f"{self.dim} numbers take {size(self.vector_bytes)}, unfinished work {size(self.staging_bytes)}"
        )


def estimate_embedding(knowledge_base: Any, encoder: Encoder, sample: int = _SAMPLE) -> EmbeddingCost:
    """Encodes passages from all over a knowledge base, and says what all of them will cost.

    Args:
        knowledge_base: The passages.
        encoder: Encodes them.
        sample: How many are encoded; the first of them twice, for the first call of a model is slow.

    Raises:
        InvalidInputError: If there is no passage, or `sample < 1`.

    >>> estimate_embedding(knowledge_base, encoder).describe()  # doctest: +SKIP
    """
    table = knowledge_base.table
    if sample < 1 or not len(table):
        raise InvalidInputError(f"sample={sample} of {len(table)} passages: expected at least one of each")
    rows = np.unique(np.linspace(0, len(table) - 1, min(sample, len(table))).astype(int)).tolist()
    encode_passages(encoder, passages_at(table, rows[:1]), "passage vectors")
    start = time.perf_counter()
    vectors = encode_passages(encoder, passages_at(table, rows), "passage vectors")
    return cost_of(len(table), vectors.shape[1], (time.perf_counter() - start) / len(rows))


def cost_of(num_passages: int, dim: int, seconds_each: float) -> EmbeddingCost:
    """The estimate for so many passages, at so many seconds each."""
    vector_bytes = num_passages * dim * _FLOAT_BYTES
    return EmbeddingCost(num_passages, dim, num_passages * seconds_each, vector_bytes, 2 * vector_bytes)


def announce(cost: EmbeddingCost, folder: str | os.PathLike[str], num_processes: int) -> None:
    """Says what is to come, and refuses what the disk cannot hold.

    Raises:
        InvalidInputError: If the vectors will not fit on the disk of `folder`.
    """
    free = shutil.disk_usage(folder).free
    if cost.staging_bytes > free:
        raise InvalidInputError(
            f"{Path(folder)}: {cost.describe()}, and {size(free)} are free there. Choose a folder on another disk, or "
            "an encoder of shorter vectors. What is finished is kept."
        )
    shared = f", shared by {num_processes} processes" if num_processes > 1 else ""
    logger.info("Embedding %s%s", cost.describe(), shared)


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(0.2), duration(90), duration(7_200)
    ('0.2 s', '1.5 min', '2.0 h')
    """
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.1f} min" if seconds < _MINUTE**2 else f"{seconds / _MINUTE**2:,.1f} h"


def size(number: int) -> str:
    """Bytes for people.

    >>> size(999), size(15_360_000), size(3_000_000_000)
    ('999 B', '15.4 MB', '3.0 GB')
    """
    units: Sequence[tuple[float, str]] = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{number / one:,.1f} {unit}" for one, unit in units if number >= one), f"{number} B")
