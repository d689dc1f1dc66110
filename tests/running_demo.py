"""`hf-ravlm demo` in a process of its own, watched: whom it calls, what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ports import on_a_free_port


ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples" / "flags" / "checkpoint"
STARTS_WITHIN = 180  # seconds, on a machine with other things to do

# Whoever is not on this machine cannot be called, and every try is written down.
GUARDED = """
import socket, sys
calls = open(sys.argv.pop(1), "a", buffering=1)
connect, look_up = socket.socket.connect, socket.getaddrinfo
own = ("127.", "::1", "localhost", "0.0.0.0")

def guarded_connect(self, address):
    if isinstance(address, tuple) and not str(address[0]).startswith(own):
        calls.write(f"connect {address}\\n")
        raise OSError("no network here")
    return connect(self, address)

def guarded_look_up(host, *args, **kwargs):
    if host is not None and not str(host).startswith(own):
        calls.write(f"look up {host}\\n")
        raise OSError("no network here")
    return look_up(host, *args, **kwargs)

socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_look_up
from hf_ravlm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class RunningDemo:
    """A page that is served: its address, and what its process did."""

    address: str
    calls: Path
    messages: Path
    process: subprocess.Popen

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)


@contextlib.contextmanager
def running_demo(folder: Path, model: Path = CHECKPOINT, *options: str) -> Iterator[RunningDemo]:
    """Serves the page of a model until the block ends; without the network, as a user without settings of gradio."""
    calls, messages = folder / "calls.txt", folder / "messages.txt"
    calls.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "GRADIO_TEMP_DIR": str(folder / "gradio")}
    environment.pop("HF_HUB_OFFLINE", None)  # a user has no such setting either

    def start(port: int) -> tuple[int, subprocess.Popen]:
        command = [sys.executable, "-c", GUARDED, str(calls), "demo", str(model), "--port", str(port), *options]
        with messages.open("w") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=folder)
        try:
            _wait_for(process, port, messages)
        except BaseException as error:
            _end(process)
            if "cannot be used" in messages.read_text():  # somebody else was faster
                raise OSError(messages.read_text()) from error
            raise
        return port, process

    port, process = on_a_free_port(start)
    try:
        yield RunningDemo(f"http://127.0.0.1:{port}/", calls, messages, process)
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen, port: int, messages: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the demo ended with {process.returncode}:\n{messages.read_text()}")
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the demo did not open within {STARTS_WITHIN} s:\n{messages.read_text()}")
