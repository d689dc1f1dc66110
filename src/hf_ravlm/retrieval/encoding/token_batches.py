"""Batches of rows: sorted by length, cut by tokens or rows, and halved where memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np


logger = logging.getLogger(__name__)

Encoded = TypeVar("Encoded", np.ndarray, list[Any])


def longest_first(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the rows from the longest to the shortest, int64; equal ones in their order.

    >>> longest_first([1, 3, 3]).tolist()
    [1, 2, 0]
    """
    return np.argsort(-np.asarray(lengths, np.int64), kind="stable")


def cut_batches(lengths: Sequence[int], max_tokens: int, padded: bool) -> list[tuple[int, int]]:
    """Cuts rows that are sorted by falling length into batches, as pairs of start and end.

    Args:
        lengths: Tokens per row.
        max_tokens: The most tokens of a batch; a longer row is a batch of its own.
        padded: Whether every row of a batch counts as long as its longest one.

    >>> cut_batches([6, 3, 2, 1], max_tokens=6, padded=False)
    [(0, 1), (1, 4)]
    >>> cut_batches([6, 3, 2, 1], max_tokens=6, padded=True)
    [(0, 1), (1, 3), (3, 4)]
    """
    batches: list[tuple[int, int]] = []
    start = tokens = 0
    for end, length in enumerate(lengths):
        cost = (end - start + 1) * lengths[start] if padded else tokens + length
        if end > start and cost > max_tokens:
            batches.append((start, end))
            start, tokens = end, 0
        tokens += length
    if len(lengths):
        batches.append((start, len(lengths)))
    return batches


def encode_in_batches(
    encode: Callable[[list[int]], Any],
    lengths: Sequence[int],
    description: str,
    *,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    padded: bool = False,
) -> list[Any]:
    """Encodes rows from the longest to the shortest, in batches, under a progress bar.

    Args:
        encode: Maps rows to one result each; where the memory does not suffice it is called with fewer.
        lengths: Of every row, in tokens or in proportion to them.
        description: For the progress bar.
        max_rows: The most rows of a batch.
        max_tokens: Instead of `max_rows`: the most tokens of a batch, see `cut_batches`.
        padded: See `cut_batches`.

    Returns:
        The results in the order of the rows.
    """
    from transformers.utils.logging import tqdm

    order = longest_first(lengths)
    if max_tokens is None:
        batches = cut_batches([1] * len(order), max_rows or 1, padded=False)
    else:
        batches = cut_batches([lengths[row] for row in order], max_tokens, padded)
    results: list[Any] = [None] * len(order)
    with tqdm(total=len(order), desc=description, unit="row", leave=False, disable=len(batches) <= 1) as bar:
        for start, end in batches:
            rows = order[start:end].tolist()
            for row, result in zip(rows, encode_halving(encode, rows), strict=True):
                results[row] = result
            bar.update(end - start)
    return results


def encode_halving(encode: Callable[[list[int]], Encoded], rows: list[int]) -> Encoded:
    """Encodes rows, in two halves if the memory does not suffice for all of them, and so on down to single rows.

    Args:
        encode: Maps rows to vectors (n, D), or to a list with one item per row.
        rows: At least one.

    Raises:
        RuntimeError: If the memory does not suffice for one row.
    """
    import torch

    try:
        return encode(rows)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error) or len(rows) == 1:
            raise
        reason = str(error).partition("\n")[0]
    # Out of the `except` block: the traceback holds on to the tensors of the failed attempt.
    torch.cuda.empty_cache()  # does nothing where CUDA was not used
    logger.warning("Memory does not suffice for %d rows at once; trying halves. (%s)", len(rows), reason)
    middle = len(rows) // 2
    first, second = (encode_halving(encode, part) for part in (rows[:middle], rows[middle:]))
    return np.concatenate([first, second]) if isinstance(first, np.ndarray) else first + second


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    signs = ("out of memory", "defaultcpuallocator", "not enough memory", "alloc_failed")
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return full or any(sign in str(error).lower() for sign in signs)
