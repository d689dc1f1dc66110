"""PDF files as a user names them: one, several, or those of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InvalidInputError, UnsafeInputError
from .checked_rows import SourceFault, SourceItem
from .chunking import Chunking
from .folder import PDF_SUFFIX, visible_files
from .image_files import image_file
from .pdf.document import require_pdfium
from .pdf.rows import Pages, check_pages, rows_from_pdf
from .text_files import existing_file


Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def rows_from_pdf_files(files: Files, pages: Pages = "both", chunking: Chunking | None = None) -> Iterator[SourceItem]:
    """Reads a file, several, or all PDF files under a folder; arguments as of `rows_from_pdf`.

    Raises:
        InvalidInputError: If a file or folder is missing, a folder holds no PDF file, `pages` is not known, or
            pypdfium2 is not installed.
    """
    require_pdfium()
    check_pages(pages)
    given = [Path(files)] if isinstance(files, (str, os.PathLike)) else [Path(file) for file in files]
    if len(given) == 1 and given[0].is_dir():
        yield from _rows_of_folder(given[0], pages, chunking)
        return
    if not given:
        raise InvalidInputError("There is no PDF file. Name one, several, or a folder.")
    paths = [existing_file(path) for path in given]
    above = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    for path in paths:
        yield from rows_from_pdf(path, path.absolute().relative_to(above).as_posix(), pages, chunking)


def _rows_of_folder(folder: Path, pages: Pages, chunking: Chunking | None) -> Iterator[SourceItem]:
    names, _ = visible_files(folder)
    found = [name for name in names if name.lower().endswith(PDF_SUFFIX)]
    if not found:
        raise InvalidInputError(f"{folder}: there is no PDF file in this folder. Check the path.")
    for name in found:
        try:
            yield from rows_from_pdf(image_file(folder, name), name, pages, chunking)
        except UnsafeInputError as error:
            yield SourceFault(name, error)
