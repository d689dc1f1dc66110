"""The server of transformers answers OpenAI's client about an image: closed-book by itself, with evidence by us."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import pipeline
from transformers.utils.import_utils import is_serve_available


if not is_serve_available():
    pytest.skip('needs: pip install "hf_ravlm[serve]"', allow_module_level=True)

FLAGS = Path(__file__).parents[2] / "examples" / "flags"
FLAG = FLAGS / "unseen" / "is__circleflags.png"
QUESTION = "What is the capital of the country that uses this flag?"


def image_part(path: Path = FLAG) -> dict:
    text = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}


def messages(*parts: dict, question: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def wait_for(address, timeout: float = 120) -> str:
    """Calls `address` until it gives one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := address():
            return found
        time.sleep(0.05)
    raise TimeoutError("the server did not start")


def client_of(address: str):
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ask():
    """Asks a server in a thread of this process, which serves the shipped model with its knowledge base."""
    from hf_ravlm.integrations.transformers_serve import serve

    server = serve(str(FLAGS / "checkpoint"), host="127.0.0.1", port=0, non_blocking=True)

    def address():
        if server.server.started:
            return "http://127.0.0.1:{1}".format(*server.server.servers[0].sockets[0].getsockname())

    client = client_of(wait_for(address))

    def ask(conversation, **settings):
        create = client.chat.completions.create
        return create(model=str(FLAGS / "checkpoint"), messages=conversation, max_tokens=30, **settings)

    yield ask
    server.kill_server()
    assert not server._thread.is_alive()


def text_of(completion) -> str:
    return completion.choices[0].message.content.strip()


def test_it_answers_with_the_knowledge_of_its_folder(ask):
    completion = ask(messages(image_part()))
    assert text_of(completion) == "Reykjavik"
    best, _ = completion.choices[0].message.evidence
    assert (best["id"], best["rank"]) == ("is/capital", 1)
    assert best["source"]
    assert best["licence"]


def test_a_request_may_ask_for_no_passages(ask):
    completion = ask(messages(image_part()), extra_body={"chat_template_kwargs": {"k": 0}})
    closed = text_of(completion)
    assert completion.choices[0].message.evidence == []
    pipe = pipeline("image-to-text", model=str(FLAGS / "checkpoint"), max_new_tokens=30)
    assert closed == pipe(str(FLAG), question=QUESTION, k=0)[0]["generated_text"] != "Reykjavik"


def test_of_a_conversation_the_last_question_and_image_count(ask):
    before = [
        {"role": "system", "content": "You know flags."},
        *messages(image_part(FLAGS / "unseen" / "bg__circleflags.png"), question="Whose flag is this?"),
        {"role": "assistant", "content": "That of Bulgaria."},
    ]
    assert text_of(ask(before + messages(image_part()))) == "Reykjavik"
    assert text_of(ask(before + messages(question=QUESTION))) == "Sofia"


def test_a_stream_adds_up_to_the_answer(ask):
    chunks = ask(messages(image_part()), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == "Reykjavik"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/flag.png", str(FLAG), f"file://{FLAG}"])
def test_nobody_makes_it_read_or_fetch_an_image(ask, address):
    import openai

    part = {"type": "image_url", "image_url": {"url": address}}
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(messages(part))
    assert "send the image itself" in refusal.value.response.json()["detail"]


@pytest.mark.parametrize(
    ("conversation", "settings", "message"),
    [
        (messages(question=""), {}, "no words from the user"),
        (messages(image_part()), {"extra_body": {"chat_template_kwargs": {"k": -1}}}, "k=-1: expected 0"),
        (messages({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), {}, "not an image"),
    ],
)
def test_what_cannot_be_asked_is_told_to_the_client(ask, conversation, settings, message):
    import openai

    with pytest.raises(openai.BadRequestError) as refusal:
        ask(conversation, **settings)
    assert message in refusal.value.response.json()["detail"]


@pytest.mark.slow
def test_the_plain_server_loads_it_with_trust_and_answers_closed_book(tmp_path):
    folder = shutil.copytree(FLAGS / "checkpoint", tmp_path / "flags", ignore=shutil.ignore_patterns("knowledge_base"))
    path = os.pathsep.join(folder for folder in sys.path if folder)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(tmp_path / "cache")
    command = ["-m", "transformers.cli.transformers", "serve", str(folder), "--trust-remote-code", "--device", "cpu"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", "0"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def address():
            assert process.poll() is None, log.read_text()[-3000:]
            found = re.search(r"running on (http://\S+)", log.read_text())
            return found and found[1]

        client = client_of(wait_for(address))
        completion = client.chat.completions.create(model=str(folder), messages=messages(image_part()))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    pipe = pipeline("image-to-text", model=str(folder), max_new_tokens=30)
    assert text_of(completion) == pipe(str(FLAG), question=QUESTION, k=0)[0]["generated_text"]
