"""Folders of files: images with the texts beside them, texts alone, and tables that describe them.

No name and no link found in a folder leads out of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError, UnsafeInputError
from ...saving.safe_paths import resolve_inside
from .checked_rows import SourceFault, SourceItem, SourceRow
from .columns import Record
from .in_memory import row_from_dict
from .tables import csv_records, jsonl_records


_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TEXT_SUFFIXES = {".txt", ".md"}
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_MAX_TEXT_FILE_BYTES = 64_000_000


def rows_from_folder(folder: str | os.PathLike[str]) -> Iterator[SourceItem]:
    """Reads images with the texts beside them, texts alone, and the rows of `metadata.jsonl` or `metadata.csv`.

    Images and texts are opened one by one; what is held is the list of names, and the rows that describe them.

    Raises:
        InvalidInputError: If there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInputError(f"{root}: there is no such folder. Check the path.")
    names = _visible_files(root)
    described: dict[str, SourceRow] = {}
    for item in _metadata_items(root, names):
        if isinstance(item, SourceFault):
            yield item
        else:
            described[item[0]] = item[1]
    stems = {_stem(name) for name in names if _suffix(name) in _IMAGE_SUFFIXES}
    for name in names:
        is_image = _suffix(name) in _IMAGE_SUFFIXES
        is_text = _suffix(name) in _TEXT_SUFFIXES and _stem(name) not in stems
        if is_image or is_text:
            text_file = f"{_stem(name)}.txt" if is_image else name
            try:
                yield _file_row(root, name, is_image, text_file if text_file in names else None, described.get(name))
            except (InvalidInputError, UnsafeInputError) as error:
                yield SourceFault(name, error, _stem(name))


def _file_row(root: Path, name: str, is_image: bool, text_file: str | None, given: SourceRow | None) -> SourceRow:
    values: dict[str, Any] = {"id": _stem(name), "source": name}
    if is_image:
        values["image"] = resolve_inside(root, name)
    if text_file is not None:
        values["text"] = _read_text(resolve_inside(root, text_file))
    if given is None:
        return SourceRow(name, values, {})
    values.update((column, value) for column, value in given.values.items() if value is not None)
    return SourceRow(name, values, given.metadata)


def _visible_files(root: Path) -> dict[str, None]:
    """All file names under a folder in a fixed order, as paths from it with `/`; a dictionary for fast look-up."""
    names = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(parent) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return dict.fromkeys(sorted(names))


def _metadata_items(root: Path, names: Mapping[str, None]) -> Iterator[tuple[str, SourceRow] | SourceFault]:
    """The rows of all metadata files, each with the name of the file that it describes."""
    for metadata_name in (name for name in names if name.rsplit("/", 1)[-1] in _METADATA_NAMES):
        try:
            file = resolve_inside(root, metadata_name)
        except UnsafeInputError as error:
            yield SourceFault(metadata_name, error)
            continue
        records = jsonl_records(file) if file.suffix == ".jsonl" else csv_records(file)
        for record in records:
            where = f"{metadata_name}: {record.where}"
            if isinstance(record, SourceFault):
                yield record._replace(where=where)
                continue
            try:
                yield _described_file(root, file.parent, names, where, record)
            except (InvalidInputError, UnsafeInputError) as error:
                yield SourceFault(where, error)


def _described_file(
    root: Path, folder: Path, names: Mapping[str, None], where: str, record: Record
) -> tuple[str, SourceRow]:
    file_name = record.values.get("file_name")
    if not isinstance(file_name, str):
        raise InvalidInputError(f"{where} has no `file_name`; its columns are {list(record.values)}. Add it.")
    name = resolve_inside(folder, file_name).relative_to(root).as_posix()
    if name not in names or _suffix(name) not in _IMAGE_SUFFIXES | _TEXT_SUFFIXES:
        raise InvalidInputError(f"{where} names {file_name!r}, and no such image or text is there.")
    rest = {key: value for key, value in record.values.items() if key != "file_name" and value is not None}
    return name, row_from_dict(where, {**rest, "image": None})


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_TEXT_FILE_BYTES:
            raise InvalidInputError(f"{file}: the text has more than {_MAX_TEXT_FILE_BYTES:,} bytes. Cut the file.")
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file}: the text cannot be read ({error}). Save it as UTF-8.") from error


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _stem(name: str) -> str:
    return name[: len(name) - len(Path(name).suffix)]
