"""What charts and sheets are drawn with: colours, lines of text, framed images, bars. PIL alone."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont


INK, FAINT, LINE, PAPER = "#1b1f24", "#6a737d", "#d0d7de", "#ffffff"
BLUE, GREEN, RED, GREY = "#2f81f7", "#1a7f37", "#cf222e", "#8c959f"
THUMB = (150, 100)
# The font that Pillow carries has few letters beyond ASCII; these have no parts to fall back on.
_PLAIN = {"ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "đ": "d", "ł": "l", "Ł": "L"}
_PLAIN |= {"ı": "i", "–": "-", "—": "-", "→": "->", "≈": "~", "✓": "+", "✗": "x"}


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet of so many pixels, and what draws on it."""
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, colour: str) -> None:
    """Writes one line, in the letters that there are."""
    draw.text((left, top), drawable(text), font=ImageFont.load_default(size), fill=colour)


def write_lines(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, lines: int, size: int, colour: str
) -> int:
    """Writes at most `lines` wrapped lines and returns their height in pixels."""
    font = ImageFont.load_default(size)
    wrapped: list[str] = []
    for word in drawable(text).split():
        trial = f"{wrapped[-1]} {word}" if wrapped else word
        if wrapped and draw.textlength(trial, font=font) <= width:
            wrapped[-1] = trial
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " ..."]
    for place, line in enumerate(wrapped):
        write(draw, left, top + place * (size + 4), line, size, colour)
    return len(wrapped) * (size + 4)


def drawable(text: str) -> str:
    """The text in letters that the font has: others lose their accents, or become a question mark.

    >>> drawable("Asunción, Ōsaka: 首都?")
    'Asuncion, Osaka: ???'
    """
    return "".join(letter if letter.isascii() or _has_glyph(letter) else _plainer(letter) for letter in text)


def _plainer(letter: str) -> str:
    base = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    plain = _PLAIN.get(letter, base)
    return plain if plain.isascii() else "?"


@lru_cache(maxsize=4096)
def _has_glyph(letter: str) -> bool:
    """Whether the font draws anything but the box that stands for what it lacks."""
    font = ImageFont.load_default(20)
    found, lacking = font.getmask(letter), font.getmask("\uffff")
    return found.size != lacking.size or bytes(found) != bytes(lacking)


def dashed_line(draw: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int], colour: str = FAINT) -> None:
    """A dashed line, upright or level."""
    (left, top), (right, bottom) = start, end
    for step in range(0, max(right - left, bottom - top), 8):
        spot = (left, top + step) if left == right else (left + step, top)
        draw.line([spot, (spot[0] + 4 * (left != right), spot[1] + 4 * (left == right))], fill=colour)


def share_bar(draw: ImageDraw.ImageDraw, left: int, top: int, width: int, share: float) -> None:
    """A framed bar of `width` pixels that is full for a share of 1."""
    draw.rectangle([left, top, left + width, top + 7], outline=LINE)
    draw.rectangle([left, top, left + round(width * min(max(share, 0.0), 1.0)), top + 7], fill=BLUE)


def paste_image(sheet: Image.Image, image: Image.Image, left: int, top: int, box: tuple[int, int] = THUMB) -> int:
    """Puts an image, framed, into a box that it fills on one side, keeping its shape; returns its width in pixels."""
    scale = min(box[0] / image.width, box[1] / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
    ImageDraw.Draw(sheet).rectangle([left, top, left + size[0], top + size[1]], outline=LINE)
    return size[0]
