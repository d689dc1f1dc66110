"""Text files of any size as streams: compressed or not, with or without a byte order mark.

Nothing is unpacked to disk and no more than one line is held. A bad line (bytes that are no UTF-8, a line without end)
can be skipped; a bad file (a damaged or cut archive) cannot.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from ...errors import InvalidInputError
from ...files import other_than_file
from ...saving.safe_paths import at_home
from .checked_rows import SourceFault


MAX_LINE_BYTES = 64_000_000
_MAX_PEEK = 8192  # bytes that tell how lines end

Parsed = TypeVar("Parsed")

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz"}


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file.

    Raises:
        InvalidInputError: If there is no such file.
    """
    file = Path(at_home(path))
    if kind := other_than_file(file):
        raise InvalidInputError(f"{file}: this is {kind}, and a file was expected. Check the path.")
    if not file.is_file():
        raise InvalidInputError(f"{file}: there is no such file. Check the path.")
    return file


def plain_suffix(file: Path) -> str:
    """The suffix of a file, in lower case, without that of its compression: `.csv` for `birds.CSV.gz`."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(file: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes; gzip, bzip2 (of one or many streams) and xz are known by their first bytes.

    Raises:
        InvalidInputError: If the file is a damaged or cut archive, which shows while it is read, or is not readable.
    """
    try:
        with open(file, "rb") as start:
            first = start.read(6)
        opener = next((known for magic, known in _OPENERS.items() if first.startswith(magic)), open)
        with cast(BinaryIO, opener(file, "rb")) as stream:
            yield stream
    except (EOFError, OSError, UnicodeError, zlib.error, lzma.LZMAError) as error:
        raise InvalidInputError(
            f"{file}: the file cannot be read to its end ({error}). Download or copy it again."
        ) from error


def byte_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines of a stream, in UTF-8, with their numbers from 1; `None` for one over `MAX_LINE_BYTES` bytes.

    UTF-16 with its byte order mark, as spreadsheets save "Unicode text", becomes UTF-8.

    Raises:
        InvalidInputError: If the first line holds a NUL byte: this is another encoding, or no text.
    """
    number = 0
    stream = _in_utf8(stream)
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if b"\0" in line:
                raise InvalidInputError("Line 1 holds NUL bytes: this is no text, or not in UTF-8. Save it as UTF-8.")
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while not line.endswith(b"\n") and line:
            line = stream.readline(MAX_LINE_BYTES)
        yield number, None


class _Recoded:
    """Lines of a stream in UTF-8."""

    def __init__(self, stream: BinaryIO) -> None:
        self._text = io.TextIOWrapper(stream, "utf-16", newline="\n")

    def readline(self, size: int) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogatepass")


class _EndedByReturns:
    """Lines that end with a carriage return alone, as spreadsheets save "CSV (Macintosh)"."""

    def __init__(self, stream: BinaryIO) -> None:
        self._text = io.TextIOWrapper(stream, "latin-1", newline="\r")  # which changes no byte

    def readline(self, size: int) -> bytes:
        line = self._text.readline(size).encode("latin-1")
        return line[:-1] + b"\n" if line.endswith(b"\r") else line


def _in_utf8(stream: BinaryIO) -> Any:
    start = stream.peek(_MAX_PEEK) if hasattr(stream, "peek") else b""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _Recoded(stream)
    return _EndedByReturns(stream) if b"\r" in start[:-1] and b"\n" not in start else stream


def parsed_lines(file: Path, parse: Callable[[str, str], Parsed | None]) -> Iterator[Parsed | SourceFault]:
    """Parses a file, compressed or not, line by line.

    Args:
        file: The file.
        parse: Given a line without its end and where it stands; returns `None` for a line that is to be passed over,
            and raises `InvalidInputError` for a bad one.

    Yields:
        What `parse` returned, and a fault for each line that it refused, that is too long or that is not UTF-8.

    Raises:
        InvalidInputError: If the file is a damaged or cut archive.
    """
    with open_bytes(file) as stream:
        for number, line in byte_lines(stream):
            where = f"{file.name} line {number}"
            try:
                if line is None:
                    raise InvalidInputError(
                        f"{where} has more than {MAX_LINE_BYTES:,} bytes. Expected one record per line."
                    )
                parsed = parse(line.decode("utf-8").lstrip("\ufeff").rstrip("\r\n"), where)
            except InvalidInputError as error:
                yield SourceFault(where, error)
            except UnicodeDecodeError as error:
                yield SourceFault(where, InvalidInputError(f"{where} is not UTF-8 ({error}). Save the file as UTF-8."))
            else:
                if parsed is not None:
                    yield parsed
