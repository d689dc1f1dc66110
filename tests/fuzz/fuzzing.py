"""Random cases, one after the other, in a child process: a crash or a hang is seen, and every case can be repeated.

RAVLM_FUZZ_SEED      where the random numbers begin (default 0)
RAVLM_FUZZ_SECONDS   for each test, instead of its few cases; `make fuzz` sets it
RAVLM_FUZZ_CASE      the number of a single case, to repeat it
RAVLM_FUZZ_FAILURES  the folder to which failing cases are written (default fuzz-failures)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np


SEED = int(os.environ.get("RAVLM_FUZZ_SEED", "0"))
SECONDS = float(os.environ.get("RAVLM_FUZZ_SECONDS", "0"))
SINGLE = os.environ.get("RAVLM_FUZZ_CASE")
FAILURES = Path(os.environ.get("RAVLM_FUZZ_FAILURES", "fuzz-failures"))
SECONDS_PER_CASE = 60


def run_cases(name: str, case: Callable[[np.random.Generator], object], num_cases: int, scratch: Path) -> None:
    """Runs `case` with a generator of its own for each number; what it raises fails the test.

    Args:
        name: Of the test, and of the files that describe failures.
        case: Must not raise; what it returns is kept as the description of the case.
        num_cases: At smoke size; in a long run as many as the time allows.
        scratch: A folder that parent and child see.
    """
    log, deadline, first = scratch / "fuzz.log", time.monotonic() + SECONDS, 0
    if SINGLE is not None:
        case(_random(name, int(SINGLE)))
        return
    while first < num_cases or time.monotonic() < deadline:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                _run_in_child(name, case, range(first, first + max(num_cases, 50)), log, deadline, num_cases)
                os._exit(0)
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        log.unlink()
        last = lines[-1]
        if status != 0 or "error" in last:
            _fail(name, last, status)
        first = last["case"] + 1
    sys.stdout.write(f"{name}: {first:,} cases held\n")  # shown by `pytest -rP`, as `make fuzz` calls it


def _run_in_child(name, case, numbers, log: Path, deadline: float, num_cases: int) -> None:
    for number in numbers:
        if number >= num_cases and time.monotonic() >= deadline:
            return
        record = {"case": number}
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")  # before it runs: what crashes says nothing afterwards
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS_PER_CASE)
        try:
            case(_random(name, number))
        except BaseException:
            with log.open("a") as file:
                file.write(json.dumps({**record, "error": traceback.format_exc()}) + "\n")
            os._exit(1)
        signal.alarm(0)


def _random(name: str, number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(name.encode()), number])


def _fail(name: str, last: dict, status: int) -> None:
    FAILURES.mkdir(parents=True, exist_ok=True)
    path = FAILURES / f"{name}-{SEED}-{last['case']}.txt"
    how = last.get("error") or f"the process ended with the wait status {status} (14: it hung; 6, 11: it crashed)"
    path.write_text(f"RAVLM_FUZZ_SEED={SEED} RAVLM_FUZZ_CASE={last['case']} pytest -k {name} tests/fuzz\n\n{how}\n")
    raise AssertionError(f"{name}: case {last['case']} failed, see {path}\n{how}")


def choose(random: np.random.Generator, choices):
    """One of them."""
    choices = list(choices)
    return choices[int(random.integers(len(choices)))]
