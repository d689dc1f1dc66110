"""Knows what a command brings back: a record for programs, lines for people, and whether all is well."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command brings back.

    Attributes:
        record: JSON values, for `--json`.
        text: The same for people.
        exit_code: 0 if all is well, 1 if it is not.
    """

    record: Mapping[str, Any]
    text: str
    exit_code: int = 0


def size(num_bytes: float) -> str:
    """A number of bytes for people.

    >>> size(812), size(1_234_567)
    ('812 bytes', '1.2 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes:.0f} bytes"


def one_line(text: str) -> str:
    r"""A text without line breaks and other signs that steer a terminal.

    >>> one_line("A wren\nis \x1b[31msmall.")
    'A wren is [31msmall.'
    """
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return number


def port(text: str) -> int:
    """A port of TCP, as the type of an argument."""
    if (number := positive(text)) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port, 1 to 65535")
    return number


def torch_device(text: str) -> str:
    """A device that torch has on this machine, as the type of an argument.

    >>> torch_device("cpu")
    'cpu'
    """
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = one_line(str(error))[:200]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used on this machine: {reason}") from error
    return text


def names(text: str) -> list[str]:
    """Names with commas between them, as the type of an argument.

    >>> names("dense,bm25")
    ['dense', 'bm25']
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names with commas between them")
    return found
