"""The page of classifiers and detectors: it shows what they say; which models have it; no other file is opened."""

from __future__ import annotations

import json

import pytest
from transformers import pipeline

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmForObjectDetection, RavlmRetriever
from hf_ravlm.demo.looking import look_for_page
from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.pipelines.opening import open_looking
from labelled_world import KNOWN, coloured, entries, tiny_classifier
from ports import on_a_free_port
from tiny import tiny_model, tiny_processor
from tiny_detectors import LEFT, RIGHT, PointingDetector, scene, tiny_detector
from tiny_folder import save_everything


@pytest.fixture(scope="module")
def classify():
    model, processor, retriever = tiny_classifier()
    model.neighbors.set(50.0, 50.0)
    return pipeline("image-classification", model=model, processor=processor, retriever=retriever)


@pytest.fixture(scope="module")
def detect():
    detector, processor = tiny_detector("detr")
    model = RavlmForObjectDetection.from_detector(detector)
    model.detector = PointingDetector(detector, [LEFT, RIGHT], [[0.0, 1.0, 0.0, -2.0], [0.0, 1.0, 0.0, -2.0]])
    model.neighbors.set(50.0, 50.0)
    encoder = RavlmEncoder(tiny_model().model, tiny_processor())
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries()), encoder)
    return pipeline("object-detection", model=model, image_processor=processor, retriever=retriever)


def test_classes_come_with_their_scores_and_entries(classify):
    found, gallery, record = look_for_page(classify, coloured("blue", 99))
    assert sorted(found) == sorted(KNOWN)
    assert max(found, key=found.get) == "blue"
    assert gallery[0][1].startswith("blue: ")
    assert json.loads(json.dumps(record))[0]["label"] == "blue"


def test_boxes_stand_on_the_image_with_their_entries(detect):
    (image, boxes), gallery, record = look_for_page(detect, scene("red", "blue"), 0.5)
    assert image.size == scene("red", "blue").size
    assert {name.split()[0] for _, name in boxes} == {"red", "blue"}
    assert [box for box, _ in boxes] == [list(one["box"].values()) for one in record]
    assert {caption.split(":")[0] for _, caption in gallery} == {"red", "blue"}
    assert look_for_page(detect, scene("red", "blue"), 1.0)[0][1] == []


def test_what_is_missing_is_told(classify, detect, tmp_path):
    with pytest.raises(InvalidInputError, match="There is no image"):
        look_for_page(classify, None)
    (tmp_path / "kite.png").write_bytes(b"no picture")
    with pytest.raises(UnsafeInputError, match=r"kite\.png"):
        look_for_page(classify, str(tmp_path / "kite.png"))
    with pytest.raises(InvalidInputError, match="threshold"):
        look_for_page(detect, scene("red", "blue"), 7)


def test_which_models_have_this_page(classify, tmp_path):
    classify.save_pretrained(tmp_path / "classifier")
    opened = open_looking(tmp_path / "classifier", device="cpu")
    assert type(opened) is type(classify)
    assert opened(coloured("red", 99))[0]["evidence"]
    save_everything(tmp_path / "reader")
    assert open_looking(tmp_path / "reader") is None
    assert open_looking(tmp_path / "nowhere") is None
    assert open_looking("offline") is None
    assert open_looking("http://127.0.0.1:9/v1") is None


def test_a_program_asks_the_page_and_reaches_no_other_file(classify, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason='pip install "hf_ravlm[demo]"')
    httpx = pytest.importorskip("httpx")
    from hf_ravlm.demo import build_looking_page, serve_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = build_looking_page(classify)
    site = on_a_free_port(lambda port: serve_page(page, port=port)).rstrip("/")
    try:
        coloured("green", 99).save(tmp_path / "secret.png")
        data = (tmp_path / "secret.png").read_bytes()
        path = httpx.post(f"{site}/gradio_api/upload", files={"files": ("mine.png", data)}, timeout=30).json()[0]

        def look(name):
            body = {"data": [{"path": name, "meta": {"_type": "gradio.FileData"}}, 0.3]}
            return httpx.post(f"{site}/gradio_api/call/look", json=body, timeout=30)

        told = httpx.get(f"{site}/gradio_api/call/look/{look(path).json()['event_id']}", timeout=60).text
        assert "event: complete" in told
        assert '"label": "green"' in told
        assert look(str(tmp_path / "secret.png")).status_code == 403
    finally:
        page.close()
