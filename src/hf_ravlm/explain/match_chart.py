"""A table of matches as a picture: parts of the query down, parts of the passage across. Drawn with PIL alone."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .figures import FAINT, INK, LINE, MARGIN, PAPER
from .maxsim import TokenMatch


FOR, AGAINST = np.array([31, 111, 235]), np.array([207, 34, 46])  # blue speaks for the match, red against it
CELL, FONT, LABEL_WIDTH, NARROWEST = 18, 11, 90, 480
MOST_PARTS = 60  # on a side; what is longer is cut and said to be


def match_chart(match: TokenMatch) -> Image.Image:
    """Draws a match: the darker a cell, the more its two parts say.

    Returns:
        `PIL.Image.Image` in RGB. Blue cells are above 0, red ones below; the best of each row is framed where the
        score is that of MaxSim.

    Example:

    >>> from .maxsim import maxsim_match
    >>> match_chart(maxsim_match(np.eye(2), np.eye(2), ["red", "kite"], ["red", "bird"])).size
    (480, 215)
    """
    rows, columns = (min(size, MOST_PARTS) for size in match.matches.shape)
    shown = match.matches[:rows, :columns]
    top, left = MARGIN + 36 + LABEL_WIDTH // 2, MARGIN + LABEL_WIDTH
    width = max(left + columns * CELL + MARGIN, NARROWEST)
    image = Image.new("RGB", (width, top + rows * CELL + MARGIN + (66 if rows < 3 else 0)), PAPER)
    draw = ImageDraw.Draw(image)
    how = "sum of the best of each row" if match.kind == "maxsim" else "sum of all cells"
    cut = "" if shown.shape == match.matches.shape else f" (the first {rows} x {columns})"
    draw.text((MARGIN, 8), f"score {match.score:.2f}: {how}{cut}", font=ImageFont.load_default(13), fill=INK)
    note = "query down, passage across"
    if match.kind == "cosine":
        note += "; " + ", ".join(f"{pair} {share:.2f}" for pair, share in match.shares.items())
    draw.text((MARGIN, 26), note, font=ImageFont.load_default(FONT), fill=FAINT)
    strongest = float(np.abs(shown).max()) or 1.0
    for column in range(columns):
        _write_upward(image, match.passage_parts[column], left + column * CELL, top - 4)
    for row in range(rows):
        label = _shortened(draw, match.query_parts[row], LABEL_WIDTH - 6)
        draw.text((MARGIN, top + row * CELL + 3), label, font=ImageFont.load_default(FONT), fill=INK)
        for column in range(columns):
            value = float(shown[row, column]) / strongest
            colour = np.array([255, 255, 255]) * (1 - abs(value)) + (FOR if value > 0 else AGAINST) * abs(value)
            spot = (left + column * CELL, top + row * CELL)
            corner = (spot[0] + CELL - 1, spot[1] + CELL - 1)
            best = match.kind == "maxsim" and column == int(shown[row].argmax())
            fill = tuple(int(part) for part in colour)
            draw.rectangle([spot, corner], fill=fill, outline=INK if best else LINE)
    return image


def _write_upward(image: Image.Image, text: str, left: int, bottom: int) -> None:
    """Writes a label that reads from bottom to top."""
    font = ImageFont.load_default(FONT)
    strip = Image.new("RGB", (LABEL_WIDTH // 2, CELL), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((2, 3), _shortened(draw, text, strip.width - 2), font=font, fill=INK)
    image.paste(strip.rotate(90, expand=True), (left, bottom - strip.width))


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    font = ImageFont.load_default(FONT)
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip(".") + "." if len(text) > 2 else text[:1]
    return text
