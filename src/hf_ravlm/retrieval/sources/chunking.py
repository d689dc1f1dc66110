"""Long texts in chunks: cut between paragraphs, else sentences, else words, and nothing is lost.

A text is cut into pieces that together are the text; pieces are then joined in order as long as a chunk has room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...errors import InvalidInputError
from ...text import clean_text, plain_text
from .checked_rows import SourceFault, SourceItem, SourceRow


# Marks that end a sentence: the first kind only before a space, the second anywhere (their scripts have no spaces).
_SPACED_ENDS = ".!?…؟۔।॥։።"
_UNSPACED_ENDS = "。！？｡．；"
_ENDS = re.compile(f"[{_SPACED_ENDS}{_UNSPACED_ENDS}]+")
_CLOSING = "\"'”’»)]」』）】》〉"
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
_WORD = re.compile(r"\s*\S+\s*|\s+")
_ABBREVIATIONS = frozenset(
    "al approx bzw c ca cf co corp dr ed eds eg esp est etc fig gen gov hon ie inc jr lt ltd max min mr mrs ms mt no "
    "nos nr op p pl pp prof rev sen sp spp sq sr ssp st subsp var vol vs z".split()
)


@dataclass(frozen=True)
class Chunking:
    """How texts are cut into chunks.

    Attributes:
        max_length: The largest length of a chunk, at least 1.
        overlap: How much of the end of a chunk is repeated at the start of the next, in whole sentences: at most
            this much, 0 for nothing. Less than `max_length`.
        length: How a text is measured; characters by default. For tokens give a function such as
            `lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)`; it is asked for every piece
            (paragraph, sentence, line, word) alone, and the length of a chunk is the sum over its pieces.
        with_heading: Begins the text of every chunk with a line of its title and section, for encoders that see the
            text alone. It comes on top of `max_length`.

    Raises:
        InvalidInputError: If `max_length` or `overlap` is out of range.

    Example:

    ```python
    >>> from hf_ravlm.retrieval.sources.chunking import Chunking, split_text
    >>> split_text("Dr. Wren sings. The robin listens. Rain.", Chunking(max_length=26))
    ['Dr. Wren sings. ', 'The robin listens. Rain.']
    >>> split_text("知更鸟唱歌。天鹅听着！", Chunking(max_length=6))
    ['知更鸟唱歌。', '天鹅听着！']

    ```
    """

    max_length: int = 1000
    overlap: int = 0
    length: Callable[[str], int] = len
    with_heading: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 1 or not 0 <= self.overlap < self.max_length:
            raise InvalidInputError(
                f"max_length={self.max_length} and overlap={self.overlap} do not fit. Expected 1 <= max_length and "
                "0 <= overlap < max_length."
            )


def split_text(text: str, chunking: Chunking) -> list[str]:
    """Cuts a text into chunks.

    Without overlap the chunks, joined, are the text, white space and all. With overlap each chunk begins with whole
    pieces of the end of the one before. A chunk is longer than `max_length` only if a single character is.

    A text of white space alone gives no chunk.
    """
    if not text.strip():
        return []
    chunks: list[str] = []
    current: list[tuple[str, int]] = []
    total = 0
    num_repeated = 0  # pieces at the start of the current chunk that the chunk before holds
    for piece, length in _pieces(text, chunking):
        if len(current) > num_repeated and total + length > chunking.max_length:
            chunks.append("".join(part for part, _ in current))
            # The last pieces that fit into the overlap and leave room for the next piece.
            room = min(chunking.overlap, chunking.max_length - length)
            start, total = len(current), 0
            while start > 0 and total + current[start - 1][1] <= room:
                start -= 1
                total += current[start][1]
            current = current[start:]
            num_repeated = len(current)
        current.append((piece, length))
        total += length
    return [*chunks, "".join(part for part, _ in current)]


def _pieces(text: str, chunking: Chunking, level: int = 0) -> Iterator[tuple[str, int]]:
    """Cuts a text into pieces, each as large as a boundary allows and none too long; yields them with their lengths.

    With overlap paragraphs are always cut into sentences: what is repeated shall be a sentence or two.
    """
    always_cut = level == 0 and chunking.overlap > 0
    for part in _LEVELS[level](text):
        length = chunking.length(part)
        if level == len(_LEVELS) - 1 or (length <= chunking.max_length and not always_cut):
            yield part, length
        else:
            yield from _pieces(part, chunking, level + 1)


_LEVELS: tuple[Callable[[str], Iterable[str]], ...] = (
    lambda text: _cut(text, (match.end() for match in _PARAGRAPH_END.finditer(text))),
    lambda text: _cut(text, _sentence_ends(text)),
    lambda text: text.splitlines(keepends=True),
    _WORD.findall,
    list,
)


def _cut(text: str, ends: Iterable[int]) -> Iterator[str]:
    places = [0, *ends, len(text)]
    return (text[start:end] for start, end in pairwise(places) if start < end)


def _sentence_ends(text: str) -> Iterator[int]:
    """Yields where sentences end, behind closing quotes and the white space that follows."""
    for match in _ENDS.finditer(text):
        end = match.end()
        while end < len(text) and text[end] in _CLOSING:
            end += 1
        after_mark = end
        while end < len(text) and text[end].isspace():
            end += 1
        if end == len(text):
            return
        if text[match.end() - 1] in _UNSPACED_ENDS or (end > after_mark and not _goes_on(text, match, end)):
            yield end


def _goes_on(text: str, match: re.Match[str], next_start: int) -> bool:
    """Full stops before a small letter end no sentence, nor does one after an initial or a known short form."""
    if match.group().strip("."):
        return False
    if text[next_start].islower():
        return True
    word = re.split(r"[\s.(\[]", text[max(0, match.start() - 12) : match.start()])[-1]
    is_initial = len(word) == 1 and word.isascii() and word.isalpha()
    return match.group() == "." and (is_initial or word.lower() in _ABBREVIATIONS)


def chunked_rows(rows: Iterable[SourceItem], chunking: Chunking) -> Iterator[SourceItem]:
    """Cuts the texts of rows; everything else of a row goes with each of its chunks.

    Chunk `n` of the row `"12"` has the id `"12-n"`, from 0, and the metadata `document` (`"12"`) and `chunk` (n). Rows
    with one id that follow each other are parts of one document (its sections) and numbered through. The image of a
    row stays with its first chunk. Chunks have no white space around them. Rows without text, rows whose text their
    source has cut, and faults pass as they are.
    """
    document: Any = None
    number = 0
    for row in rows:
        text = row.values.get("text") if isinstance(row, SourceRow) else None
        if not isinstance(row, SourceRow) or row.is_cut or not isinstance(text, str) or not text.strip():
            yield row
            continue
        try:
            text = plain_text(text, f"{row.where}: `text`")
        except InvalidInputError as error:
            yield SourceFault(row.where, error, None if row.values.get("id") is None else str(row.values["id"]))
            continue
        if row.values.get("id") != document:
            document, number = row.values.get("id"), 0
        if document is None:
            yield row
            continue
        image = row.values.get("image")
        headings = (row.values.get("title"), row.metadata.get("section")) if chunking.with_heading else ()
        heading = " > ".join(part for part in headings if isinstance(part, str))
        heading = heading and heading + "\n"
        for chunk in split_text(text, chunking):
            if not clean_text(chunk):
                continue
            values = {**row.values, "id": f"{document}-{number}", "text": heading + chunk.strip(), "image": image}
            yield SourceRow(row.where, values, {**row.metadata, "document": str(document), "chunk": number})
            image = None
            number += 1
