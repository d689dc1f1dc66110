"""Where an encoded image comes from: a path, bytes, base64 text, a dictionary of `datasets`; read within its limit."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any

from ..errors import UnsafeInputError
from ..files import other_than_file


MAX_LABEL = 200  # letters of a path or an address in messages

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://|data:", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{200,}={0,2}\s*")


def read_encoded(source: Any, max_bytes: int) -> tuple[bytes, str]:
    """The encoded bytes of a source, and its name in messages.

    Raises:
        UnsafeInputError: If it is missing, empty, too large, no file, an address, or of another type.
    """
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise UnsafeInputError(
                f"An image dictionary has the keys {shortened(str(sorted(map(str, source))))} and neither `bytes` nor "
                '`path` is set. Pass {"bytes": ...} or {"path": ...}.'
            )
        if data is None:
            return read_encoded(path, max_bytes)
        data, label = read_encoded(data, max_bytes)
        return data, shortened(str(path)) if path else label
    if isinstance(source, (bytes, bytearray, memoryview)):
        label = f"image of {len(source):,} bytes"
        _check_num_bytes(len(source), label, max_bytes)
        return bytes(source), label
    if isinstance(source, str) and source[:11].lower() == "data:image/":
        return _read_data_url(source, max_bytes)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(os.fspath(source), max_bytes)
    raise UnsafeInputError(
        f"An image came as {type(source).__module__}.{type(source).__qualname__}. Expected a path, bytes, a "
        '{"bytes", "path"} dictionary, a numpy array (H, W, 3) or a PIL image.'
    )


def shortened(name: str) -> str:
    """A name as messages show it: of very long ones the beginning, and how long they are.

    >>> shortened("kite.png"), shortened("x" * 800_000)[-25:]
    ('kite.png', 'x... (800,000 characters)')
    """
    return name if len(name) <= MAX_LABEL else f"{name[:MAX_LABEL]}... ({len(name):,} characters)"


def names_address(name: str) -> bool:
    """Whether a name is an address of any kind (`https://`, `s3://`, `file://`, `data:`) and no path.

    >>> names_address("s3://bucket/kite.png"), names_address("birds/kite.png"), names_address("C:/kite.png")
    (True, False, False)
    """
    return _ADDRESS.match(name) is not None


def _read_data_url(source: str, max_bytes: int) -> tuple[bytes, str]:
    head, _, text = source.partition(",")
    label = f"{head[:100]} of {len(text):,} letters"
    _check_num_bytes(len(text) * 3 // 4, label, max_bytes)
    if not head.lower().endswith(";base64"):
        raise UnsafeInputError(f"{label}: expected data:image/png;base64,... with the encoded image after the comma.")
    try:
        return base64.b64decode("".join(text.split()), validate=True), label  # mail breaks its lines
    except (binascii.Error, ValueError) as error:
        raise UnsafeInputError(f"{label}: the base64 text cannot be decoded ({error}). Encode it again.") from error


def _read_file(path: str | bytes, max_bytes: int) -> tuple[bytes, str]:
    name = os.fsdecode(path)
    label = shortened(name)
    if found := _ADDRESS.match(name):
        raise UnsafeInputError(f"{label}: {_why_not_opened(found[1])}")
    if len(name) > MAX_LABEL and _BASE64.fullmatch(name):
        raise UnsafeInputError(
            f"{name[:20]}...: these {len(name):,} letters look like base64, and a path was expected. Put "
            '"data:image/png;base64," before them, or decode them and pass the bytes.'
        )
    try:
        # A pipe or a device would block or never end.
        if kind := other_than_file(path):
            raise UnsafeInputError(f"{label}: this is {kind}, not a regular file. Pass the path of an image file.")
        _check_num_bytes(os.stat(path).st_size, label, max_bytes)
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UnsafeInputError(f"{label}: there is no such file. Check the path of the image.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UnsafeInputError):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or error  # without the path, which may be very long
        raise UnsafeInputError(f"{label}: the image file cannot be read ({reason}).") from error
    _check_num_bytes(len(data), label, max_bytes)  # it may have grown
    return data, label


def _why_not_opened(scheme: str | None) -> str:
    if (scheme or "").lower() == "file":
        return "this names a file as an address, and only paths are opened. Pass the path alone, without file://."
    if scheme is None:
        return "this is no image as text. Download the image and pass its path, or begin with data:image/png;base64,"
    return (
        "this is a URL, and images are never fetched from the network here. Download the image and pass its path or "
        "its bytes."
    )


def _check_num_bytes(num_bytes: int, label: str, max_bytes: int) -> None:
    if num_bytes == 0:
        raise UnsafeInputError(f"{label}: the image is empty (0 bytes). Provide it again.")
    if num_bytes > max_bytes:
        raise UnsafeInputError(
            f"{label}: {num_bytes:,} bytes, more than the limit of {max_bytes:,}. Shrink the image, or raise "
            "`max_bytes` if you trust its source."
        )
