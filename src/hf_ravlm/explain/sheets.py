"""Sheets as images: several answers with their evidence, one explained answer, one table of matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..saving.drawing import (
    FAINT,
    GREEN,
    INK,
    LINE,
    PAPER,
    RED,
    THUMB,
    canvas,
    paste_image,
    share_bar,
    write,
    write_lines,
)
from .explanation import Explanation
from .maxsim import TokenMatch
from .overlay import heat_overlay


MARGIN = 16
ANSWER_WIDTH, ROW_HEIGHT = 380, 190  # of answer sheets
WIDTH, LARGE, SMALL = 1040, (300, 220), (190, 130)  # of explanations
TEXT_LEFT, BARS_LEFT, BARS_WIDTH, BAR_STEP = MARGIN + 2 * (SMALL[0] + 12), 790, 130, 30
# Of matches.
FOR, AGAINST = np.array([31, 111, 235]), np.array([207, 34, 46])  # blue speaks for the match, red against it
CELL, FONT, LABEL_WIDTH, NARROWEST = 18, 11, 90, 480
MOST_PARTS = 60  # on a side; of longer ones the first are drawn, which the sheet says


def answer_sheet(
    images: Sequence[Image.Image],
    questions: Sequence[str],
    records: Sequence[dict[str, Any]],
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """One row per question: the image, the question and answer, and each retrieved entry.

    Args:
        images (`list[PIL.Image]`), questions (`list[str]`): what was asked.
        records (`list[dict]`): what a pipeline answered: `generated_text`, `evidence`, `posterior`.
        captions (`list[str]`, *optional*): a remark under each image (where it came from, the right answer).

    Returns:
        `PIL.Image.Image` in RGB. The bar under an entry is its posterior, full width for 1.

    Example:

    >>> flag = Image.new("RGB", (30, 20), "red")
    >>> entry = {"id": "a/1", "image": flag, "score": 0.9}
    >>> answer_sheet([flag], ["Whose?"], [{"generated_text": "Ours.", "evidence": [entry], "posterior": [1.0]}]).size
    (744, 206)
    """
    most, step = max((len(record["evidence"]) for record in records), default=0), THUMB[0] + MARGIN
    width = MARGIN + step + ANSWER_WIDTH + MARGIN + most * step
    sheet, draw = canvas(width, ROW_HEIGHT * len(records) + MARGIN)
    for row, (image, question, record) in enumerate(zip(images, questions, records, strict=True)):
        top, left = MARGIN + row * ROW_HEIGHT, MARGIN + step
        if row:
            draw.line([(MARGIN, top - MARGIN // 2), (width - MARGIN, top - MARGIN // 2)], fill=LINE)
        paste_image(sheet, image, MARGIN, top)
        if captions is not None:
            write_lines(draw, captions[row], MARGIN, top + THUMB[1] + 6, THUMB[0], 3, 12, FAINT)
        used = write_lines(draw, question, left, top, ANSWER_WIDTH, 2, 13, FAINT)
        write_lines(draw, record["generated_text"], left, top + used + 6, ANSWER_WIDTH, 7, 15, INK)
        for place, passage in enumerate(record["evidence"]):
            posterior = record["posterior"][place] if record["posterior"] else None
            _entry(sheet, draw, passage, posterior, left + ANSWER_WIDTH + MARGIN + place * step, top)
    return sheet


def _entry(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    passage: dict[str, Any],
    posterior: float | None,
    left: int,
    top: int,
) -> None:
    if passage.get("image") is not None:
        paste_image(sheet, passage["image"], left, top)
    below = top + THUMB[1] + 6
    write_lines(draw, str(passage["id"]), left, below, THUMB[0], 1, 12, INK)
    note = f"score {passage['score']:.2f}" + ("" if posterior is None else f" · posterior {posterior:.2f}")
    write_lines(draw, note, left, below + 16, THUMB[0], 1, 11, FAINT)
    if posterior is not None:
        share_bar(draw, left, below + 34, THUMB[0], posterior)


def explanation_sheet(explanation: Explanation) -> Image.Image:
    """An explanation as one image: question and answer, where the image speaks, what each passage gave.

    Returns:
        `PIL.Image.Image` in RGB, 1040 pixels wide. Bright places of a map speak for the answer, or for the passage.
    """
    chart = match_chart(explanation.matches[0]) if explanation.matches else None
    passages, row = explanation.answer.evidence, SMALL[1] + 50
    top = MARGIN + LARGE[1] + 60
    notes = top + row * len(passages)
    below = notes + 22 * len(explanation.missing)
    width = max(WIDTH, chart.width + 2 * MARGIN if chart else 0)
    sheet, draw = canvas(width, below + MARGIN + (chart.height + 40 if chart else 0))
    _head(sheet, draw, explanation)
    for place in range(len(passages)):
        _passage(sheet, draw, explanation, place, top + place * row)
    for place, note in enumerate(explanation.missing):
        write_lines(draw, f"not known: {note}", MARGIN, notes + 22 * place, WIDTH - 2 * MARGIN, 1, 12, FAINT)
    if chart:
        write(draw, MARGIN, below + 8, f"What matched: {passages[0].id}", 14, INK)
        sheet.paste(chart, (0, below + 30))
    return sheet


def nats(value: float) -> str:
    """What something gives to an answer: above 0 where it helps; without a zero below zero.

    >>> nats(-0.001), nats(1.235)
    ('+0.00', '+1.24')
    """
    return f"{round(value, 2) + 0.0:+.2f}"


def _head(sheet: Image.Image, draw: ImageDraw.ImageDraw, explanation: Explanation) -> None:
    left = MARGIN
    shown = [] if explanation.image is None else [(explanation.image, "the image as the model sees it")]
    if explanation.image is not None and explanation.answer_map is not None:
        speaks = "where it speaks for the answer" if explanation.answer_map.any() else "nothing speaks for the answer"
        note = "" if explanation.image_worth is None else f"; it gives {nats(explanation.image_worth)} nats"
        shown.append((heat_overlay(explanation.image, explanation.answer_map), speaks + note))
    for image, caption in shown:
        width = max(paste_image(sheet, image, left, MARGIN, LARGE), SMALL[0])
        write_lines(draw, caption, left, MARGIN + LARGE[1] + 6, width, 2, 12, FAINT)
        left += width + 12
    used = write_lines(draw, explanation.question, left + 8, MARGIN, WIDTH - left - MARGIN, 4, 14, FAINT)
    write_lines(draw, explanation.answer.text, left + 8, MARGIN + used + 10, WIDTH - left - MARGIN, 8, 18, INK)
    draw.line([(MARGIN, MARGIN + LARGE[1] + 42), (WIDTH - MARGIN, MARGIN + LARGE[1] + 42)], fill=LINE)


def _passage(sheet: Image.Image, draw: ImageDraw.ImageDraw, explanation: Explanation, place: int, top: int) -> None:
    answer, left = explanation.answer, MARGIN
    passage = answer.evidence[place]
    shown = explanation.passage_images[place] if explanation.passage_images else passage.image
    if shown is not None:
        paste_image(sheet, shown, left, top, SMALL)
        write_lines(draw, "the passage", left, top + SMALL[1] + 4, SMALL[0], 1, 11, FAINT)
    if explanation.image is not None and explanation.passage_maps:
        left += SMALL[0] + 12
        paste_image(sheet, heat_overlay(explanation.image, explanation.passage_maps[place]), left, top, SMALL)
        write_lines(draw, "where the image found it", left, top + SMALL[1] + 4, SMALL[0], 1, 11, FAINT)
    width = BARS_LEFT - TEXT_LEFT - 24
    used = write_lines(draw, f"{passage.rank}. {passage.id}", TEXT_LEFT, top, width, 1, 14, INK)
    used += write_lines(draw, passage.text or "", TEXT_LEFT, top + used + 2, width, 5, 12, INK)
    origin = ", ".join(part for part in (passage.source, passage.licence) if part)
    write_lines(draw, origin, TEXT_LEFT, top + used + 8, width, 2, 11, FAINT)
    shares = [("score", passage.score), ("posterior", answer.posterior[place])]
    if (attention := explanation.attention) is not None:
        shares.append((f"attention ({attention.read_by})", float(attention.passages[0, place])))
    for line, (name, share) in enumerate(shares):
        upper = top + line * BAR_STEP
        write(draw, BARS_LEFT, upper, name, 11, FAINT)
        write(draw, BARS_LEFT + BARS_WIDTH + 8, upper + 12, f"{share:.2f}", 12, INK)
        share_bar(draw, BARS_LEFT, upper + 15, BARS_WIDTH, share)
    worth = answer.leave_one_out[place]
    colour = GREEN if worth > 0.005 else RED if worth < -0.005 else FAINT
    write(draw, BARS_LEFT, top + len(shares) * BAR_STEP + 4, f"it gives the answer {nats(worth)} nats", 11, colour)


def match_chart(match: TokenMatch) -> Image.Image:
    """A match as a table, parts of the query down, parts of the passage across: the darker, the more two parts say.

    Returns:
        `PIL.Image.Image` in RGB. Blue cells are above 0, red ones below; the best of each row is framed where the
        score is that of MaxSim.

    Example:

    >>> from hf_ravlm.explain import maxsim_match
    >>> match_chart(maxsim_match(np.eye(2), np.eye(2), ["red", "kite"], ["red", "bird"])).size
    (480, 215)
    """
    rows, columns = (min(size, MOST_PARTS) for size in match.matches.shape)
    shown = match.matches[:rows, :columns]
    top, left = MARGIN + 36 + LABEL_WIDTH // 2, MARGIN + LABEL_WIDTH
    width = max(left + columns * CELL + MARGIN, NARROWEST)
    image, draw = canvas(width, top + rows * CELL + MARGIN + (66 if rows < 3 else 0))
    how = "sum of the best of each row" if match.kind == "maxsim" else "sum of all cells"
    cut = "" if shown.shape == match.matches.shape else f" (the first {rows} x {columns})"
    write(draw, MARGIN, 8, f"score {match.score:.2f}: {how}{cut}", 13, INK)
    shares = ", ".join(f"{pair} {share:.2f}" for pair, share in match.shares.items())
    note = "query down, passage across"
    write(draw, MARGIN, 26, f"{note}; {shares}" if match.kind == "cosine" else note, FONT, FAINT)
    strongest = float(np.abs(shown).max()) or 1.0
    for column in range(columns):
        _write_upward(image, match.passage_parts[column], left + column * CELL, top - 4)
    for row in range(rows):
        label = _shortened(draw, match.query_parts[row], LABEL_WIDTH - 6)
        write(draw, MARGIN, top + row * CELL + 3, label, FONT, INK)
        for column in range(columns):
            value = float(shown[row, column]) / strongest
            colour = np.array([255, 255, 255]) * (1 - abs(value)) + (FOR if value > 0 else AGAINST) * abs(value)
            x, y = left + column * CELL, top + row * CELL
            best = match.kind == "maxsim" and column == int(shown[row].argmax())
            fill = tuple(int(part) for part in colour)
            draw.rectangle([x, y, x + CELL - 1, y + CELL - 1], fill=fill, outline=INK if best else LINE)
    return image


def _write_upward(image: Image.Image, text: str, left: int, bottom: int) -> None:
    """Writes a label that reads from bottom to top."""
    strip = Image.new("RGB", (LABEL_WIDTH // 2, CELL), PAPER)
    draw = ImageDraw.Draw(strip)
    write(draw, 2, 3, _shortened(draw, text, strip.width - 2), FONT, INK)
    image.paste(strip.rotate(90, expand=True), (left, bottom - strip.width))


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    font = ImageFont.load_default(FONT)
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip(".") + "." if len(text) > 2 else text[:1]
    return text
