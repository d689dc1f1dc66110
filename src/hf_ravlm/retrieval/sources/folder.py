"""Folders of files: images with the texts beside them, texts alone, PDF files, and tables that describe them.

No name and no link found in a folder leads out of it, except into folders that the user allows. What is left out is
counted and named.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError, UnsafeInputError
from ...images import IMAGE_SUFFIXES
from ...saving.safe_paths import at_home
from ...text import clean_text, plain_text, without_controls
from .checked_rows import SourceFault, SourceItem, SourceNote, SourceRow
from .chunking import Chunking
from .columns import Record, find_column
from .image_files import ImageRoot, image_file, image_roots
from .in_memory import row_from_dict
from .pdf.document import require_pdfium
from .pdf.rows import Pages, check_pages, rows_from_pdf
from .tables import TABLE_SUFFIXES, table_records


_TEXT_SUFFIXES = {".txt", ".md"}
PDF_SUFFIX = ".pdf"
_SIDECAR_SUFFIXES = (".txt", ".md", ".caption", ".json")
_METADATA_NAMES = {f"metadata{suffix}" for suffix in TABLE_SUFFIXES}
_FILE_NAMES = ("filename", "file", "image_file_name", "image_path", "image")
_OF_A_PAGE = ("id", "text", "image", "url")
_MAX_TEXT_FILE_BYTES = 64_000_000


def rows_from_folder(
    folder: str | os.PathLike[str],
    image_root: ImageRoot = None,
    pages: Pages = "both",
    chunking: Chunking | None = None,
) -> Iterator[SourceItem]:
    """Reads images with the texts beside them, texts alone, PDF files, and the rows of metadata files.

    Files are opened one by one; what is held is the list of names, and the rows that describe them. `pages` and
    `chunking` are for PDF files, see `rows_from_pdf`.

    Raises:
        InvalidInputError: If there is no such folder, or `pages` is not known.
    """
    root = Path(at_home(folder))
    if not root.is_dir():
        reason = "this is a file, and a folder was expected" if root.exists() else "there is no such folder"
        raise InvalidInputError(f"{root}: {reason}. Check the path.")
    check_pages(pages)
    roots = image_roots(image_root)
    names, notes = visible_files(root)
    described: dict[str, SourceRow] = {}
    for item in _metadata_items(root, names, roots):
        if isinstance(item, SourceFault):
            yield item
            continue
        name, row = item
        try:
            described[name] = _together(described[name], row) if name in described else row
        except InvalidInputError as error:
            yield SourceFault(row.where, error, _stem(name))
    by_stem = defaultdict(list)
    for name in names:
        by_stem[_plain_name(_stem(name))].append(name)
    left_out = defaultdict(list)
    reads_pdf = _has_pdfium(names)
    for name in names:
        of_stem = by_stem[_plain_name(_stem(name))]
        has_image = any(_suffix(other) in IMAGE_SUFFIXES for other in of_stem)
        is_image = _suffix(name) in IMAGE_SUFFIXES
        if is_image or (_suffix(name) in _TEXT_SUFFIXES and not has_image):
            sidecars = [other for other in of_stem if _suffix(other) in _SIDECAR_SUFFIXES] if is_image else [name]
            try:
                yield _file_row(root, roots, name, is_image, sidecars, described.get(name))
            except (InvalidInputError, UnsafeInputError) as error:
                yield SourceFault(name, error, _stem(name))
        elif _suffix(name) == PDF_SUFFIX and reads_pdf:
            yield from _pdf_rows(root, roots, name, pages, chunking, described.get(name))
        elif not (has_image and _suffix(name) in _SIDECAR_SUFFIXES) and not _is_metadata(name):
            left_out[_suffix(name)].append(name)
    yield from notes
    for suffix, files in left_out.items():
        kind = f"of the kind {suffix}" if suffix else "without a suffix"
        why = "neither images nor texts beside one."
        if suffix == PDF_SUFFIX:
            why = 'they are read with pypdfium2: pip install "hf_ravlm[pdf]".'
        elif suffix in (".svg", ".svgz"):
            why = "drawings in text, which are not drawn here. Export them as PNG."
        yield SourceNote(files[0], f"{len(files)} files {kind} were left out, the first {files[0]!r}: {why}")


def _has_pdfium(names: Mapping[str, None]) -> bool:
    """Whether PDF files can be read, if there are any."""
    try:
        return any(_suffix(name) == PDF_SUFFIX for name in names) and bool(require_pdfium())
    except InvalidInputError:
        return False


def _pdf_rows(
    root: Path, roots: Sequence[Path], name: str, pages: Pages, chunking: Chunking | None, given: SourceRow | None
) -> Iterator[SourceItem]:
    """The rows of a PDF file; what a metadata file says of it (licence, title, ...) holds for each of them."""
    try:
        file = image_file(root, name, roots)
    except UnsafeInputError as error:
        yield SourceFault(name, error)
        return
    for row in rows_from_pdf(file, name, pages, chunking):
        if isinstance(row, SourceRow) and given is not None:
            said = {key: value for key, value in given.values.items() if value is not None and key not in _OF_A_PAGE}
            row = row._replace(values={**row.values, **said}, metadata={**given.metadata, **row.metadata})
        yield row


def _file_row(
    root: Path, roots: Sequence[Path], name: str, is_image: bool, sidecars: Sequence[str], given: SourceRow | None
) -> SourceRow:
    row = SourceRow(name, {"id": _stem(name), "source": name}, {})
    for file in sorted(sidecars, key=lambda file: _SIDECAR_SUFFIXES.index(_suffix(file))):
        text = _read_text(image_file(root, file, roots))
        row = _together(
            row, _json_row(file, text) if _suffix(file) == ".json" else SourceRow(file, {"text": text}, {})
        )
    if given is not None:
        own = {column: value for column, value in row.values.items() if given.values.get(column) is None}
        row = _together(row._replace(values={**own, "text": row.values.get("text")}), given)
    image: Any = None
    if is_image:
        try:
            image = image_file(root, name, roots)
        except UnsafeInputError as error:
            image = error
    return row._replace(where=name, values={**row.values, "image": image})


def _together(first: SourceRow, second: SourceRow) -> SourceRow:
    """What two sources say of one file: texts are joined, other values must agree, metadata becomes a list.

    Raises:
        InvalidInputError: If they give it two titles, ids or the like.
    """
    values = {column: value for column, value in first.values.items() if value is not None}
    for column, value in second.values.items():
        if value is None or values.get(column) == value:
            continue
        if column == "text" and column in values:
            lines = [*str(values["text"]).split("\n"), *str(value).split("\n")]
            value = "\n".join(dict.fromkeys(line for line in lines if clean_text(line)))
        elif column in values:
            raise InvalidInputError(
                f"{second.where} gives {column}={value!r} to a file that has {column}={values[column]!r}. Keep one."
            )
        values[column] = value
    metadata = dict(first.metadata)
    for key, value in second.metadata.items():
        earlier = metadata.get(key, value)
        metadata[key] = value if earlier == value else [*(earlier if isinstance(earlier, list) else [earlier]), value]
    return SourceRow(first.where, values, metadata)


def visible_files(root: Path) -> tuple[dict[str, None], list[SourceNote]]:
    """All file names under a folder in a fixed order, as paths from it with `/`, and notes on what is left out."""
    names, notes, hidden = [], [], []
    for parent, folders, files in os.walk(root):
        beside = Path(parent).relative_to(root)
        for name in [*folders, *files]:
            path = (beside / name).as_posix()
            if name.startswith("."):
                hidden.append(path)
            elif name in folders and os.path.islink(Path(parent) / name):
                notes.append(SourceNote(path, f"{path!r} is a link to a folder, which is not followed."))
            elif name in files:
                names.append(path)
        folders[:] = [name for name in folders if not name.startswith(".")]
    if hidden:
        reason = f"{len(hidden)} hidden files or folders were left out, the first {min(hidden)!r}."
        notes.append(SourceNote(min(hidden), reason))
    return dict.fromkeys(sorted(names)), notes


def _metadata_items(
    root: Path, names: Mapping[str, None], roots: Sequence[Path]
) -> Iterator[tuple[str, SourceRow] | SourceFault]:
    """The rows of all metadata files, each with the name of the file that it describes."""
    spelled = {_plain_name(name): name for name in names}
    for metadata_name in filter(_is_metadata, names):
        try:
            file = image_file(root, metadata_name, roots)
            records = table_records(file)
        except (InvalidInputError, UnsafeInputError) as error:
            yield SourceFault(metadata_name, error)
            continue
        folder = metadata_name.rpartition("/")[0]
        for record in records:
            where = f"{metadata_name}: {record.where}"
            if isinstance(record, SourceFault):
                yield record._replace(where=where)
                continue
            try:
                yield _described_file(root / folder, folder, spelled, where, record)
            except (InvalidInputError, UnsafeInputError) as error:
                yield SourceFault(where, error)


def _described_file(
    folder: Path, prefix: str, spelled: Mapping[str, str], where: str, record: Record
) -> tuple[str, SourceRow]:
    column = find_column("file_name", list(record.values), _FILE_NAMES)
    file_name = record.values.get(column) if column else None
    if isinstance(file_name, Mapping):
        file_name = file_name.get("path")
    if not isinstance(file_name, str):
        raise InvalidInputError(f"{where} has no `file_name`; its columns are {list(record.values)}. Add it.")
    try:
        image_file(folder, file_name)
    except UnsafeInputError as error:
        raise UnsafeInputError(f"{where}: {error}") from None
    path = Path(prefix, file_name.replace("\\", "/"))
    name = spelled.get(_plain_name(path.as_posix()))
    if name is None or _suffix(name) not in IMAGE_SUFFIXES | _TEXT_SUFFIXES | {PDF_SUFFIX}:
        raise InvalidInputError(f"{where} names {file_name!r}, and no such image or text is there.")
    rest = {key: value for key, value in record.values.items() if key != column and value is not None}
    return name, row_from_dict(where, {**rest, "image": None})


def _json_row(name: str, text: str) -> SourceRow:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{name} is a {type(values).__name__}. Expected an object, such as {{'text': ...}}.")
    return row_from_dict(name, {**values, "image": None})


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_TEXT_FILE_BYTES:
            raise InvalidInputError(f"{file}: the text has more than {_MAX_TEXT_FILE_BYTES:,} bytes. Cut the file.")
        with open(file, "rb") as opened:
            is_wide = opened.read(2) in (b"\xff\xfe", b"\xfe\xff")
        return file.read_text(encoding="utf-16" if is_wide else "utf-8-sig").strip()
    except (OSError, UnicodeError) as error:
        raise InvalidInputError(f"{file}: the text cannot be read ({error}). Save it as UTF-8.") from error


def _is_metadata(name: str) -> bool:
    return name.rsplit("/", 1)[-1].lower() in _METADATA_NAMES


def _is_text(name: str) -> bool:
    """Whether a name can be written at all; bytes that are no UTF-8 become halves of character pairs."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _plain_name(name: str) -> str:
    return plain_text(name) if _is_text(name) and without_controls(name) == name else name


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _stem(name: str) -> str:
    return name[: len(name) - len(Path(name).suffix)]
