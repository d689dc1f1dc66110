"""Any body to the chat server: an answer, or one line with a status that says whose fault it is; never 500."""

from __future__ import annotations

import base64
import copy
import io
import json

import pytest
from damage import EXTREMES, _places, with_flipped_bits
from fuzzing import choose, run_cases
from PIL import Image


pytest.importorskip("starlette", reason='pip install "hf_ravlm[serve]"')
pytest.importorskip("uvicorn", reason='pip install "hf_ravlm[serve]"')
pytest.importorskip("httpx")

from stub_reader import asked


def _whole() -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "lime").save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return {
        "model": "stub",
        "messages": [
            {"role": "system", "content": "You know birds."},
            {"role": "assistant", "content": None},
            {"role": "user", "content": parts},
        ],
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["."],
        "n": 1,
        "stream": False,
        "logprobs": False,
        "chat_template_kwargs": {"k": 2, "cite": True},
        "user": "me",
    }


def test_odd_requests(tmp_path):
    kinds = [
        "video",
        "input_audio",
        "image",
        "file",
        "tool",
        "developer",
        "text",
        "data:image/png;base64,",
        "file:///a",
    ]

    def case(random):
        body = copy.deepcopy(_whole())
        for _ in range(int(random.integers(1, 4))):
            holder, key = choose(random, list(_places(body)))
            holder[key] = copy.deepcopy(choose(random, [*EXTREMES, *kinds]))
        data = json.dumps(body).encode()
        if random.integers(4) == 0:
            data = with_flipped_bits(data, random)
        status, reply = asked(data)
        assert status in (200, 400), (status, reply)
        if status == 400:
            assert reply["error"]["type"] == "invalid_request_error"
            assert "\n" not in reply["error"]["message"]
            assert len(reply["error"]["message"]) < 1_000

    run_cases("test_odd_requests", case, 120, tmp_path)
