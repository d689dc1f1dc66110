"""The passages of a PDF file: pieces of its text with page and box, its pages as images, its figures.

Passages are called after the place where they stand: `manual.pdf#page=12` is a page, `manual.pdf#page=12-0` its first
piece of text. The page is the `document` of each, as of all chunks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

from PIL import Image

from ....errors import InvalidInputError
from ..checked_rows import SourceFault, SourceItem, SourceNote, SourceRow
from ..chunking import Chunking
from .document import FIGURE_PIXELS, Box, Line, PageError, PdfFile, open_pdf
from .layout import Section, captions_of, chunks_of, sections_of, without_running_heads


Pages = Literal["both", "text", "image"]

DEFAULT_CHUNKING = Chunking(max_length=1000, with_heading=True)
_JPEG_QUALITY = 85


def check_pages(pages: str) -> None:
    """Raises `InvalidInputError` if `pages` is not known."""
    if pages not in get_args(Pages):
        raise InvalidInputError(f'pages={pages!r} is not known. Choose "both", "text" or "image".')


def rows_from_pdf(
    file: Path, name: str, pages: Pages = "both", chunking: Chunking | None = None
) -> Iterator[SourceItem]:
    """Reads one file.

    Args:
        file: The file.
        name: What its passages are called after, with `/` between folders.
        pages: `"text"` for pieces of text, `"image"` for pages and figures, `"both"` for all.
        chunking: `None` for pieces of a thousand characters that begin with their headings.

    Yields:
        Rows; a fault for the file, or for each page that cannot be read; a note for blank pages.
    """
    check_pages(pages)
    try:
        with open_pdf(file, name) as pdf:
            yield from _rows(pdf, name, pages, chunking or DEFAULT_CHUNKING)
    except InvalidInputError as error:
        yield SourceFault(name, error)


def _rows(pdf: PdfFile, name: str, pages: Pages, chunking: Chunking) -> Iterator[SourceItem]:
    read: list[list[Line]] = []
    faults: dict[int, PageError] = {}
    for number in range(len(pdf)):
        try:
            read.append(pdf.lines(number))
        except PageError as error:
            faults[number] = error
            read.append([])
    title = pdf.title() or PurePosixPath(name).stem
    sections = sections_of(without_running_heads(read), pdf.bookmarks())
    silent, blank = [], []
    for number in range(len(pdf)):
        place = _Place(name, title, number, pdf.label(number))
        if number in faults:
            yield SourceFault(place.where, faults[number], place.page_id)
            continue
        texts = [] if pages == "image" else list(_text_rows(place, sections[number], chunking))
        yield from texts
        try:
            if pages == "text":
                silent += [] if texts else [number + 1]
            elif not read[number] and pdf.is_blank(number):
                blank.append(number + 1)
            else:
                yield from list(_image_rows(pdf, place, read[number], sections[number]))
        except PageError as error:
            yield SourceFault(place.where, error, place.page_id)
    for which, what in ((silent, 'have no words (pages="both" takes them as images)'), (blank, "are blank")):
        if which:
            yield SourceNote(f"{name} page {which[0]}", f"{name}: {len(which)} pages {what}, the first is {which[0]}.")


class _Place(NamedTuple):
    """A page, for the rows that are made of it."""

    name: str
    title: str
    number: int
    label: str | None

    @property
    def where(self) -> str:
        return f"{self.name} page {self.number + 1}"

    @property
    def page_id(self) -> str:
        return f"{self.name}#page={self.number + 1}"

    def row(self, row_id: str, text: str, image: bytes | None, section: str, **more: Any) -> SourceRow:
        url = f"{quote(self.name)}#page={self.number + 1}"
        values = {"id": row_id, "text": text, "image": image, "title": self.title, "source": self.name, "url": url}
        metadata = {"page": self.number + 1, "page_label": self.label, "section": section or None, **more}
        kept = {key: value for key, value in metadata.items() if value is not None}
        return SourceRow(self.where, values, kept, is_cut=True)


def _text_rows(place: _Place, sections: Sequence[Section], chunking: Chunking) -> Iterator[SourceRow]:
    for number, chunk in enumerate(chunks_of(sections, place.title, chunking)):
        more = {"kind": "text", "document": place.page_id, "chunk": number, "box": _rounded(chunk.box)}
        yield place.row(f"{place.page_id}-{number}", chunk.text, None, " > ".join(chunk.path), **more)


def _image_rows(
    pdf: PdfFile, place: _Place, lines: Sequence[Line], sections: Sequence[Section]
) -> Iterator[SourceRow]:
    """The page, whose text is its title and headings, and the figures that have a caption."""
    section = " > ".join(sections[0].path) if sections else ""
    said = [f"{place.title}, page {place.number + 1}", *(part.path[-1] for part in sections if part.heading)]
    yield place.row(place.page_id, "\n".join(said), _jpeg(pdf.image(place.number)), section, kind="page")
    for number, (box, caption) in enumerate(captions_of(lines, pdf.pictures(place.number))):
        image = _jpeg(pdf.image(place.number, box, FIGURE_PIXELS))
        more = {"kind": "figure", "document": place.page_id, "box": _rounded(box)}
        yield place.row(f"{place.page_id}-figure-{number}", caption, image, section, **more)


def _rounded(box: Box) -> list[float]:
    return [round(side, 4) for side in box]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
