"""Files that a visitor uploads become a knowledge base: images, texts, a table, or a ZIP archive of these.

Names are checked before anything is written, an archive is unpacked within limits and without its links, and what
cannot be read is left out and named.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InvalidInputError, UnsafeInputError
from ..retrieval import Chunking, KnowledgeBase
from ..retrieval.sources.tables import csv_columns, jsonl_records
from ..saving.safe_paths import safe_relpath


MAX_BYTES = 200_000_000  # of all files together, unpacked
MAX_FILES = 5_000
MAX_PASSAGES = 5_000  # each is read by the encoder while somebody waits
NOT_UPLOADED = "This file is none of this page's uploads. Upload it again."  # the same whether there is one or not
TABLES = (".jsonl", ".csv")
READABLE = (*TABLES, ".txt", ".md", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CHUNKING = Chunking(max_length=1_000)
_DESCRIBING = ("metadata.jsonl", "metadata.csv")


def is_uploaded(path: Any) -> bool:
    """Whether a path that a visitor names lies in the folder of uploads, links followed; there it may be missing."""
    from gradio.utils import get_upload_folder

    try:
        return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, RuntimeError, TypeError, ValueError):  # a loop of links, no path at all, a NUL character
        return False


def own_uploads(paths: Sequence[Any]) -> list[str]:
    """The paths, if each is an upload.

    Raises:
        UnsafeInputError: If one is none; it does not tell whether the file exists.
    """
    if not all(is_uploaded(path) and os.path.isfile(path) for path in paths):
        raise UnsafeInputError(NOT_UPLOADED)
    return [str(path) for path in paths]


def read_upload(
    files: Sequence[str | Path], max_bytes: int = MAX_BYTES, max_passages: int = MAX_PASSAGES
) -> KnowledgeBase:
    """Reads uploaded files into a knowledge base; nothing stays on the disk.

    One table (`.jsonl` or `.csv`, with columns such as `id`, `text`, `image`, `licence`) makes a passage of every
    row, its images being the files beside it. Without a table, or with a `metadata.jsonl` or `metadata.csv` that
    describes files by `file_name`, every image makes a passage, with the text in the `.txt` file of the same name,
    and so does every other text. Long texts are cut into chunks of a thousand characters.

    Args:
        files: One ZIP archive, or the files themselves.
        max_bytes: Of all files together, unpacked.
        max_passages: How many there may be.

    Returns:
        The passages; `skipped` tells what was left out.

    Raises:
        InvalidInputError: If there is nothing to read, too much of it, or a damaged archive.
        UnsafeInputError: If a name leads out of its folder.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise InvalidInputError("There is no file. Choose a ZIP archive, images with texts, or a table.")
    with tempfile.TemporaryDirectory(prefix="hf_ravlm_upload_") as name:
        folder = Path(name)
        archives = [path for path in paths if path.suffix.lower() == ".zip"]
        if archives and len(paths) > 1:
            raise InvalidInputError(f"{archives[0].name} came with other files. Upload one archive, or files alone.")
        if archives:
            unpack(archives[0], folder, max_bytes)
        else:
            _copy(paths, folder, max_bytes)
        try:
            knowledge_base = _read_folder(folder)
        except (InvalidInputError, UnsafeInputError) as error:
            message = str(error).removesuffix(' (on_error="skip" leaves such items out.)')
            raise type(error)(message.replace(f"{folder}{os.sep}", "")) from error
    if len(knowledge_base) > max_passages:
        raise InvalidInputError(
            f"There are {len(knowledge_base):,} passages, and this page takes {max_passages:,}. Build larger "
            "knowledge bases with `hf-ravlm index build`, and open the page with --knowledge."
        )
    return knowledge_base


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpacks images, texts and tables of a ZIP archive; links and other files stay in it.

    Args:
        archive, folder: From where to where.
        max_bytes, max_files: Of all files together, as they come out, whatever the archive says of their sizes.

    Raises:
        InvalidInputError: If it is no archive, damaged, encrypted, or holds too much or nothing to read.
        UnsafeInputError: If a name leads out of the folder, or comes twice.
    """
    written = count = 0
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > max_files:
                raise InvalidInputError(
                    f"{archive.name} holds {len(entries):,} files; at most {max_files:,} are taken."
                )
            for entry in entries:
                name = safe_relpath(entry.filename)
                is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
                if is_link or not _is_readable(name):
                    continue
                if entry.flag_bits & 1:
                    raise InvalidInputError(f"{archive.name}: {name} is encrypted. Upload files without a password.")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, target.open("xb") as sink:
                    written += _copy_bytes(source, sink, max_bytes - written, archive.name)
                count += 1
    except FileExistsError as error:
        raise UnsafeInputError(f"{archive.name} holds two files of one name. Name them apart.") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error) as error:
        raise InvalidInputError(f"{archive.name}: the archive cannot be read ({error}). Pack it again.") from error
    if not count:
        raise InvalidInputError(
            f"{archive.name} holds nothing that can be read. Expected images, .txt files, a .jsonl or a .csv."
        )


def _copy(paths: Sequence[Path], folder: Path, max_bytes: int) -> None:
    if len(paths) > MAX_FILES:
        raise InvalidInputError(f"There are {len(paths):,} files; at most {MAX_FILES:,} are taken.")
    if wrong := [path.name for path in paths if not _is_readable(path.name)]:
        raise InvalidInputError(
            f"{wrong[0]} is of a kind that is not read here. Expected {', '.join(READABLE)}, .zip."
        )
    written = 0
    for path in paths:
        target = folder / safe_relpath(path.name)
        if target.exists():
            raise InvalidInputError(f"There are two files of the name {path.name}. Name them apart.")
        with path.open("rb") as source, target.open("xb") as sink:
            written += _copy_bytes(source, sink, max_bytes - written, path.name)


def _copy_bytes(source: Any, sink: Any, left: int, label: str) -> int:
    """Copies a file and returns its length, which may be at most `left`."""
    taken = 0
    while piece := source.read(min(1 << 20, left - taken + 1)):
        taken += len(piece)
        if taken > left:
            raise InvalidInputError(f"{label}: there is too much in it for this page. Upload less at once.")
        sink.write(piece)
    return taken


def _read_folder(folder: Path) -> KnowledgeBase:
    files = sorted(folder.rglob("*"))
    tables = [path for path in files if path.suffix.lower() in TABLES and path.name not in _DESCRIBING]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables[:3])
        raise InvalidInputError(f"There are {len(tables)} tables ({names}). Upload one, with all rows.")
    try:
        knowledge_base = _read(folder, tables, on_error="skip")
    except InvalidInputError:
        _read(folder, tables, on_error="raise")  # which says what is wrong with the first item
        raise
    if knowledge_base.text_lengths() and max(knowledge_base.text_lengths()) > _CHUNKING.max_length:
        knowledge_base = _read(folder, tables, on_error="skip", chunking=_CHUNKING)
    named = [item._replace(reason=item.reason.replace(f"{folder}{os.sep}", "")) for item in knowledge_base.skipped]
    return KnowledgeBase(knowledge_base.table, named)


def _read(folder: Path, tables: list[Path], **settings: Any) -> KnowledgeBase:
    if not tables:
        return KnowledgeBase.from_folder(folder, **settings)
    is_csv = tables[0].suffix.lower() == ".csv"
    first = None if is_csv else next(jsonl_records(tables[0]), None)
    known = csv_columns(tables[0]) if is_csv else list(getattr(first, "values", ["id"]))
    if "id" not in known:
        settings["id_column"] = None  # rows are numbered
    return (KnowledgeBase.from_csv if is_csv else KnowledgeBase.from_jsonl)(tables[0], **settings)


def _is_readable(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in READABLE
