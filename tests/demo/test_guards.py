"""The page, asked by a program that does not keep to its rules: no file, no address, no other name."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from hf_ravlm.demo.answering import MOST_PIXELS, WITHOUT, answer_for_page
from hf_ravlm.errors import UnsafeInputError
from ports import on_a_free_port


pytest.importorskip("gradio", reason='pip install "hf_ravlm[demo]"')
httpx = pytest.importorskip("httpx")

NOT_UPLOADED = "none of this page's uploads"
FILE = {"meta": {"_type": "gradio.FileData"}}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "lime").save(buffer, "PNG")
    return buffer.getvalue()


class NoModel:
    """What the page asks of a model before it is asked anything."""

    class config:  # noqa: N801
        default_prompt, num_passages = "What is this?", 1

    model = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def asked():
    return []


@pytest.fixture(scope="module")
def site(folder, asked):
    """The page of a model that only says which image reached it."""
    from hf_ravlm.demo import build_page, page, serve_page
    from hf_ravlm.demo.answering import PageAnswer

    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))

    def answer(model, processor, knowledge, image, question, mode, k):
        asked.append(image)
        return PageAnswer(closed_book=f"seen: {image}")

    patch.setattr(page, "answer_for_page", answer)
    built = build_page(NoModel, None, None)
    address = on_a_free_port(lambda port: serve_page(built, port=port))
    yield address.rstrip("/")
    built.close()
    patch.undo()


@pytest.fixture
def call(site):
    """Asks the page about a file as it is named; every way in that programs have."""

    def call(image, question="", way="call", **headers):
        data = [image, question, WITHOUT, 1]
        if way == "queue":
            config = httpx.get(f"{site}/config").json()
            (number,) = [one["id"] for one in config["dependencies"] if one["api_name"] == "answer"]
            body = {"data": [None, *data], "fn_index": number, "session_hash": "abc"}
            return httpx.post(f"{site}/gradio_api/queue/join", json=body, headers=headers, timeout=30)
        path = f"/gradio_api/{way}/answer"
        return httpx.post(site + path, json={"data": data}, headers=headers, timeout=30)

    return call


def result(site: str, started) -> str:
    """What came of a call."""
    return httpx.get(f"{site}/gradio_api/call/answer/{started.json()['event_id']}", timeout=30).text


def upload(site: str, data: bytes, name: str = "kite.png") -> str:
    return httpx.post(f"{site}/gradio_api/upload", files={"files": (name, data)}, timeout=30).json()[0]


def test_an_upload_is_seen(site, call, asked):
    path = upload(site, png())
    assert "event: complete" in result(site, call({"path": path, **FILE}))
    assert asked == [path]


@pytest.mark.parametrize("way", ["call", "run", "api", "queue", "call/v2"])
@pytest.mark.parametrize("meta", [{}, FILE, {"meta": None}])
def test_no_other_file_is_opened_and_nobody_learns_whether_it_exists(site, folder, call, asked, way, meta):
    secret = folder / "secret.png"
    secret.write_bytes(png())
    asked.clear()
    answers = set()
    names = [secret, folder / "none.png", folder / "uploads" / ".." / "secret.png", "/etc/hostname", "//host/a.png"]
    for name in [*names, "file:///etc/hostname", "http://127.0.0.1:9/a.png", "https://example.org/a.png", 5, ["a"]]:
        answer = call({"path": name if isinstance(name, (int, list)) else str(name), **meta}, way=way)
        answers.add((answer.status_code, answer.text))
    ((status, text),) = answers
    assert status == 403
    assert NOT_UPLOADED in text
    assert asked == []


def test_files_in_other_places_of_a_call_are_refused_too(site, call):
    for question in ({"path": "http://example.org/a.png", **FILE}, [{"a": {"path": "/etc/hostname"}}]):
        assert call(None, question).status_code == 403
    body = {"data": [[{"path": "/etc/hostname", **FILE}]]}
    assert httpx.post(f"{site}/gradio_api/call/use_knowledge", json=body).status_code == 403


def test_a_link_in_the_upload_folder_leads_nowhere(site, folder, call):
    secret = folder / "secret.png"
    secret.write_bytes(png())
    link = folder / "uploads" / "link.png"
    link.parent.mkdir(exist_ok=True)  # made by the first upload
    link.symlink_to(secret)
    assert call({"path": str(link), **FILE}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://example.org/a.png",
        "/gradio_api/file=https%3A//example.org/a.png",
        "/gradio_api/file=file:///etc/hostname",
        "/gradio_api/proxy=http://example.org/a.png",
        "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/vibe-code",
        "/gradio_api/run-history/buckets",
        "/monitoring",
        "/gradio_api/dev/reload",
    ],
)
def test_no_address_is_fetched_and_nothing_else_is_offered(site, path):
    answer = httpx.get(site + path, timeout=30)
    assert (answer.status_code, "no such part" in answer.text) == (403, True)


def test_files_of_this_machine_are_not_served(site, folder):
    secret = folder / "secret.png"
    secret.write_bytes(png())
    answers = {
        httpx.get(f"{site}/gradio_api/file={path}").status_code
        for path in (secret, folder / "no.png", "/etc/hostname")
    }
    assert answers == {403}


@pytest.mark.parametrize("name", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""])
def test_it_answers_under_its_own_names_only(site, name):
    assert httpx.get(f"{site}/config", headers={"Host": name}).status_code == 403
    assert httpx.get(f"{site}/config", headers={"Host": "localhost:7860"}).status_code == 200
    if name:
        origin = {"Origin": f"http://{name}"}
        assert (
            httpx.post(f"{site}/gradio_api/upload", files={"files": ("a.png", png())}, headers=origin).status_code
            == 403
        )


def test_calls_are_bounded(site, call):
    assert call(None, "x" * 1_100_000).status_code == 413
    broken = {"content-type": "application/json"}
    assert httpx.post(f"{site}/gradio_api/call/answer", content=b"{" * 5, headers=broken).status_code == 403
    nested = json.dumps({"a": 1}).replace("1", "[" * 400 + "]" * 400).encode()
    assert httpx.post(f"{site}/gradio_api/call/answer", content=nested, headers=broken).status_code != 500
    told = result(site, call(None, "x" * 5_000))
    assert "event: error" in told


def test_large_images_are_shrunk_before_anything_looks_at_them(monkeypatch):
    seen = []

    def explain(model, processor, retriever, image, *_, **__):
        seen.append(image.size)
        raise UnsafeInputError("enough")

    monkeypatch.setattr("hf_ravlm.demo.answering.explain_answer", explain)
    buffer = io.BytesIO()
    Image.new("1", (7000, 7000)).save(buffer, "PNG")
    with pytest.raises(UnsafeInputError, match="enough"):
        answer_for_page(NoModel, None, None, buffer.getvalue(), "", WITHOUT)
    ((width, height),) = seen
    assert MOST_PIXELS * 0.9 < width * height <= MOST_PIXELS
