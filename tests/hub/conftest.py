"""A Hub on the loopback, and a client of it in a process of its own: the address is read when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from hub_server import OWNER_TOKEN, HubServer  # noqa: E402


WORLD = """
import logging, sys
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
from hash_encoder import HashEncoder, built, numbered
from hf_ravlm import KnowledgeBase, RavlmRetriever
encoder = HashEncoder()
def birds(number=40, tag="first", **options):
    return built([{**row, "licence": "CC0-1.0"} for row in numbered(range(number), tag)], encoder, **options)
def found(retriever):
    return [[p.id, p.text] for p in retriever.retrieve(texts="topic3 number 3 first", k=3)[0]]
"""


class HubClient:
    """Runs code in the process; raises what it raised, by name."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        source = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE.parent)])
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_TOKEN": OWNER_TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, str(HERE / "hub_client.py")]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, code: str):
        """Returns what the code left in `result`."""
        answer = self.ask(code)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def error(self, code: str) -> str:
        """Returns the error that the code ends with."""
        return self.ask(code)["error"]

    def ask(self, code: str) -> dict:
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    hub = HubServer()
    client = HubClient(hub, tmp_path_factory.mktemp("hf_home"))
    yield hub, client
    client.close()
    hub.close()


@pytest.fixture
def hub(running):
    hub, _ = running
    hub.repositories.clear()
    hub.large.clear()
    for log in (hub.uploads, hub.downloads, hub.unknown, hub.gated):
        log.clear()
    hub.uploads_before_failure, hub.is_down, hub.before_commit = None, False, lambda: None
    yield hub
    assert hub.unknown == [], hub.unknown


@pytest.fixture
def client(running, hub, tmp_path):
    """The client, with an empty download cache; the tests before it may have given the names of WORLD away."""
    _, client = running
    client.do(WORLD)
    client.do(f"cache = {str(tmp_path / 'cache')!r}")
    return client
