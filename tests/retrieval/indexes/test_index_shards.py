from __future__ import annotations

import numpy as np
import pytest

from clustered_vectors import clustered
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.indexes import vector_index
from hf_ravlm.retrieval.indexes.index_shards import index_from_shards, write_index_shard, write_trained_index
from hf_ravlm.retrieval.indexes.index_types import INDEX_TYPES, is_available
from hf_ravlm.retrieval.indexes.vector_index import build_index


VECTORS, QUERIES = clustered(3000), clustered(100, seed=1)


@pytest.mark.parametrize(
    "kind", [kind for kind, entry in INDEX_TYPES.items() if entry.effort == "nprobe" and is_available(kind)]
)
def test_shards_merge_into_the_index_of_a_single_build(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "exact_is_cheaper", lambda *_: False)
    write_trained_index(tmp_path / "trained", VECTORS, kind)
    bounds = [0, 700, 1500, 1501, 3000]
    shards = [tmp_path / f"shard-{number}" for number in range(4)]
    for shard, start, stop in list(zip(shards, bounds, bounds[1:]))[::-1]:
        write_index_shard(shard, tmp_path / "trained", VECTORS[start:stop], start)
    merged = index_from_shards(tmp_path / "trained", shards, VECTORS, kind, num_threads=1)
    single = build_index(VECTORS, kind, num_threads=1)
    assert merged.spec == single.spec
    for ours, theirs in zip(merged.search(QUERIES, 10), single.search(QUERIES, 10)):
        np.testing.assert_array_equal(ours, theirs)
    if "fs" not in merged.spec["factory"]:  # fast-scan lists are padded to multiples of 32 codes, with whatever
        merged.write(tmp_path / "merged")
        single.write(tmp_path / "single")
        assert (tmp_path / "merged").read_bytes() == (tmp_path / "single").read_bytes()
    with pytest.raises(InvalidInputError, match="3 shards hold"):
        index_from_shards(tmp_path / "trained", shards[:3], VECTORS, kind)


def test_a_graph_cannot_be_merged(tmp_path):
    with pytest.raises(InvalidInputError, match="'ivf'"):
        write_trained_index(tmp_path / "trained", VECTORS, "hnsw")
