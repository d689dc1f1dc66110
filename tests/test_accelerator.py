"""The program for ten minutes of an accelerator: its steps work at tiny size, and it says where there is none."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("accelerator")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name
def test_every_step_works_at_tiny_size_and_is_written(program, tmp_path):
    small = ["--batch", "2", "--passages", "2", "--passage_bytes", "40", "--new_tokens", "2", "--encoded", "3"]
    out = tmp_path / "found.json"
    findings = program.main(["--size", "tiny", "--device", "cpu", "--rounds", "1", *small, "--out", str(out)])
    assert {row.section for row in findings} == {"generate", "train", "attribution", "encoder", "equality"}
    assert all(row.met is not False for row in findings)
    assert len(json.loads(out.read_text())["findings"]) == len(findings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(program):
    with pytest.raises(SystemExit, match="There is no GPU here"):
        program.main([])
