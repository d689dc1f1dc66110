"""A collection of Milvus against the same passages and vectors in memory."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
    UnsafeInputError,
)
from hf_ravlm.integrations.milvus.client import MilvusBackend
from hf_ravlm.integrations.milvus.rows import MAX_IMAGE_BYTES
from hf_ravlm.retrieval import KnowledgeBase


DIM = 16
WORDS = "swan owl wren robin crane heron gull tern auk rook".split()


def units(count: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def birds(count: int = 200, first: int = 0, note: str = "") -> KnowledgeBase:
    rng = np.random.default_rng(first)
    return KnowledgeBase.from_dicts(
        {
            "id": f"bird {row}",
            "text": " ".join(rng.choice(WORDS, 4)) + note,
            "licence": [None, "CC0-1.0", "MIT"][row % 3],
            "source": f"book {row % 4}",
            "title": 'a "quoted" \\ title\nof two lines' if row % 10 == 0 else f"title {row}",
            "year": 1900 + row if row % 2 else None,
            "tame": row % 5 == 0,
        }
        for row in range(first, first + count)
    )


@pytest.fixture
def backend(uri):
    """A collection that the test may change."""
    made = MilvusBackend.create(uri, "birds", DIM, index_type="FLAT", overwrite=True)
    made.write(birds(), units(200, 0))
    made.finish("letters", "a" * 64)
    return made


@pytest.fixture(scope="module")
def unchanged(uri):
    """A collection that no test changes."""
    made = MilvusBackend.create(uri, "unchanged", DIM, index_type="FLAT")
    made.write(birds(), units(200, 0))
    return made


def test_vectors_find_what_exact_search_finds(unchanged):
    vectors, queries = units(200, 0), units(7, 1)
    scores = queries @ vectors.T
    wanted = np.argsort(-scores, axis=1)[:, :10]
    found = unchanged.search_vectors(3 * queries, 10)
    assert [[passage.id for passage, _ in result] for result in found] == [
        [f"bird {row}" for row in rows] for rows in wanted
    ]
    got = [[score for _, score in result] for result in found]
    np.testing.assert_allclose(got, np.take_along_axis(scores, wanted, axis=1), atol=1e-5)


def test_passages_come_back_as_they_were(unchanged):
    passages = birds()
    assert unchanged.passages(["bird 10", "nobody", "bird 3"]) == [passages["bird 10"], None, passages["bird 3"]]
    assert [found[0][0] for found in unchanged.search_vectors(units(200, 0)[:30], 1)] == passages.passages(range(30))


def test_words_find_passages_that_hold_them(unchanged):
    found = unchanged.search_texts(["heron", None, "  ", "dodo", 'say "heron" or id != ""'], 5)
    assert [len(result) for result in found] == [5, 0, 0, 0, 5]
    assert all("heron" in passage.text for passage, _ in found[0])
    scores = [score for _, score in found[0]]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0


def test_changes_are_seen_at_once(backend):
    query = units(1, 5)
    assert len(backend) == 200
    backend.write(birds(1, first=500), query)
    assert backend.search_vectors(query, 1)[0][0][0].id == "bird 500"
    backend.write(birds(2, first=500, note=" albatross"), np.concatenate([-query, query]))
    assert backend.search_vectors(query, 1)[0][0][0].id == "bird 501"
    assert {passage.id for passage, _ in backend.search_texts(["albatross"], 9)[0]} == {"bird 500", "bird 501"}
    assert len(backend) == 202
    backend.remove(["bird 501", "bird 0"])
    assert len(backend) == 200
    assert backend.passages(["bird 501", "bird 0"]) == [None, None]
    assert backend.search_vectors(query, 1)[0][0][0].id != "bird 501"
    assert [passage.id for passage, _ in backend.search_texts(["albatross"], 9)[0]] == ["bird 500"]


def test_changes_that_contradict_what_is_there_change_nothing(backend):
    with pytest.raises(InvalidInputError, match="1 of 2 passages have ids .*'bird 199'"):
        backend.check_new(birds(2, first=199).ids)
    with pytest.raises(InvalidInputError, match="1 of 2 ids are not .*'nobody'"):
        backend.remove(["bird 1", "nobody"])
    with pytest.raises(InvalidInputError, match="came with 3 vectors"):
        backend.write(birds(2), units(3, 2))
    with pytest.raises(InvalidInputError, match="5 wide"):
        backend.write(birds(1), np.ones((1, 5), np.float32))
    with pytest.raises(UnsafeInputError):
        backend.write(birds(1), np.zeros((1, DIM), np.float32))
    assert len(backend) == 200
    assert backend.passages(["bird 1"])[0] == birds()["bird 1"]


def test_an_id_is_an_id_whatever_it_holds(backend):
    ids = ['" or id != "', "'] or id != ['", "\\", "bird 1\n"]
    backend.write(KnowledgeBase.from_dicts({"id": each, "text": "odd"} for each in ids), units(4, 3))
    assert [passage.id for passage in backend.passages(ids)] == ids
    with pytest.raises(InvalidInputError, match="1 of 1 passages"):
        backend.check_new(ids[:1])
    backend.remove(ids[:2])
    assert backend.passages(ids)[:2] == [None, None]
    assert len(backend) == 202


def test_images_of_any_size_that_fits_come_back(backend):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)  # 360 KB as PNG: six parts
    images = KnowledgeBase.from_dicts(
        [
            {"id": "noise", "image": Image.fromarray(noise)},
            {"id": "dot", "text": "dot", "image": Image.new("L", (1, 1))},
        ]
    )
    backend.write(images, units(2, 9))
    assert backend.passages(["noise", "dot", "bird 1"])[:2] == list(images)
    found = backend.search_vectors(units(2, 9), 2)
    assert [result[0][0] for result in found] == list(images)
    assert np.array_equal(np.asarray(found[0][0][0].image), noise)
    assert found[0][0][0].text is None


def test_what_does_not_fit_is_refused_with_its_id():
    from hf_ravlm.integrations.milvus.rows import row_of
    from hf_ravlm.retrieval.passage import Passage

    for passage, name in (
        (Passage("x" * 2_000, "text"), "id"),
        (Passage("big", "é" * 40_000), "text"),
        (Passage("big", "text", title="t" * 9_000), "title"),
        (Passage("big", "text", metadata={"key": "v" * 70_000}), "metadata"),
        (Passage("big", image_bytes=b"0" * (MAX_IMAGE_BYTES + 1)), "image"),
    ):
        with pytest.raises(InvalidInputError, match=f"its {name} has [0-9,]+ bytes"):
            row_of(passage, np.zeros(DIM, np.float32))


def test_opening_needs_a_finished_collection_of_ours(uri, backend):
    from pymilvus import MilvusClient

    opened = MilvusBackend.open(uri, "birds")
    assert (opened.dim, opened.encoder_name, opened.encoder_fingerprint) == (DIM, "letters", "a" * 64)
    assert len(opened) == 200
    with pytest.raises(KnowledgeBaseNotFoundError, match=r"no collection 'fish' .*'birds'"):
        MilvusBackend.open(uri, "fish")
    MilvusBackend.create(uri, "half", DIM).write(birds(3), units(3, 0))
    with pytest.raises(KnowledgeBaseCorruptError, match="did not finish"):
        MilvusBackend.open(uri, "half")
    MilvusClient(uri).create_collection("foreign", dimension=4)
    with pytest.raises(KnowledgeBaseMismatchError, match="not made by hf_ravlm"):
        MilvusBackend.open(uri, "foreign")


def test_a_collection_is_replaced_only_on_demand(uri, backend):
    with pytest.raises(InvalidInputError, match="overwrite=True"):
        MilvusBackend.create(uri, "birds", DIM)
    assert len(backend) == 200
    assert len(MilvusBackend.create(uri, "birds", 8, overwrite=True)) == 0


def test_no_queries_and_no_passages(unchanged, uri):
    assert unchanged.search_vectors(np.zeros((0, DIM), np.float32), 3) == []
    assert unchanged.search_texts([], 3) == []
    empty = MilvusBackend.create(uri, "empty", DIM)
    empty.write(KnowledgeBase(), np.zeros((0, DIM), np.float32))
    assert len(empty) == 0
    assert empty.search_vectors(units(2, 0), 3) == [[], []]
    assert empty.search_texts(["swan"], 3) == [[]]
    assert len(unchanged.search_vectors(units(1, 0), 1_000)[0]) == 200


def test_no_server_is_a_connection_error_without_the_password():
    pytest.importorskip("pymilvus", reason='pip install "hf_ravlm[milvus]"')
    with pytest.raises(ConnectionError, match=r"No Milvus answers at 'http://127.0.0.1:1'") as error:
        MilvusBackend.open("http://127.0.0.1:1", "birds", token="user:secret")
    assert "secret" not in str(error.value)
