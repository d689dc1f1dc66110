"""From lines of text to sections: no running heads, headings found, lines joined to paragraphs, chunks with a box."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ....text import without_controls
from ..chunking import Chunking, split_text
from .document import SOFT_HYPHEN, Bookmark, Box, Line, joined_box


_MARGIN = 0.1  # of the page, at the top and at the bottom, where running heads stand
_REPEATED = 2  # pages that have a line at the same edge, in letters of the same size: it is a running head
_CONTENTS = re.compile(r"(\s?[.·…]){5,}\s*\S{0,8}$")  # an entry of a table of contents
_CAPTION = re.compile(
    r"(figure|fig\.|abbildung|abb\.|illustration|photo|plate|chart|diagram|图|圖|図)\s*\d", re.IGNORECASE
)
_LONGEST_HEADING = 150
_NOT_HEADING = re.compile(r"[\d\W_]*")  # numbers, bullets, formulas
_CJK = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")


@dataclass
class Section:
    """Lines of one page under one heading.

    Args:
        path (`tuple[str]`): Headings from the outermost to its own.
        lines (`list[Line]`): Without the heading.
        heading (`list[Line]`): The heading itself, where it stands on this page.
    """

    path: tuple[str, ...]
    lines: list[Line] = field(default_factory=list)
    heading: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """A piece of the text of a page, with its box and the headings above it."""

    text: str
    box: Box
    path: tuple[str, ...]


def without_running_heads(pages: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """Leaves out what stands on many pages at the same edge, page numbers, and entries of tables of contents.

    >>> page = [Line("A Manual 7", (0.1, 0.02, 0.9, 0.04)), Line("Press the button.", (0.1, 0.5, 0.9, 0.52))]
    >>> without_running_heads([page] * 3)[0][0].text
    'Press the button.'
    """
    seen = Counter(key for lines in pages for key in {_edge(line) for line in lines})
    del seen[None]
    kept = []
    for lines in pages:
        kept.append([line for line in lines if seen[_edge(line)] < _REPEATED and not _CONTENTS.search(line.text)])
    return kept


def _edge(line: Line) -> tuple[str, bool, int] | None:
    """What identifies a running head: its words without numbers, at which edge it stands, and how large it is."""
    _, top, _, bottom = line.box
    if _MARGIN < top and bottom < 1 - _MARGIN:
        return None
    return re.sub(r"\d+|\b[ivxlc]+\b", "", line.text).strip().casefold(), top < 0.5, round(line.size)


def sections_of(pages: Sequence[Sequence[Line]], bookmarks: Sequence[Bookmark]) -> list[list[Section]]:
    """The sections of each page. Headings are those of the outline; without one, what is larger, or bold and short."""
    levels = _by_outline(pages, bookmarks) if bookmarks else _by_size(pages)
    path: list[tuple[float, str]] = []
    found = []
    for number, lines in enumerate(pages):
        current = Section(tuple(title for _, title in path))
        sections = [current]
        for place, line in enumerate(lines):
            if (known := levels.get((number, place))) is None:
                current.lines.append(line)
                continue
            level, title = known
            if title is None:  # the heading goes on in a second line
                current.heading.append(line)
                if not _letters(path[-1][1]).endswith(_letters(line.text)):  # an outline tells it whole
                    path[-1] = (path[-1][0], f"{path[-1][1]} {_plain(line.text)}")
                    current.path = tuple(title for _, title in path)
                continue
            while path and path[-1][0] >= level:
                path.pop()
            path.append((level, title))
            current = Section(tuple(title for _, title in path), heading=[line])
            sections.append(current)
        found.append([section for section in sections if section.lines or section.heading])
    return found


Levels = dict[tuple[int, int], tuple[float, str | None]]


def _by_outline(pages: Sequence[Sequence[Line]], bookmarks: Sequence[Bookmark]) -> Levels:
    """For each entry of the outline the line on its page that says the same, the largest of them."""
    levels: Levels = {}
    for level, title, number in bookmarks:
        wanted = _letters(title)
        said = [place for place, line in enumerate(pages[number]) if _says(line.text, wanted)]
        free = [place for place in said if (number, place) not in levels]
        if free:
            best = max(free, key=lambda place: pages[number][place].size)
            levels[number, best] = (level, title)
            after = best + 1  # the rest of a heading that is longer than its line
            if after < len(pages[number]) and len(_letters(pages[number][best].text)) < len(wanted):
                if wanted.endswith(_letters(pages[number][after].text) or "-"):
                    levels[number, after] = (level, "")
    return {key: (level, title or None) for key, (level, title) in levels.items()} if levels else _by_size(pages)


def _says(text: str, wanted: str) -> bool:
    letters = _letters(text)
    if not letters or len(text) > _LONGEST_HEADING:
        return False
    return letters == wanted or letters.endswith(wanted) or (len(letters) > 8 and wanted.startswith(letters))


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _by_size(pages: Sequence[Sequence[Line]]) -> Levels:
    """Lines that are clearly larger than most text, or as large and bold, short, and above more of it."""
    sizes: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            sizes[round(line.size * 2) / 2] += len(line.text)
    if not sizes:
        return {}
    body = sizes.most_common(1)[0][0]
    ranks: dict[tuple[int, int], float] = {}
    for number, lines in enumerate(pages):
        for place, line in enumerate(lines):
            is_larger = line.size > 1.15 * body
            if (is_larger or (line.is_bold and line.size > 0.95 * body and _stands_alone(lines, place))) and (
                len(line.text) <= _LONGEST_HEADING
                and not _NOT_HEADING.fullmatch(line.text)
                and not line.text[0].islower()
                and not line.text.endswith((",", ";"))
            ):
                ranks[number, place] = round(line.size * 2) / 2 if is_larger else body
    levels: Levels = {}
    for (number, place), size in ranks.items():
        before = ranks.get((number, place - 1))
        goes_on = before == size and _follows(pages[number][place - 1], pages[number][place])
        levels[number, place] = (-size, None if goes_on else _plain(pages[number][place].text))
    return levels


def _stands_alone(lines: Sequence[Line], place: int) -> bool:
    """Whether a line shares its height with no other, as words in bold at the start of a paragraph do."""
    line = lines[place]
    middle = (line.box[1] + line.box[3]) / 2
    around = [*lines[max(place - 1, 0) : place], *lines[place + 1 : place + 2]]
    return not line.text.endswith(".") and not any(other.box[1] < middle < other.box[3] for other in around)


def _follows(first: Line, second: Line) -> bool:
    """Whether a line stands right below another, in the same column."""
    height = max(first.box[3] - first.box[1], second.box[3] - second.box[1], 1e-6)
    gap = second.box[1] - first.box[3]
    return -0.5 * height < gap < 0.9 * height and second.box[0] < first.box[2] and first.box[0] < second.box[2]


def chunks_of(sections: Sequence[Section], title: str | None, chunking: Chunking) -> Iterator[Chunk]:
    """Cuts the sections of one page; no chunk spans two of them.

    Args:
        sections: Of one page.
        title: Of the document, for `chunking.with_heading`.
        chunking: How long chunks are, and whether each begins with its headings.
    """
    for place, section in enumerate(sections):
        after = sections[place + 1].path if place + 1 < len(sections) else ()
        if not section.lines:
            # A heading alone: those below carry it, unless there are none.
            if after[: len(section.path)] != section.path:
                path = section.path if chunking.with_heading else section.path[-1:]
                yield Chunk(_headings(title, path), joined_box([line.box for line in section.heading]), section.path)
            continue
        head = f"{_headings(title, section.path)}\n" if chunking.with_heading and (title or section.path) else ""
        lines = section.lines if chunking.with_heading else [*section.heading, *section.lines]
        text, starts = joined_lines(lines)
        at = -1
        for number, piece in enumerate(split_text(text, chunking)):
            at = text.index(piece, at + 1)
            inside = [
                line.box
                for line, (start, end) in zip(lines, pairwise([*starts, len(text)]), strict=True)
                if start < at + len(piece.rstrip()) and end > at
            ]
            if number == 0:
                inside += [line.box for line in section.heading]
            if piece.strip():
                yield Chunk(head + piece.strip(), joined_box(inside), section.path)


def _headings(title: str | None, path: Sequence[str]) -> str:
    return " > ".join(dict.fromkeys(part for part in (title, *path) if part))


def joined_lines(lines: Sequence[Line]) -> tuple[str, list[int]]:
    r"""The text of lines, and where each begins in it: words cut in two are whole again, paragraphs stand apart.

    >>> rows = [("The wren sings very loud and it is a com", 0.1, 0.9), ("mon bird of all our gardens.", 0.12, 0.6)]
    >>> lines = [Line(text + "\x02" * (top == 0.1), (0.1, top, right, top + 0.015)) for text, top, right in rows]
    >>> joined_lines(lines)
    ('The wren sings very loud and it is a common bird of all our gardens.', [0, 40])
    """
    text, starts = "", []
    widest = max((line.box[2] for line in lines), default=1.0)
    for place, line in enumerate(lines):
        if place:
            text += _between(lines[place - 1], line, widest)
        starts.append(len(text))
        text += _plain(line.text)
    return text, starts


def _plain(text: str) -> str:
    return " ".join(without_controls(text.replace(SOFT_HYPHEN, "").replace("\ufffe", "")).split())


def _between(first: Line, second: Line, widest: float) -> str:
    if first.text.endswith((SOFT_HYPHEN, "\ufffe")):
        return ""
    if not _follows(first, second) or abs(first.size - second.size) > 0.15 * first.size:
        return "\n\n" if second.box[1] >= first.box[3] or second.box[3] <= first.box[1] else " "
    if first.box[2] < first.box[0] + 0.8 * (widest - first.box[0]):
        return "\n"  # a line that ends early was meant to end there
    return "" if _CJK.match(first.text[-1:]) and _CJK.match(second.text[:1]) else " "


def captions_of(lines: Sequence[Line], pictures: Sequence[Box]) -> list[tuple[Box, str]]:
    """The images of a page that have a caption, with it.

    >>> caption = Line("Figure 3: The battery.", (0.2, 0.61, 0.6, 0.63))
    >>> captions_of([caption], [(0.1, 0.2, 0.9, 0.6), (0.1, 0.7, 0.3, 0.9)])
    [((0.1, 0.2, 0.9, 0.6), 'Figure 3: The battery.')]
    """
    parts: dict[int, list[Box]] = defaultdict(list)
    texts = {}
    for place, line in enumerate(lines):
        if not _CAPTION.match(line.text):
            continue
        whole = [line]
        while place + len(whole) < len(lines) and len(whole) < 6 and _follows(whole[-1], lines[place + len(whole)]):
            whole.append(lines[place + len(whole)])
        near = [box for box in pictures if _distance(box, joined_box([part.box for part in whole])) < 0.06]
        if near:
            parts[place] = near
            texts[place] = joined_lines(whole)[0]
    return [(joined_box(boxes), texts[place]) for place, boxes in parts.items()]


def _distance(picture: Box, caption: Box) -> float:
    """How far a caption stands above or below an image, as a share of the page; 1 where it is not in its column."""
    if min(picture[2], caption[2]) <= max(picture[0], caption[0]):
        return 1.0
    gap = max(caption[1] - picture[3], picture[1] - caption[3])
    return abs(gap)
