"""gradio's client for programs asks the demo page: the same answers, evidence and explanations as a visitor gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from ports import on_a_free_port


pytest.importorskip("gradio", reason='needs gradio: pip install "hf_ravlm[demo]"')
client_library = pytest.importorskip("gradio_client")

FLAGS = Path(__file__).parents[2] / "examples" / "flags"
FLAG = FLAGS / "unseen" / "is__circleflags.png"
QUESTION = "What is the capital of the country that uses this flag?"
WITH, BOTH = "with retrieval", "both, side by side"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from hf_ravlm.demo import build_page, serve_page

    ask = pipeline("image-to-text", model=str(FLAGS / "checkpoint"))
    page = build_page(ask.model, ask.processor, ask.retriever)
    address = on_a_free_port(lambda port: serve_page(page, port=port))
    downloads = tmp_path_factory.mktemp("downloads")
    client = client_library.Client(address, verbose=False, download_files=downloads, analytics_enabled=False)
    yield client
    client.close()
    page.close()


def ask_page(client, picture: Path, question: str = QUESTION, mode: str = BOTH, passages: int = 2) -> dict:
    names = ("retrieved", "closed_book", "gallery", "maps", "table", "sheet", "record")
    values = client.predict(client_library.handle_file(picture), question, mode, passages, api_name="/answer")
    return dict(zip(names, values, strict=True))


def test_it_gets_the_answer_with_all_that_it_rests_on(client):
    told = ask_page(client, FLAG)
    assert told["retrieved"] == "Reykjavik"
    assert told["closed_book"] != "Reykjavik"
    head, rows = told["table"]["headers"], told["table"]["data"]
    best = dict(zip(head, rows[0], strict=True))
    assert len(rows) == 2  # as the page asks for
    assert best["id"].startswith("is/")
    assert best["source"]
    assert best["licence"]
    assert best["posterior"] > 0.9
    assert told["record"]["question"] == QUESTION
    with Image.open(told["sheet"]) as sheet:
        assert sheet.width > 300


def test_its_own_knowledge_answers_for_this_client_alone(client, tmp_path):
    row = '{"id": "mine", "text": "Capital of Iceland: Akureyri.", "licence": "CC0-1.0"}'
    (tmp_path / "mine.jsonl").write_text(row + "\n", encoding="utf-8")
    own = client.predict([client_library.handle_file(tmp_path / "mine.jsonl")], api_name="/use_knowledge")
    assert own.startswith("1 passage.")
    ((found, *_),) = ask_page(client, FLAG, mode=WITH, passages=1)["table"]["data"]
    assert found.startswith("mine")
    other = client_library.Client(client.src, verbose=False, analytics_enabled=False)
    assert ask_page(other, FLAG, mode=WITH, passages=1)["retrieved"] == "Reykjavik"
    other.close()
    assert not client.predict(api_name="/drop_knowledge").startswith("1 passage.")


def test_what_is_wrong_is_told(client, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(client_library.exceptions.AppError, match="not an image"):
        ask_page(client, broken)
