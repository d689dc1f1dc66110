"""An explanation as one picture: question and answer, where the picture speaks, what each passage gave.

Drawn with PIL alone; it knows what was found, not how.
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from .explanation import Explanation
from .figures import BAR, FAINT, INK, LINE, PAPER, paste_picture, write_lines
from .match_chart import match_chart
from .overlay import heat_overlay


MARGIN, WIDTH, PICTURE, SMALL = 24, 1040, (300, 220), (190, 130)
TEXT_LEFT = MARGIN + 2 * (SMALL[0] + 12)
BARS_LEFT, BARS_WIDTH, BAR_STEP = 790, 130, 30
HELPED, HARMED = "#1a7f37", "#cf222e"


def explanation_sheet(told: Explanation) -> Image.Image:
    """Draws an explanation.

    Returns:
        `PIL.Image.Image` in RGB, 1040 pixels wide. Bright places of a map speak for the answer, or for the passage.
    """
    chart = match_chart(told.matches[0]) if told.matches else None
    passages, row = told.answer.evidence, SMALL[1] + 50
    top = MARGIN + PICTURE[1] + 60
    notes = top + row * len(passages)
    height = notes + 22 * len(told.missing) + MARGIN + (chart.height + 40 if chart else 0)
    sheet = Image.new("RGB", (max(WIDTH, chart.width + 2 * MARGIN if chart else 0), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(sheet, draw, told)
    for place in range(len(passages)):
        _passage(sheet, draw, told, place, top + place * row)
    for place, note in enumerate(told.missing):
        write_lines(draw, f"not told: {note}", MARGIN, notes + 22 * place, WIDTH - 2 * MARGIN, 1, 12, FAINT)
    if chart:
        place = notes + 22 * len(told.missing) + 8
        write_lines(draw, f"What matched: {passages[0].id}", MARGIN, place, WIDTH, 1, 14, INK)
        sheet.paste(chart, (MARGIN // 2, place + 22))
    return sheet


def nats(value: float) -> str:
    """A gain or loss, without a zero below zero.

    >>> nats(-0.001), nats(1.235)
    ('0.00', '1.24')
    """
    return f"{round(value, 2) + 0.0:.2f}"


def _head(sheet: Image.Image, draw: ImageDraw.ImageDraw, told: Explanation) -> None:
    left = MARGIN
    pictures = [(told.picture, "the picture as the model sees it")]
    if told.answer_map is not None:
        what = "where it speaks for the answer" if told.answer_map.any() else "nothing in it speaks for the answer"
        worth = "" if told.picture_worth is None else f"; without it the answer loses {nats(told.picture_worth)} nats"
        pictures.append((heat_overlay(told.picture, told.answer_map), what + worth))
    for picture, caption in pictures:
        width = max(paste_picture(sheet, picture, left, MARGIN, PICTURE), SMALL[0])
        write_lines(draw, caption, left, MARGIN + PICTURE[1] + 6, width, 2, 12, FAINT)
        left += width + 12
    used = write_lines(draw, told.question, left + 8, MARGIN, WIDTH - left - MARGIN, 4, 14, FAINT)
    write_lines(draw, told.answer.text, left + 8, MARGIN + used + 10, WIDTH - left - MARGIN, 8, 18, INK)
    draw.line([(MARGIN, MARGIN + PICTURE[1] + 42), (WIDTH - MARGIN, MARGIN + PICTURE[1] + 42)], fill=LINE)


def _passage(sheet: Image.Image, draw: ImageDraw.ImageDraw, told: Explanation, place: int, top: int) -> None:
    passage, left = told.answer.evidence[place], MARGIN
    if passage.image is not None:
        paste_picture(sheet, passage.image, left, top, SMALL)
        write_lines(draw, "the passage", left, top + SMALL[1] + 4, SMALL[0], 1, 11, FAINT)
    if told.passage_maps:
        left += SMALL[0] + 12
        paste_picture(sheet, heat_overlay(told.picture, told.passage_maps[place]), left, top, SMALL)
        write_lines(draw, "where the picture found it", left, top + SMALL[1] + 4, SMALL[0], 1, 11, FAINT)
    width = BARS_LEFT - TEXT_LEFT - 24
    used = write_lines(draw, f"{passage.rank}. {passage.id}", TEXT_LEFT, top, width, 1, 14, INK)
    used += write_lines(draw, passage.text or "", TEXT_LEFT, top + used + 2, width, 5, 12, INK)
    origin = ", ".join(part for part in (passage.source, passage.licence) if part)
    write_lines(draw, origin, TEXT_LEFT, top + used + 8, width, 2, 11, FAINT)
    shares = [("score", passage.score), ("posterior", told.answer.posterior[place])]
    if told.attention is not None:
        shares.append((f"attention ({told.attention.read_by})", float(told.attention.passages[0, place])))
    for line, (name, share) in enumerate(shares):
        _bar(draw, name, share, top + line * BAR_STEP)
    loss = told.answer.leave_one_out[place]
    note = f"without it the answer loses {nats(loss)} nats"
    colour = HELPED if loss > 0.005 else HARMED if loss < -0.005 else FAINT
    write_lines(draw, note, BARS_LEFT, top + len(shares) * BAR_STEP + 4, WIDTH - BARS_LEFT - 8, 2, 11, colour)


def _bar(draw: ImageDraw.ImageDraw, name: str, share: float, top: int) -> None:
    write_lines(draw, name, BARS_LEFT, top, BARS_WIDTH + 60, 1, 11, FAINT)
    write_lines(draw, f"{share:.2f}", BARS_LEFT + BARS_WIDTH + 8, top + 12, 60, 1, 12, INK)
    draw.rectangle([BARS_LEFT, top + 15, BARS_LEFT + BARS_WIDTH, top + 23], outline=LINE)
    filled = BARS_LEFT + round(BARS_WIDTH * min(max(share, 0.0), 1.0))
    draw.rectangle([BARS_LEFT, top + 15, filled, top + 23], fill=BAR)
