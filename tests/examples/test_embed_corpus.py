"""The example as a user launches it: alone, by torchrun, by accelerate, and killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from hf_ravlm.saving.arrays import open_arrays
from stub_server import StubServer, send
from tiny import WIDTHS, tiny_tokenizer


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "examples" / "embed_corpus.py")
NUM_PASSAGES = 600


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny text encoder and passages of many lengths."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **WIDTHS)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lengths = np.random.default_rng(0).integers(1, 60, NUM_PASSAGES)
    rows = [{"id": row, "text": " ".join(f"w{row * j % 97}" for j in range(n))} for row, n in enumerate(lengths)]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(world: Path, output: str, *launcher: str) -> list[str]:
    source, model = str(world / "passages.jsonl"), str(world / "model")
    options = ["--model", model, "--batch_size", "1", "--shard_rows", "50", "--timeout", "120"]
    return [sys.executable, *launcher, SCRIPT, source, str(world / output), *options]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def run(world: Path, output: str, *launcher: str, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(world, output, *launcher), env=environment(**extra), capture_output=True, text=True, timeout=300
    )


def vectors_of(world: Path, output: str) -> bytes:
    (merged,) = (world / f"{output}.staging").glob("*/vectors.safetensors")
    vectors = open_arrays(merged)[0]["vectors"]
    assert vectors.shape == (NUM_PASSAGES, WIDTHS["hidden_size"])
    return vectors.tobytes()


@pytest.fixture(scope="module")
def alone(world) -> bytes:
    result = run(world, "alone")
    assert result.returncode == 0, result.stderr
    assert f"{NUM_PASSAGES} passages in {WIDTHS['hidden_size']} dimensions" in result.stdout
    return vectors_of(world, "alone")


LAUNCHERS = {
    "torchrun": (["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29671"], {}),
    # `accelerate launch --cpu --num_processes 2` would start one process and say nothing.
    "accelerate": (
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "29672"],
        {"ACCELERATE_USE_CPU": "true"},
    ),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_bits_of_one(world, alone, launcher):
    arguments, extra = LAUNCHERS[launcher]
    result = run(world, launcher, *arguments, **extra)
    assert result.returncode == 0, result.stderr
    assert vectors_of(world, launcher) == alone
    assert all(f"Process {number} of 2 is done" in result.stdout for number in (1, 2))
    assert result.stdout.count("passages in") == 1  # the first process saves


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(world, alone):
    (job,) = (world / "alone.staging").iterdir()
    staging = world / "killed.staging" / job.name
    for num_shards in (1, 6):
        process = subprocess.Popen(command(world, "killed"), env=environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(list(staging.glob("shard-*.json"))) < num_shards:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {path: path.stat().st_mtime_ns for path in staging.glob("shard-*.json")}
        assert len(before) >= num_shards
    result = run(world, "killed")
    assert result.returncode == 0, result.stderr
    assert vectors_of(world, "killed") == alone
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


def served(limit: float):
    """A server that embeds texts by their letters until it has done so many, and the texts that it has embedded."""
    done = []

    def behave(handler, body):
        if len(done) >= limit:
            send(handler, 400, {"error": {"message": "no credit is left"}})
            return
        done.extend(body["input"])
        vectors = [[text.count(letter) + 1.0 for letter in "w01"] for text in body["input"]]
        data = [{"index": place, "embedding": vector} for place, vector in enumerate(vectors)]
        send(handler, 200, {"object": "list", "data": data, "model": body["model"]})

    return StubServer(behave), done


def test_two_processes_embed_by_a_server_say_first_what_it_costs_and_go_on_where_it_refused(world):
    stub, first = served(limit=200)
    launcher, extra = LAUNCHERS["accelerate"]
    source = str(world / "passages.jsonl")

    def start(address):
        options = ["--model", address, "--batch_size", "1", "--shard_rows", "50", "--timeout", "120"]
        command = [sys.executable, *launcher, SCRIPT, source, str(world / "remote"), *options]
        return subprocess.run(command, env=environment(**extra), capture_output=True, text=True, timeout=300)

    with stub:
        refused = start(stub.address + "#stub")
        assert refused.returncode != 0
        assert "no credit is left" in refused.stderr
    again, rest = served(limit=float("inf"))
    with again:
        finished = start(again.address + "#stub")
    assert finished.returncode == 0, finished.stderr
    assert "passages: about" in refused.stderr + finished.stderr  # told after the first call of the first process
    num_kept = len(list((world / "remote.staging").glob("*/shard-*.json"))) * 50
    assert set(first) | set(rest) >= {json.loads(line)["text"] for line in open(source)}
    assert len(rest) < NUM_PASSAGES - 50  # what was finished is not asked for again
    assert num_kept >= NUM_PASSAGES
    assert f"{NUM_PASSAGES} passages in 3 dimensions" in finished.stdout


def test_the_help_says_how_to_launch_it():
    result = subprocess.run([sys.executable, SCRIPT, "--help"], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0
    assert "accelerate launch" in result.stdout
