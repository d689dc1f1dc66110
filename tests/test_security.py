"""The threat model of SECURITY.md, line by line: each number has a test that tries what the line says."""

from __future__ import annotations

import ast
import base64
import inspect
import io
import os
import re
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm import RemoteReader
from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError, RemoteServerError, UnsafeInputError
from hf_ravlm.images import fetch_image, safe_image
from hf_ravlm.model.prompts.literal import literal_ids
from hf_ravlm.pipelines import RavlmImageToTextPipeline
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.saving.safe_paths import resolve_inside
from hf_ravlm.servers import Server
from stub_server import StubServer, send
from tiny import tiny_tokenizer
from tiny_folder import save_everything


ROOT = Path(__file__).parents[1]
SAME_WORDS = "an image came as an address; send the image itself: data:image/png;base64,..."


def png(size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def serve():
    pytest.importorskip("starlette", reason='pip install "hf_ravlm[serve]"')
    pytest.importorskip("uvicorn", reason='pip install "hf_ravlm[serve]"')
    import stub_reader

    return stub_reader


@pytest.fixture
def guards():
    """What stands before the page."""
    pytest.importorskip("gradio", reason='pip install "hf_ravlm[demo]"')
    from hf_ravlm.demo import serving

    return serving


def test_every_line_has_its_test():
    lines = re.findall(r"^\| (\d+) \|", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    tested = [int(name.split("_")[2]) for name in globals() if name.startswith("test_line_")]
    assert list(map(int, lines)) == sorted(tested) == list(range(1, len(lines) + 1))


def test_line_1_no_model_is_loaded_dropped_or_listed(serve):
    for path in ("/load_model", "/reset", "/v1/audio/transcriptions", "/v1/responses"):
        assert serve.asked({"model": "bert-base-uncased"}, path)[0] == 404
    status, listed = serve.asked(b"", "/v1/models", "GET")
    assert (status, [model["id"] for model in listed["data"]]) == (200, ["stub"])
    question = {"messages": [{"role": "user", "content": "Who?"}]}
    assert serve.asked({"model": "bert-base-uncased", **question})[0] == 400


def test_line_2_no_file_is_opened(serve, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for url in (
        tmp_path / "a.png",
        tmp_path / "none.png",
        f"file://{tmp_path}/a.png",
        "//host/a.png",
        "/etc/hostname",
    ):
        status, reply = serve.asked(serve.with_image(str(url)))
        assert (status, reply["error"]["message"]) == (400, SAME_WORDS)
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    assert serve.asked(serve.with_image(url))[0] == 200


def test_line_3_no_address_is_fetched(serve):
    for url in ("http://127.0.0.1:9/a.png", "https://example.org/a.png"):
        assert serve.asked(serve.with_image(url))[1]["error"]["message"] == SAME_WORDS
    for host in ("127.0.0.1:9", "localhost:9", "[::1]:9", "169.254.169.254", "10.0.0.1"):
        status, reply = serve.asked(serve.with_image(f"http://{host}/a.png"), fetch_images=True)
        assert (status, "private network" in reply["error"]["message"]) == (400, True)


def test_line_4_odd_messages_are_told_in_one_line(serve):
    for messages in (None, [], 5, [{}], [{"role": "user", "content": [{"type": "video"}]}]):
        status, reply = serve.asked({"messages": messages})
        assert (status, reply["error"]["type"]) == (400, "invalid_request_error")
        assert "\n" not in reply["error"]["message"]


def test_line_5_requests_are_bounded(serve):
    question = {"messages": [{"role": "user", "content": "x" * 20_001}]}
    assert "at most 20,000" in serve.asked(question)[1]["error"]["message"]
    assert serve.asked(b"x" * 32_000_001)[0] == 413
    from hf_ravlm import web
    from hf_ravlm.integrations import transformers_serve

    assert (web.BODY_SECONDS, transformers_serve.HEAD_SECONDS) == (60, 20)


def test_line_6_only_uploads_are_opened(guards, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "uploads" / "b.png").write_bytes(png())

    def told(path) -> str | None:
        return guards.names_no_other_file(b'{"data": [{"path": "%s"}]}' % str(path).encode())

    assert told(tmp_path / "uploads" / "b.png") is None
    refused = {told(tmp_path / name) for name in ("a.png", "none.png", "uploads/../a.png")} | {told("/etc/hostname")}
    assert refused == {guards.NOT_UPLOADED}


def test_line_7_parts_of_gradio_are_closed(guards):
    closed = ("file=http://a/b", "file=https://a/b", "proxy=http://a/b", "vibe-edit", "process_recording", "deep_link")
    for path in closed:
        assert guards._CLOSED.search(f"/gradio_api/{path}")
    for path in ("file=/tmp/gradio/a.png", "upload", "queue/join", "call/answer", "info"):
        assert not guards._CLOSED.search(f"/gradio_api/{path}")
    assert guards.names_no_other_file(b'[{"path": "http://127.0.0.1/a.png"}]') == guards.NOT_UPLOADED


def test_line_8_other_names_and_origins_are_refused(serve):
    question = {"messages": [{"role": "user", "content": "Who?"}]}
    assert serve.asked(question, Host="evil.example")[0] == 403
    assert serve.asked(question, Origin="https://evil.example")[0] == 403
    assert serve.asked(question, Host="127.0.0.1:8000", Origin="http://localhost:8000")[0] == 200


def test_line_9_pictures_are_bounded_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("PIL.Image.Exif.load", lambda *_: pytest.fail("Exif was unfolded"))
    large = png((7200, 7200))
    with pytest.raises(UnsafeInputError, match="more than the limit of 50,000,000"):
        safe_image(large)
    head = b"MM\0*\0\0\0\x08\xff\xff" + struct.pack(">HHII", 0x9000, 7, 1_000_000, 8) * 65_535 + bytes(1_000_004)
    chunk = struct.pack(">I", len(head)) + b"eXIf" + head + struct.pack(">I", zlib.crc32(b"eXIf" + head))
    assert safe_image(png()[:33] + chunk + png()[33:]).size == (4, 4)


def test_line_10_addresses_are_bounded():
    for address in ("http://127.0.0.1:9/a.png", "http://[::ffff:10.0.0.1]/a.png", "http://0.0.0.0/a.png"):
        with pytest.raises(UnsafeInputError, match="private network"):
            fetch_image(address, private=False)
    with pytest.raises(InvalidInputError, match="could not be fetched"):
        fetch_image("http://127.0.0.1:9/a.png", timeout=5)


def test_line_11_names_stay_in_their_folder(tmp_path):
    from hf_ravlm.demo.uploads import unpack

    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "in" / "rows.jsonl").write_text('{"id": "a", "text": "A.", "image": "../secret.png"}\n')
    with pytest.raises((InvalidInputError, UnsafeInputError)):
        KnowledgeBase.from_jsonl(tmp_path / "in" / "rows.jsonl")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", "/etc/hostname", "link.png"):
        with pytest.raises(UnsafeInputError):
            resolve_inside(tmp_path / "in", name)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../out.txt", "x")
    with pytest.raises(UnsafeInputError):
        unpack(archive, tmp_path / "in")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bomb.txt", b"0" * 10_000_000)
    with pytest.raises(InvalidInputError, match="too much"):
        unpack(archive, tmp_path / "in", max_bytes=1_000_000)
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are a POSIX matter")
def test_line_12_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(InvalidInputError, match="a named pipe"):
        KnowledgeBase.from_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(UnsafeInputError, match="a named pipe"):
        safe_image(tmp_path / "rows.jsonl")


def test_line_13_nothing_is_unpickled_or_executed():
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unsafe & {name.partition(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec"), file
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called != "torch.load" or given["weights_only"] == "True", file
                assert given.get("allow_pickle", "False") == "False", file
                assert given.get("trust_remote_code", "False") != "True", file


def test_line_14_an_altered_knowledge_base_is_an_error(tmp_path):
    built(numbered(range(20)), HashEncoder()).save_pretrained(tmp_path)
    RavlmRetriever.from_pretrained(tmp_path, encoder=HashEncoder())
    store = tmp_path / "knowledge_base"
    files = [file for file in store.rglob("*") if file.suffix in (".parquet", ".safetensors")]
    assert files
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        with pytest.raises(KnowledgeBaseCorruptError):
            RavlmRetriever.from_pretrained(tmp_path, encoder=HashEncoder())
        file.write_bytes(data)


def test_line_15_control_tokens_in_text_stay_text():
    tokenizer = tiny_tokenizer()
    special = [token for token in tokenizer.all_special_tokens if token]
    assert special
    (ids,) = literal_ids(tokenizer, ["red " + " ".join(special)])
    assert not set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def test_line_16_the_address_of_a_reader_is_the_operators(serve, tmp_path):
    with StubServer() as stub, StubServer() as other:
        question = {"messages": [{"role": "user", "content": "Who?"}]}
        for field in ("model", "base_url", "reader_name"):
            assert serve.asked({**question, field: other.address})[0] == 400
        pipe = RavlmImageToTextPipeline(RemoteReader(stub.address), retriever=built(numbered(range(3)), HashEncoder()))
        with pytest.raises(InvalidInputError, match="nor does a folder name an address"):
            pipe.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
        assert other.asked == []


def test_line_17_a_server_cannot_hold_or_lead_the_program(monkeypatch):
    monkeypatch.setattr("hf_ravlm.servers.MAX_REPLY_BYTES", 1_000)

    def endless(handler, _):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 1_000)

    with StubServer(endless) as stub, pytest.raises(RemoteServerError, match="more than 1,000 bytes"):
        Server(stub.address).ask("/chat/completions", {})
    with StubServer() as other, StubServer(lambda handler, _: send(handler, 308, b"", Location=other.address)) as stub:
        with pytest.raises(InvalidInputError, match="has moved"):
            Server(stub.address).ask("/chat/completions", {})
        assert other.asked == []


def test_page_and_server_listen_on_this_machine_alone(guards):
    from hf_ravlm.commands.command_line import make_parser

    parser = make_parser("0")
    assert parser.parse_args(["demo", "model"]).host == "127.0.0.1"
    assert parser.parse_args(["serve", "model"]).host in ("127.0.0.1", "localhost")
    source = inspect.getsource(guards.serve_page)
    assert inspect.signature(guards.serve_page).parameters["host"].default == "127.0.0.1"
    assert "share=False" in source
    assert "enable_monitoring=False" in source


def test_the_network_is_not_called_unasked(tmp_path, monkeypatch):
    """Building, saving, opening, searching, answering, as a user without settings of the Hub."""
    from huggingface_hub import constants
    from transformers import pipeline

    def call(*arguments, **_):
        pytest.fail(f"the network was called: {arguments[:2]}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for owner, name in ((socket, "getaddrinfo"), (socket, "create_connection"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, name, call)
    save_everything(tmp_path)
    pipe = pipeline("image-to-text", model=str(tmp_path))
    assert len(pipe(Image.new("RGB", (8, 8), "lime"), question="what ?", max_new_tokens=2)[0]["evidence"]) > 0


def test_lower_bounds_are_those_of_the_table():
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8")))
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Versions with")[2]
    rows = re.findall(r"^\| ([\w-]+) \| [^|]+ \| ([\d.]+) \|", table, re.MULTILINE)
    assert len(rows) > 5
    assert {name: bounds[name] for name, _ in rows} == dict(rows)
