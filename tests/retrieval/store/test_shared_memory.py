"""Processes on one machine share the memory of an index: its vectors are mapped from the file, once for all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hash_encoder import HashEncoder
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from two_processes import run_two_processes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_hold_the_vectors_once(tmp_path):
    base = KnowledgeBase.from_dicts([{"id": str(row), "text": f"passage {row}"} for row in range(20_000)])
    vectors = np.random.default_rng(0).standard_normal((len(base), 256), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    RavlmRetriever(base, HashEncoder(), vectors).save_pretrained(tmp_path)
    run_two_processes(Path(__file__).parents[2] / "shared_index.py", tmp_path)
    for rank in range(2):
        memory = json.loads((tmp_path / f"memory_{rank}.json").read_text())
        assert memory["found"] == 7
        assert memory["Rss"] >= memory["vectors"] == 20_000  # KiB: all of them were read
        assert memory["Pss"] < 0.6 * memory["Rss"]  # and each process pays for half
        assert memory["Private_Dirty"] == 0
