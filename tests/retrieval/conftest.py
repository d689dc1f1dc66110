"""Retrievers over the small world of coloured birds."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from bird_world import ToyEncoder, bird_rows
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever


@pytest.fixture
def toy_encoder():
    """The class, for tests that need several encoders."""
    return ToyEncoder


@pytest.fixture
def encoder():
    return ToyEncoder()


@pytest.fixture
def rows():
    return bird_rows()


@pytest.fixture
def knowledge_base():
    return KnowledgeBase.from_dicts(bird_rows())


@pytest.fixture
def retriever(knowledge_base, encoder):
    return RavlmRetriever.build(knowledge_base, encoder)


@pytest.fixture
def retriever_of(encoder):
    """A retriever over `n` numbered passages, all of whose texts carry a tag."""

    def build(tag: str, n: int = 5) -> RavlmRetriever:
        rows = [{"id": str(row), "text": f"{tag} passage number {row}"} for row in range(n)]
        return RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder)

    return build


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is noted about index files stays among the tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(constants, "HF_HOME", str(folder))
    return folder
