"""The small world of coloured birds, for retrievers on a server."""

from __future__ import annotations

import pytest

from bird_world import ToyEncoder, bird_rows


@pytest.fixture
def toy_encoder():
    """The class, for tests that need several encoders."""
    return ToyEncoder


@pytest.fixture
def encoder():
    return ToyEncoder()


@pytest.fixture
def rows():
    return bird_rows()
