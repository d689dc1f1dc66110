"""Shared by all tests: no network, quiet progress bars, the tiny builders on the import path."""

from __future__ import annotations

import os
import sys
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from transformers.utils import logging


logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def verbosity_as_before():
    """Programs that quiet transformers quiet it for themselves, and not for the tests that follow."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
