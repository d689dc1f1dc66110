"""Runs a program as two processes that speak through gloo, as `torchrun` does.

As a program itself it is one of the two, and does what `tiny_joint.py` and `tiny_alignment.py` do, each in a folder of
its own: one launch for all trainers, as starting takes longer than training.
"""

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


def main(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny_alignment
    import tiny_joint

    for program in (tiny_joint, tiny_alignment):
        own = folder / program.__name__
        own.mkdir(exist_ok=True)
        program.main(own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
