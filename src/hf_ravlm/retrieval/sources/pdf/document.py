"""A PDF file as PDFium opens it: lines of text with their places, drawn pages, figures; all within limits.

PDFium is no library for many threads: everything that calls it holds one lock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from PIL import Image

from ....errors import InvalidInputError
from ....images import MAX_PIXELS
from ..text_files import existing_file


MAX_FILE_BYTES = 1_000_000_000
MAX_PAGES = 20_000
MAX_CHARACTERS = 200_000  # of a page; a page of a telephone book has 20,000
MAX_OBJECTS = 20_000  # of a page in which figures are looked for; maps have more, and no figures
MAX_OUTLINE = 20_000
PAGE_PIXELS, FIGURE_PIXELS = 1_000_000, 500_000
SECONDS_PER_PAGE = 20.0  # of drawing; the slowest pages of maps take two

Box = tuple[float, float, float, float]

_GRID = 1_000_000  # places on a page are whole numbers of this many parts
_PASSWORD = 4  # what PDFium calls its error
_BOLD = re.compile("bold|black|heavy|semibold|demi|CMBX|-Bd", re.IGNORECASE)
_NO_TITLE = re.compile(r"\.(docx?|dvi|tex|indd|qxd|pptx?|rtf)$|^(untitled|microsoft word|unknown)\b", re.IGNORECASE)
_LOCK = RLock()


class Line(NamedTuple):
    """A line of text on a page.

    Args:
        text (`str`): Its words; a word that goes on in the next line ends in `SOFT_HYPHEN`.
        box (`tuple`): Left, top, right and bottom, from the page's upper left corner, as shares of its size.
        size (`float`): The height of its letters, in points.
        is_bold (`bool`): By the name of its font.
    """

    text: str
    box: Box
    size: float = 10.0
    is_bold: bool = False


SOFT_HYPHEN = "\x02"  # which PDFium puts at the end of a line


class Bookmark(NamedTuple):
    """An entry of the outline: its depth from 0, its words, the page that it leads to, from 0."""

    level: int
    title: str
    page: int


class PageError(InvalidInputError):
    """A page that cannot be used; others of the file may be sound."""


class PdfFile:
    """An open file; made by `open_pdf`."""

    def __init__(self, opened: Any, name: str) -> None:
        self._opened, self._name = opened, name

    def __len__(self) -> int:
        return len(self._opened)

    def title(self) -> str | None:
        """The title that the file states, if it is one."""
        title = ""
        with _LOCK, suppress(Exception):  # a broken one is none
            title = " ".join(self._opened.get_metadata_value("Title").split())
        return None if not title or _NO_TITLE.search(title) else title

    def bookmarks(self) -> list[Bookmark]:
        """The entries of the outline that lead to a page, in order, as far as they can be read."""
        found: list[Bookmark] = []
        with _LOCK, suppress(Exception):
            for entry in self._opened.get_toc():
                place = entry.get_dest()
                page = None if place is None else place.get_index()
                if page is not None and 0 <= page < len(self) and (title := " ".join(entry.get_title().split())):
                    found.append(Bookmark(entry.level, title, page))
                if len(found) == MAX_OUTLINE:
                    break
        return found

    def label(self, number: int) -> str | None:
        """What is printed as the number of a page, such as `"iv"`, where it is another one."""
        label = ""
        with _LOCK, suppress(Exception):
            label = self._opened.get_page_label(number).strip()
        return label if label and label != str(number + 1) else None

    def lines(self, number: int) -> list[Line]:
        """The lines of a page, in the order of the file.

        Raises:
            PageError: If the page is damaged, or holds more letters than any honest one.
        """
        with self._page(number) as page:
            text_page = page.get_textpage()
            count = text_page.count_chars()
            if count > MAX_CHARACTERS:
                raise PageError(
                    f"{self._where(number)} holds {count:,} letters, more than the limit of {MAX_CHARACTERS:,}."
                )
            return _lines_of(page, text_page) if count else []

    def is_blank(self, number: int) -> bool:
        """Whether nothing is drawn on a page."""
        from pypdfium2 import raw

        with self._page(number) as page:
            return not raw.FPDFPage_CountObjects(page) and not raw.FPDFPage_GetAnnotCount(page)

    def image(self, number: int, region: Box = (0.0, 0.0, 1.0, 1.0), most_pixels: int = PAGE_PIXELS) -> Image.Image:
        """A page, or a region of it, as it is printed.

        Raises:
            PageError: If it holds an image over the limits of `safe_image`, or takes too long.
        """
        with self._page(number) as page:
            width, height = page.get_size()
            if not 1 <= width * height or max(width, height) > 50 * min(width, height):
                raise PageError(f"{self._where(number)} is {width:g} x {height:g} points large, which is no page.")
            self._check_images(page, number)
            shown = (region[2] - region[0]) * (region[3] - region[1])
            scale = min((most_pixels / (width * height * shown)) ** 0.5, 8.0)
            return _drawn(
                page, scale, region, f"{self._where(number)} takes more than {SECONDS_PER_PAGE:g} s to draw."
            )

    def pictures(self, number: int) -> list[Box]:
        """Where images and embedded drawings lie on a page: those that are no ornament and do not fill it."""
        from pypdfium2 import raw

        kinds = [raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM]
        with self._page(number) as page:
            if raw.FPDFPage_CountObjects(page) > MAX_OBJECTS:
                return []
            place = _places_on(page)
            boxes = [place(*item.get_bounds()) for item in page.get_objects(kinds, max_depth=1)]
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
        return [box for box, area in zip(boxes, areas, strict=True) if 0.01 <= area <= 0.8]

    def _check_images(self, page: Any, number: int) -> None:
        """No image is unfolded that a file alone would be refused for."""
        from pypdfium2 import raw

        if raw.FPDFPage_CountObjects(page) > MAX_OBJECTS:
            return
        for item in page.get_objects([raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
            width, height = item.get_px_size()
            if width * height > 4 * MAX_PIXELS:  # scans in one bit per pixel are large, and cheap
                raise PageError(
                    f"{self._where(number)} holds an image of {width:,} x {height:,} pixels, more than the limit of "
                    f"{4 * MAX_PIXELS:,}."
                )

    @contextmanager
    def _page(self, number: int) -> Iterator[Any]:
        with _LOCK:
            page = None
            try:
                page = self._opened[number]
                yield page
            except PageError:
                raise
            except Exception as error:  # PdfiumError, and what its wrapper meets in damaged files
                raise PageError(f"{self._where(number)} cannot be read ({error}). Save the file again.") from error
            finally:
                if page is not None:
                    page.close()

    def _where(self, number: int) -> str:
        return f"{self._name} page {number + 1}"


@contextmanager
def open_pdf(file: Path, name: str) -> Iterator[PdfFile]:
    """Opens a file; `name` is what messages call it.

    Raises:
        InvalidInputError: If it is missing, encrypted, damaged or too large, or pypdfium2 is not installed.
    """
    pdfium = require_pdfium()
    size = existing_file(file).stat().st_size
    if size > MAX_FILE_BYTES:
        raise InvalidInputError(f"{name} has {size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}. Split it.")
    with _LOCK:
        try:
            opened = pdfium.PdfDocument(file)
            num_pages = len(opened)
        except pdfium.PdfiumError as error:
            if getattr(error, "err_code", None) == _PASSWORD:
                raise InvalidInputError(f"{name} is encrypted. Save a copy without its password.") from error
            raise InvalidInputError(f"{name} is no sound PDF file ({error}). Download or save it again.") from error
        except OSError as error:
            raise InvalidInputError(f"{name} cannot be read ({error.strerror or error}).") from error
    try:
        if not 0 < num_pages <= MAX_PAGES:
            raise InvalidInputError(f"{name} has {num_pages:,} pages. Expected 1 to {MAX_PAGES:,}: split or mend it.")
        yield PdfFile(opened, name)
    finally:
        with _LOCK:
            opened.close()


def require_pdfium() -> Any:
    """The module pypdfium2.

    Raises:
        InvalidInputError: Names the extra.
    """
    try:
        import pypdfium2
    except ImportError as error:
        raise InvalidInputError('PDF files are read with pypdfium2. Install: pip install "hf_ravlm[pdf]"') from error
    return pypdfium2


def _lines_of(page: Any, text_page: Any) -> list[Line]:
    from pypdfium2 import raw

    place, height = _places_on(page), page.get_height()
    lines, start = [], 0
    for text in text_page.get_text_range().split("\r\n"):
        units = len(text.encode("utf-16-le", "surrogatepass")) // 2
        first, start = start, start + units + 2
        if not text.strip():
            continue
        index = raw.FPDFText_GetCharIndexFromTextIndex(text_page, first + len(text) - len(text.lstrip()))
        rects = [text_page.get_rect(n) for n in range(text_page.count_rects(index, units))] if index >= 0 else []
        if not rects:
            continue
        boxes = [place(*rect) for rect in rects]
        loose = place(*text_page.get_charbox(index, loose=True))
        # Text that runs upward is as wide as its letters are high.
        size = min(loose[3] - loose[1], 1.0) * height
        lines.append(Line(text.strip(" \t\n"), joined_box(boxes), round(size, 1), _is_bold(raw, text_page, index)))
    return lines


def _is_bold(raw: Any, text_page: Any, index: int) -> bool:
    import ctypes

    buffer, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(text_page, index, buffer, 128, flags)
    return bool(_BOLD.search(buffer.value.decode("utf-8", "replace")))


def joined_box(boxes: list[Box]) -> Box:
    """The smallest box around several.

    >>> joined_box([(0.1, 0.1, 0.4, 0.2), (0.1, 0.2, 0.5, 0.3)])
    (0.1, 0.1, 0.5, 0.3)
    """
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _places_on(page: Any) -> Any:
    """Turns corners in the file's coordinates into a box as of `Line`, whatever the page's crop and rotation."""
    import ctypes

    from pypdfium2 import raw

    x, y = ctypes.c_int(), ctypes.c_int()

    def corner(across: float, up: float) -> tuple[float, float]:
        raw.FPDF_PageToDevice(page, 0, 0, _GRID, _GRID, 0, across, up, x, y)
        return min(max(x.value / _GRID, 0.0), 1.0), min(max(y.value / _GRID, 0.0), 1.0)

    def place(left: float, bottom: float, right: float, top: float) -> Box:
        (first_x, first_y), (second_x, second_y) = corner(left, bottom), corner(right, top)
        return min(first_x, second_x), min(first_y, second_y), max(first_x, second_x), max(first_y, second_y)

    return place


def _drawn(page: Any, scale: float, region: Box, too_slow: str) -> Image.Image:
    """Draws step by step, so that a page that takes too long is given up."""
    from pypdfium2 import PdfBitmap, raw
    from pypdfium2.internal import set_callback

    whole = [max(round(side * scale), 1) for side in page.get_size()]
    left, top = round(region[0] * whole[0]), round(region[1] * whole[1])
    width = max(round(region[2] * whole[0]) - left, 1)
    height = max(round(region[3] * whole[1]) - top, 1)
    bitmap = PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
    pause = raw.IFSDK_PAUSE(version=1)
    deadline = time.monotonic() + SECONDS_PER_PAGE
    set_callback(pause, "NeedToPauseNow", lambda _: time.monotonic() > deadline)
    flags = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER | raw.FPDF_RENDER_LIMITEDIMAGECACHE
    status = raw.FPDF_RenderPageBitmap_Start(bitmap, page, -left, -top, *whole, 0, flags, pause)
    raw.FPDF_RenderPage_Close(page)
    if status == raw.FPDF_RENDER_TOBECONTINUED:
        raise PageError(too_slow)
    drawn: Image.Image = bitmap.to_pil().copy()  # the bitmap's memory is PDFium's
    return drawn
