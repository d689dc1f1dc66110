"""Everything here is marked `fuzz`: `pytest -m fuzz`, or `-m "not fuzz"`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.fuzz)
            if not hasattr(os, "fork"):
                item.add_marker(pytest.mark.skip(reason="forks"))


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
