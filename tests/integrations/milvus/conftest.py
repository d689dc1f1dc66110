"""The small world of coloured birds, on a server that the tests of a file share. milvus-lite stands in for it."""

from __future__ import annotations

import logging

import pytest

from bird_world import ToyEncoder, bird_rows


logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every error that it raises


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    pytest.importorskip("pymilvus", reason='pip install "hf_ravlm[milvus]"')
    pytest.importorskip("milvus_lite", reason='pip install "hf_ravlm[test]"')
    return str(tmp_path_factory.mktemp("milvus") / "birds.db")


@pytest.fixture(scope="module")
def encoder():
    return ToyEncoder()


@pytest.fixture(scope="module")
def rows():
    return bird_rows()
