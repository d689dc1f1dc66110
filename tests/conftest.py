"""Shared by all tests: no network, nothing kept for the user, quiet progress bars, the path to the tiny builders."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="hf_ravlm-")  # what is encoded of sources is kept there
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from transformers.utils import logging


logging.disable_progress_bar()


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_ASSETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def verbosity_as_before():
    """Programs that quiet transformers quiet it for themselves, and not for the tests that follow."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
