"""The shipped knowledge base under other indexes: bits find what numbers find, and one hop further helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flags.indexes import GOAL, QUESTION, asked_images, binary_recall, one_hop, open_retriever
from flags.world import load_world


FOLDER = Path(__file__).parents[2] / "examples" / "flags" / "checkpoint"


@pytest.fixture(scope="module")
def parts():
    world = load_world()
    return world, open_retriever(FOLDER), asked_images(world, 24)


def test_signs_of_real_vectors_ranked_again_find_what_exact_search_finds(parts):
    _, retriever, asked = parts
    queries = retriever.encoder.encode_queries([image for _, image in asked], [QUESTION] * len(asked))
    assert binary_recall(retriever, np.asarray(queries, np.float32))["recall"] >= GOAL


def test_an_answer_in_a_neighbours_passage_is_found_one_hop_further(parts):
    world, retriever, asked = parts
    found = one_hop(world, retriever, asked)
    assert found["with expand"] >= found["without"] + 0.5
