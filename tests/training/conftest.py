"""One launch of two processes, which all tests of several processes read."""

from __future__ import annotations

from pathlib import Path

import pytest

import two_processes as program


@pytest.fixture(scope="session")
def written_by_two(tmp_path_factory) -> Path:
    """The folder that two processes have written to; one folder in it for each program of `two_processes.main`."""
    return program.run_two_processes(Path(program.__file__), tmp_path_factory.mktemp("two_processes"))
