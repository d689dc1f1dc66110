from __future__ import annotations

import io
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hash_encoder import HashEncoder
from hf_ravlm.errors import (
    InvalidInputError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
    UnsafeInputError,
)
from hf_ravlm.images import detailed_crops
from hf_ravlm.retrieval import Evidence, KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.hub import download
from hf_ravlm.retrieval.store.versions import read_version


ORANGE, BLUE = (Image.new("RGB", (9, 9), colour) for colour in ("orange", "blue"))


# --- Asking


def test_the_right_passage_is_found_by_image_by_text_and_by_both(retriever):
    by_image = retriever.retrieve(images=[BLUE, ORANGE], k=1)
    assert by_image[0][0].id == "kingfisher"
    assert by_image[1][0].id == "image-only"
    assert [found[0].id for found in retriever.retrieve(texts=["eggs", "the wren"], k=1)] == ["text-only", "wren"]
    assert retriever.retrieve(ORANGE, "The robin is orange.", k=1)[0][0].id == "robin"


def test_a_part_of_an_image_is_searched_with(retriever):
    both = Image.new("RGB", (20, 10), "orange")
    both.paste("blue", (10, 0, 20, 10))
    left, right = (retriever.retrieve([both], k=1, region=part)[0][0] for part in ((0, 0, 0.5, 1), (10, 0, 10, 10)))
    assert (left.id, right.id) == ("image-only", "kingfisher")
    assert left.score == pytest.approx(retriever.retrieve(ORANGE, k=1)[0][0].score, abs=1e-5)
    each = retriever.retrieve([both, both, BLUE], k=1, region=[(0, 0, 0.5, 1), (0.5, 0, 0.5, 1), None])
    assert [found[0].id for found in each] == ["image-only", "kingfisher", "kingfisher"]
    for region, words in [((0, 0, 0), "four numbers"), ((30, 0, 5, 5), "nothing of the image"), ([None], "1 regions")]:
        with pytest.raises(InvalidInputError, match=words):
            retriever.retrieve([both, both], k=1, region=region)
    with pytest.raises(InvalidInputError, match="Query 0 has a region and no image"):
        retriever.retrieve(texts=["a swan"], region=(0, 0, 1, 1))


def test_an_image_is_searched_with_beside_its_parts(retriever, encoder):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    looks = [image, *detailed_crops(image, 2)]
    mean = encoder.encode_queries(looks, ["a swan"] * 3).mean(axis=0)
    found = retriever.retrieve([image, None], ["a swan", "the wren"], k=3, crops=2)
    scores, rows = retriever.search_vectors(mean[None], 3)
    assert [passage.id for passage in found[0]] == [retriever.knowledge_base.ids[row] for row in rows[0]]
    np.testing.assert_allclose([passage.score for passage in found[0]], scores[0], atol=1e-6)
    assert found[1][0].id == "wren"
    with pytest.raises(InvalidInputError, match="crops=9"):
        retriever.retrieve([image], crops=9)


def test_results_equal_numpy_brute_force(retriever, encoder, knowledge_base):
    images, texts = [BLUE, None, ORANGE] * 5, ["a swan", "the raven", None] * 5
    queries = encoder.encode_queries(images, texts)
    passages = encoder.encode_passages([p.text for p in knowledge_base], [p.image for p in knowledge_base])
    scores = queries @ passages.T  # (15, 7)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    for query, found in enumerate(retriever.retrieve(images, texts, k=4)):
        assert [item.id for item in found] == [knowledge_base.ids[row] for row in order[query]]
        np.testing.assert_allclose([item.score for item in found], scores[query, order[query]], atol=1e-6)
        assert [item.rank for item in found] == [1, 2, 3, 4]


def test_evidence_carries_the_whole_passage(retriever, knowledge_base):
    found = retriever.retrieve(texts="swan", k=1)[0][0]
    assert isinstance(found, Evidence)
    passage = knowledge_base["swan"]
    for name in ("id", "text", "image_bytes", "source", "licence", "url", "title", "metadata"):
        assert getattr(found, name) == getattr(passage, name)
    assert found.image.tobytes() == passage.image.tobytes()
    assert isinstance(found.score, float)


def test_a_batch_gives_what_single_queries_give(retriever):
    texts = ["the robin", "white", "lay eggs", "a blue bird", "black", "small", "orange", "brown", "raven"]
    together = retriever.retrieve(texts=texts, k=3)
    for text, found in zip(texts, together, strict=True):
        (alone,) = retriever.retrieve(texts=text, k=3)
        assert [item.id for item in alone] == [item.id for item in found]
        np.testing.assert_allclose([i.score for i in alone], [i.score for i in found], atol=1e-6)


def test_k_beyond_the_knowledge_base_returns_all_of_it_once(retriever, knowledge_base):
    for texts in ("bird", ["bird"] * 10):
        for found in retriever.retrieve(texts=texts, k=1000):
            assert sorted(item.id for item in found) == sorted(knowledge_base.ids)


def test_an_empty_knowledge_base_finds_nothing_and_can_be_saved(encoder, tmp_path):
    retriever = RavlmRetriever.build(KnowledgeBase(), encoder)
    assert retriever.retrieve(texts=["a", "b"]) == [[], []]
    assert encoder.calls == []
    retriever.save_pretrained(tmp_path)
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)
    assert again.retrieve(ORANGE) == [[]]
    with pytest.raises(InvalidInputError, match="k=0"):
        again.retrieve(ORANGE, k=0)
    with pytest.raises(InvalidInputError, match="Query 0"):
        again.retrieve(texts=" ")


def test_images_may_come_in_any_form(retriever, tmp_path):
    ORANGE.save(tmp_path / "orange.png")
    buffer = io.BytesIO()
    ORANGE.save(buffer, "PNG")
    forms = [ORANGE, str(tmp_path / "orange.png"), tmp_path / "orange.png", buffer.getvalue(), np.asarray(ORANGE)]
    results = [retriever.retrieve(form, k=7)[0] for form in [*forms, {"bytes": buffer.getvalue(), "path": None}]]
    assert all(result == results[0] for result in results)
    assert retriever.retrieve(forms, k=7)[3] == results[0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "no query"),
        ({"texts": ""}, "Query 0 is empty"),
        ({"texts": ["fine", " \n\t"]}, "Query 1 is empty"),
        ({"images": [ORANGE, None]}, "Query 1 is empty"),
        ({"images": [ORANGE, None], "texts": ["a", None]}, "Query 1 is empty"),
        ({"images": [ORANGE], "texts": ["a", "b"]}, "1 images came with 2 texts"),
        ({"images": ORANGE, "texts": []}, "1 images came with 0 texts"),
        ({"texts": [5]}, "text of query 0 is of type int"),
        ({"texts": "bird", "k": 0}, "k=0"),
        ({"texts": "bird", "k": -3}, "k=-3"),
        ({"texts": "bird", "k": 2.0}, "k=2.0"),
    ],
)
def test_a_wrong_query_is_answered_with_what_was_expected(retriever, query, message):
    with pytest.raises(InvalidInputError, match=message):
        retriever.retrieve(**query)


def test_a_broken_query_image_is_named(retriever, tmp_path):
    with pytest.raises(UnsafeInputError, match="gone.png: there is no such file"):
        retriever.retrieve([ORANGE, str(tmp_path / "gone.png")])


def test_an_empty_batch_gives_an_empty_list(retriever):
    assert retriever.retrieve(images=[]) == retriever.retrieve(texts=[]) == retriever.retrieve([], []) == []


def test_spaces_beside_an_image_are_no_question(retriever):
    assert retriever.retrieve(ORANGE, "  ") == retriever.retrieve(ORANGE)


def test_vectors_can_be_searched_without_the_encoder(retriever):
    scores, rows = retriever.search_vectors(retriever.vectors * 3, k=2)
    assert rows[:, 0].tolist() == list(range(7))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)


# --- Building


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_vectors_stand_in_the_order_of_passages_whatever_the_batches(knowledge_base, encoder, batch_size):
    retriever = RavlmRetriever.build(knowledge_base, encoder, batch_size=batch_size)
    expected = encoder.encode_passages([p.text for p in knowledge_base], [p.image for p in knowledge_base])
    np.testing.assert_allclose(retriever.vectors, expected, atol=1e-6)
    assert retriever.vectors.dtype == np.float32


def test_images_are_decoded_a_batch_at_a_time(knowledge_base, encoder):
    RavlmRetriever.build(knowledge_base, encoder, batch_size=3)
    assert [size for _, size in encoder.calls] == [3, 3, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_without_a_direction_is_refused_with_the_id_of_its_passage(knowledge_base, encoder, value):
    original = encoder.encode_passages

    def encode_passages(texts, images):
        vectors = original(texts, images)
        vectors[[text == "Birds lay eggs." for text in texts]] = value
        return vectors

    encoder.encode_passages = encode_passages
    with pytest.raises(UnsafeInputError, match="1 of 7 passage vectors .*'text-only'"):
        RavlmRetriever.build(knowledge_base, encoder)


def test_vectors_are_normalised_so_that_no_passage_is_favoured(knowledge_base, encoder, retriever):
    original = encoder.encode_passages
    encoder.encode_passages = lambda texts, images: original(texts, images) * 1000
    loud = RavlmRetriever.build(knowledge_base, encoder)
    np.testing.assert_allclose(loud.vectors, retriever.vectors, atol=1e-6)


def test_an_encoder_that_loses_rows_is_refused(knowledge_base, encoder):
    encoder.encode_passages = lambda texts, images: np.eye(3, dtype=np.float32)
    with pytest.raises(InvalidInputError, match="3 vectors for 7 passages"):
        RavlmRetriever.build(knowledge_base, encoder)
    with pytest.raises(InvalidInputError, match="7 passages came with 3 vectors"):
        RavlmRetriever(knowledge_base, encoder, np.eye(3, dtype=np.float32))
    with pytest.raises(InvalidInputError, match="batch_size=0"):
        RavlmRetriever.build(knowledge_base, encoder, batch_size=0)


# --- Keeping


@pytest.mark.parametrize("queries", [["the robin"], ["the robin", "white", "eggs"] * 4])
def test_saved_moved_and_loaded_gives_the_same_bits(retriever, encoder, tmp_path, queries):
    before = retriever.retrieve([ORANGE] * len(queries), queries, k=7)
    retriever.save_pretrained(tmp_path / "here")
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "here", tmp_path / "far" / "away")
    again = RavlmRetriever.from_pretrained(tmp_path / "far" / "away", encoder=encoder)
    assert again.vectors.tobytes() == retriever.vectors.tobytes()
    assert again.retrieve([ORANGE] * len(queries), queries, k=7) == before
    assert again.knowledge_base.table.equals(retriever.knowledge_base.table)


def test_saved_files_are_readable_by_others_as_the_umask_says(retriever, tmp_path):
    umask = os.umask(0o022)
    try:
        retriever.save_pretrained(tmp_path)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o644}, modes


def test_the_folder_inside_and_another_name_will_do(retriever, encoder, tmp_path):
    retriever.save_pretrained(tmp_path, subfolder="birds")
    for folder, options in ((tmp_path, {"subfolder": "birds"}), (tmp_path / "birds", {})):
        assert len(RavlmRetriever.from_pretrained(folder, encoder=encoder, **options)) == 7
        assert len(KnowledgeBase.load(folder, **options)) == 7
    with pytest.raises(KnowledgeBaseNotFoundError, match="no knowledge_base/CURRENT"):
        RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)
    with pytest.raises(UnsafeInputError, match="safe file name"):
        retriever.save_pretrained(tmp_path, subfolder="../elsewhere")


def test_another_encoder_is_refused_naming_both_and_the_way_out(retriever, toy_encoder, tmp_path):
    retriever.save_pretrained(tmp_path)
    other = toy_encoder(seed=1)
    with pytest.raises(KnowledgeBaseMismatchError) as caught:
        RavlmRetriever.from_pretrained(tmp_path, encoder=other)
    message = str(caught.value)
    for encoder in (retriever.encoder, other):
        assert encoder.name in message
        assert encoder.fingerprint[:12] in message
    assert "KnowledgeBase.load" in message
    rebuilt = RavlmRetriever.build(KnowledgeBase.load(tmp_path), other)
    rebuilt.save_pretrained(tmp_path)
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=other)
    assert again.retrieve(texts="swan") == rebuilt.retrieve(texts="swan")


def test_an_encoder_trained_since_the_build_is_noticed(retriever, encoder, tmp_path, caplog):
    built_by = encoder.fingerprint
    encoder.fingerprint = "f" * 64
    with caplog.at_level(logging.WARNING, logger="hf_ravlm"):
        retriever.save_pretrained(tmp_path)
    assert "has changed" in caplog.text
    assert read_version(tmp_path / "knowledge_base").manifest["encoder"]["fingerprint"] == built_by
    with pytest.raises(KnowledgeBaseMismatchError):
        RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)


def test_a_folder_without_a_model_asks_for_an_encoder(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"no config.json.*`encoder="):
        RavlmRetriever.from_pretrained(tmp_path)


def test_without_an_encoder_model_and_processor_come_from_the_same_folder(retriever, encoder, tmp_path, monkeypatch):
    import transformers

    calls = []

    def loader(kind):
        def from_pretrained(source, **options):
            calls.append((kind, Path(source), options))
            return SimpleNamespace(eval=lambda: kind) if kind == "model" else kind

        return SimpleNamespace(from_pretrained=from_pretrained)

    monkeypatch.setattr(transformers, "AutoModel", loader("model"))
    monkeypatch.setattr(transformers, "AutoProcessor", loader("processor"))
    monkeypatch.setattr(download, "RavlmEncoder", lambda model, processor: encoder)
    retriever.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "knowledge_base"):
        assert RavlmRetriever.from_pretrained(folder).encoder is encoder
    expected = [
        ("model", tmp_path, {"trust_remote_code": False}),
        ("processor", tmp_path, {"trust_remote_code": False}),
    ]
    assert calls == expected * 2


def test_a_path_that_is_neither_folder_nor_hub_id_is_explained(encoder):
    for name in ("./no/such/folder", "/no/such/folder"):
        with pytest.raises(KnowledgeBaseNotFoundError, match="no such folder"):
            RavlmRetriever.from_pretrained(name, encoder=encoder)


@pytest.mark.parametrize("channels", [("dense",), ("bm25",), ("dense", "bm25")])
def test_the_score_is_the_cosine_however_a_passage_was_found(channels):
    rows = [{"id": n, "text": text} for n, text in enumerate(["red kite", "white swan", "kite of paper", "paper"])]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), HashEncoder())
    found = retriever.retrieve(texts=["red kite", "paper swan"], k=3, channels=channels)
    vectors = retriever.encoder.encode_queries(None, ["red kite", "paper swan"])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for vector, passages in zip(vectors, found):
        assert passages
        for passage in passages:
            cosine = vector @ retriever.vectors[retriever.knowledge_base.ids.index(passage.id)]
            assert passage.score == pytest.approx(cosine, abs=1e-5)
        order = [passage.ranking_score for passage in passages]
        assert order == sorted(order, reverse=True)
