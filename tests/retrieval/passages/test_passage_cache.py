"""The cache of what was computed for passages: never above its bound, whoever asks and whatever is put."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.passages.passage_cache import PassageCache, memory_of


def test_what_was_used_last_stays():
    cache = PassageCache(max_bytes=300)
    for row in range(3):
        assert cache.put(row, np.zeros(100, np.uint8))
    assert cache.get(0) is not None
    cache.put(3, np.zeros(150, np.uint8))
    assert [row in cache for row in range(4)] == [True, False, False, True]
    assert cache.num_bytes == 250
    assert (cache.num_hits, cache.num_misses) == (1, 0)
    assert cache.get(1) is None
    assert cache.num_misses == 1


def test_what_is_too_large_is_not_kept_and_drives_nothing_else_out():
    cache = PassageCache(max_bytes=100)
    cache.put("small", np.zeros(50, np.uint8))
    assert not cache.put("large", np.zeros(101, np.uint8))
    assert "small" in cache
    assert not cache.put("small", np.zeros(101, np.uint8))  # the older value is not valid any more
    assert len(cache) == cache.num_bytes == 0


def test_a_value_put_again_counts_once():
    cache = PassageCache(max_bytes=100)
    cache.put("a", np.zeros(60, np.uint8))
    cache.put("a", np.zeros(80, np.uint8))
    assert cache.num_bytes == 80
    cache.remove("a")
    cache.remove("a")
    assert cache.num_bytes == 0
    cache.put("b", np.zeros(80, np.uint8))
    cache.clear()
    assert len(cache) == cache.num_bytes == 0


def test_memory_is_what_stays_alive_not_what_is_seen():
    big = torch.zeros(1000, dtype=torch.uint8)
    assert memory_of(big[:1]) == 1000
    assert memory_of([big[:1], {"values": (big[5:], None)}]) == 1000
    assert memory_of((torch.zeros(10), torch.zeros(10))) == 80
    array = np.zeros(1000, np.uint8)
    assert memory_of([array[:1].reshape(1, 1), array[3:]]) == 1000
    assert memory_of(big.numpy()[:3]) == 1000
    assert memory_of(None) == 0
    with pytest.raises(InvalidInputError, match="Cache tensors and arrays"):
        memory_of("text")


def test_threads_never_lift_it_above_its_bound():
    cache = PassageCache(max_bytes=1_000)

    def work(seed: int) -> int:
        rng, most = np.random.default_rng(seed), 0
        for _ in range(300):
            key = int(rng.integers(20))
            value = cache.get(key)
            assert value is None or value[0] == key
            cache.put(key, np.full(int(rng.integers(1, 400)), key, np.uint8))
            most = max(most, cache.num_bytes)
        return most

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) <= 1_000
    assert cache.num_bytes == sum(len(cache.get(key)) for key in range(20) if key in cache)


def test_a_negative_bound_is_refused():
    with pytest.raises(InvalidInputError, match="max_bytes=-1"):
        PassageCache(-1)
