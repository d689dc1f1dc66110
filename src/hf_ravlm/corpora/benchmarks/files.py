"""Files of benchmarks: parts of one data set beside each other, huge JSON objects as streams, images by their ids."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ...retrieval.sources.checked_rows import SourceFault
from ...retrieval.sources.tables import table_records
from ...retrieval.sources.text_files import existing_file, open_bytes, plain_suffix


Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

IMAGE_ENDINGS = (".jpg", ".JPEG", ".jpeg", ".png", ".JPG", ".webp")
_PIECE = 1 << 20
_LARGEST_ENTRY = 200_000_000
_DECODER = json.JSONDecoder()


def named_files(files: Files) -> list[Path]:
    """The files that were named; of a folder, all in it.

    Raises:
        InvalidInputError: If there is none, or one is missing.
    """
    given = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    found: list[Path] = []
    for path in map(Path, given):
        found += sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [existing_file(path)]
    if not found:
        raise InvalidInputError(f"There is no file of the benchmark in {files!r}. Name its files, or their folder.")
    return found


def records_of(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON file with a list, of JSON lines, of a CSV or a Parquet file.

    Raises:
        InvalidInputError: If the file is damaged or of another kind.
    """
    if plain_suffix(file) == ".json":
        rows = json_value(file)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidInputError(f"{file}: expected a list of objects.")
        return rows
    found = []
    for record in table_records(file):
        if isinstance(record, SourceFault):
            raise record.error
        found.append(dict(record.values))
    return found


def json_value(file: Path) -> Any:
    """What a JSON file holds; `InvalidInputError` if it is none."""
    with open_bytes(file) as stream:
        data = stream.read()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file} is not JSON ({error}). Download it again.") from error


def json_entries(file: Path) -> Iterator[tuple[str, Any]]:
    """The keys and values of the object in a JSON file of any size, one by one.

    Raises:
        InvalidInputError: If it is no object, or damaged.
    """
    with open_bytes(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        try:
            yield from _entries(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{file} is no sound JSON object ({error}). Download it again.") from error
        finally:
            text.detach()


def _entries(text: io.TextIOWrapper) -> Iterator[tuple[str, Any]]:
    rest = _after(text.read(_PIECE), text, "{")
    while not rest.startswith("}"):
        key, rest = _value(rest, text)
        if not isinstance(key, str):
            raise ValueError("a key is no string")
        value, rest = _value(_after(rest, text, ":"), text)
        yield key, value
        if not rest.startswith("}"):
            rest = _after(rest, text, ",")


def _after(rest: str, text: io.TextIOWrapper, mark: str) -> str:
    rest = _filled(rest, text)
    if not rest.startswith(mark):
        raise ValueError(f"expected {mark!r}, found {rest[:20]!r}")
    return _filled(rest[1:], text)


def _filled(rest: str, text: io.TextIOWrapper) -> str:
    rest = rest.lstrip()
    while not rest:
        piece = text.read(_PIECE)
        if not piece:
            raise ValueError("the file ends early")
        rest = piece.lstrip()
    return rest


def _value(rest: str, text: io.TextIOWrapper) -> tuple[Any, str]:
    """The value that a text begins with, and what follows; twice as much is read until it is whole."""
    size = _PIECE
    while True:
        try:
            value, end = _DECODER.raw_decode(rest)
            if end < len(rest):
                return value, _filled(rest[end:], text)
        except ValueError:
            if len(rest) > _LARGEST_ENTRY:
                raise
        piece = text.read(size)
        if not piece:
            raise ValueError("the file ends early")
        rest, size = rest + piece, size * 2


class ImageFolder:
    """The images of a benchmark, found by their ids; without a folder there are none.

    Args:
        folder: Where they lie, in whatever sub-folders.

    Raises:
        InvalidInputError: If there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise InvalidInputError(f"images={str(folder)!r}: there is no such folder. Check the path.")

    def find(self, *names: str) -> str | None:
        """The path of the first name that is there, as a path in the folder, or as a name or stem anywhere below it.

        Where there is none, the first name in the folder: whoever opens it says that it is missing.
        """
        if self.folder is None:
            return None
        for name in names:
            for ending in ("", *IMAGE_ENDINGS):
                if (path := self.folder / f"{name}{ending}").is_file():
                    return str(path)
        for name in names:
            base = name.rsplit("/", 1)[-1]
            if found := self._by_name.get(base) or self._by_name.get(base.rsplit(".", 1)[0]):
                return str(self.folder / found)
        return str(self.folder / names[0])

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Every file below the folder by its name and by its stem; walked once, when a direct look fails."""
        found: dict[str, str] = {}
        assert self.folder is not None
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.relpath(os.path.join(parent, name), self.folder)
                found.setdefault(name, path)
                if name.endswith(IMAGE_ENDINGS):
                    found.setdefault(name.rsplit(".", 1)[0], path)
        return found
