"""What the arguments of `hf-ravlm` may be: texts in, values out, or an error that says what was expected."""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path

from .outcome import one_line


CHANNEL_NAMES = ("dense", "bm25", "dense_text", "dense_image")
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def path(text: str) -> Path:
    """A file or folder; `~` is the home folder, also behind the `=` of an option, where a shell leaves it.

    >>> path("~/birds") == Path.home() / "birds"
    True
    """
    return Path(text).expanduser()


def positive(text: str) -> int:
    """A whole number of at least 1."""
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")


def port(text: str) -> int:
    """A port of TCP."""
    if (number := positive(text)) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port, 1 to 65535")
    return number


def torch_device(text: str) -> str:
    """A device that torch has on this machine.

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
    """Names with commas between them.

    >>> names("dense,bm25")
    ['dense', 'bm25']
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names with commas between them")
    return found


def bytes_of(text: str) -> int:
    """A number of bytes, as people write it.

    >>> bytes_of("1.5GB"), bytes_of("800 MB"), bytes_of("4096")
    (1500000000, 800000000, 4096)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match.group(2).upper() not in _SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected one such as 800MB or 2GB")
    return int(float(match.group(1)) * _SIZES[match.group(2).upper()])


def channels(text: str) -> list[str]:
    """Names of channels, with commas between them."""
    if unknown := [name for name in names(text) if name not in CHANNEL_NAMES]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; choose from {', '.join(CHANNEL_NAMES)}")
    return names(text)


def weights(text: str) -> dict[str, float]:
    """What each channel counts.

    >>> weights("dense_image=0.8,dense_text=0.2")
    {'dense_image': 0.8, 'dense_text': 0.2}
    """
    found: dict[str, float] = {}
    for pair in names(text):
        name, _, number = pair.partition("=")
        try:
            found[channels(name)[0]] = float(number)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{pair!r}: expected a channel and a number, as in dense_image=0.8,dense_text=0.2"
            ) from error
    return found


def factors(text: str) -> list[int]:
    """Whole numbers of at least 1, with commas between them."""
    return [positive(name) for name in names(text)]


def passage_count(text: str) -> int:
    """A whole number of at least 0."""
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number of passages, 0 for none")
