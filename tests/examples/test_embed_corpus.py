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


def test_the_help_says_how_to_launch_it():
    result = subprocess.run([sys.executable, SCRIPT, "--help"], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0
    assert "accelerate launch" in result.stdout
