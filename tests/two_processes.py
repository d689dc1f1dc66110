"""Runs a program as two processes that speak through gloo, as `torchrun` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_two_processes(program: Path, folder: Path) -> Path:
    """Runs `program FOLDER` in two processes, and returns the folder that they have written to."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run([*launch, str(folder)], env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-4000:]
    return folder
