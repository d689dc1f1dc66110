"""Ports for servers that cannot choose one themselves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from hf_ravlm.errors import InvalidInputError


_Started = TypeVar("_Started")


def on_a_free_port(start: Callable[[int], _Started]) -> _Started:
    """What `start` returns for a port that was free a moment ago; on another one if somebody else was faster."""
    for attempt in range(5):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        try:
            return start(port)
        except (OSError, InvalidInputError):
            if attempt == 4:
                raise
    raise AssertionError
