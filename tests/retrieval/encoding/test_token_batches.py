from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from hf_ravlm.retrieval.encoding.token_batches import cut_batches, encode_halving, longest_first


@pytest.mark.parametrize("padded", [True, False])
def test_batches_cover_all_rows_in_order_and_respect_the_budget(padded):
    lengths = sorted(np.random.default_rng(0).integers(1, 50, 200).tolist(), reverse=True)
    batches = cut_batches(lengths, 100, padded)
    assert [row for start, end in batches for row in range(start, end)] == list(range(200))
    for start, end in batches:
        cost = (end - start) * lengths[start] if padded else sum(lengths[start:end])
        assert cost <= 100
    for (start, end), (_, _) in zip(batches, batches[1:]):  # and no batch could have taken one row more
        more = (end + 1 - start) * lengths[start] if padded else sum(lengths[start : end + 1])
        assert more > 100


def test_no_rows_make_no_batches():
    assert cut_batches([], 10, padded=True) == []


def test_equal_lengths_keep_their_order():
    assert longest_first([2, 5, 2, 5]).tolist() == [1, 3, 0, 2]


class SmallMemory:
    """Encodes at most `limit` rows, as a device with little memory does."""

    def __init__(self, limit: int, error: BaseException):
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def __call__(self, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.limit:
            raise self.error
        return np.array([[float(row)] for row in rows])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_a_full_memory_halves_the_rows_and_changes_no_result(error, caplog):
    encode = SmallMemory(3, error)
    with caplog.at_level(logging.WARNING):
        vectors = encode_halving(encode, list(range(10)))
    assert vectors.ravel().tolist() == list(range(10))
    assert encode.sizes == [10, 5, 2, 3, 5, 2, 3]
    assert "10 rows at once" in caplog.text


def test_a_full_memory_for_one_row_and_other_errors_are_passed_on():
    with pytest.raises(RuntimeError, match="out of memory"):
        encode_halving(SmallMemory(0, RuntimeError("out of memory")), [1, 2])
    encode = SmallMemory(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        encode_halving(encode, [1, 2])
    assert encode.sizes == [2]


def test_lists_are_joined_as_lists():
    def encode(rows):
        if len(rows) > 1:
            raise MemoryError
        return [np.zeros((row, 2)) for row in rows]

    assert [len(item) for item in encode_halving(encode, [3, 1, 2])] == [3, 1, 2]
