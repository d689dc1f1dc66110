"""A sheet that shows answers with their evidence: query, retrieved entries with score and posterior, answer.

Drawn with PIL alone. It knows pictures and strings; it does not know how an answer came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont


INK, FAINT, LINE, BAR, PAPER = "#1b1f24", "#6a737d", "#d0d7de", "#2f81f7", "#ffffff"
MARGIN, THUMB, ANSWER_WIDTH, ROW_HEIGHT = 16, (150, 100), 380, 190


def answer_sheet(
    images: Sequence[Image.Image],
    questions: Sequence[str],
    records: Sequence[dict[str, Any]],
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """One row per question: the picture, the question and answer, and each retrieved entry.

    Args:
        images (`list[PIL.Image]`), questions (`list[str]`): what was asked.
        records (`list[dict]`): what a pipeline answered: `generated_text`, `evidence`, `posterior`.
        captions (`list[str]`, *optional*): a remark under each query picture (where it came from, the right answer).

    Returns:
        `PIL.Image.Image` in RGB. The bar under an entry is its posterior, full width for 1.

    Example:

    >>> flag = Image.new("RGB", (30, 20), "red")
    >>> entry = {"id": "a/1", "image": flag, "score": 0.9}
    >>> answer_sheet([flag], ["Whose?"], [{"generated_text": "Ours.", "evidence": [entry], "posterior": [1.0]}]).size
    (744, 206)
    """
    most = max((len(record["evidence"]) for record in records), default=0)
    width = MARGIN + THUMB[0] + MARGIN + ANSWER_WIDTH + MARGIN + most * (THUMB[0] + MARGIN)
    sheet = Image.new("RGB", (width, ROW_HEIGHT * len(records) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (image, question, record) in enumerate(zip(images, questions, records, strict=True)):
        top = MARGIN + row * ROW_HEIGHT
        if row:
            draw.line([(MARGIN, top - MARGIN // 2), (width - MARGIN, top - MARGIN // 2)], fill=LINE)
        paste_picture(sheet, image, MARGIN, top)
        if captions is not None:
            write_lines(draw, captions[row], MARGIN, top + THUMB[1] + 6, THUMB[0], 3, 12, FAINT)
        left = MARGIN + THUMB[0] + MARGIN
        used = write_lines(draw, question, left, top, ANSWER_WIDTH, 2, 13, FAINT)
        write_lines(draw, record["generated_text"], left, top + used + 6, ANSWER_WIDTH, 7, 15, INK)
        for place, passage in enumerate(record["evidence"]):
            column = left + ANSWER_WIDTH + MARGIN + place * (THUMB[0] + MARGIN)
            posterior = record["posterior"][place] if record["posterior"] else None
            _entry(sheet, draw, passage, posterior, column, top)
    return sheet


def _entry(sheet, draw, passage: dict[str, Any], posterior: float | None, left: int, top: int) -> None:
    if passage.get("image") is not None:
        paste_picture(sheet, passage["image"], left, top)
    below = top + THUMB[1] + 6
    write_lines(draw, str(passage["id"]), left, below, THUMB[0], 1, 12, INK)
    note = f"score {passage['score']:.2f}" + ("" if posterior is None else f" · posterior {posterior:.2f}")
    write_lines(draw, note, left, below + 16, THUMB[0], 1, 11, FAINT)
    if posterior is not None:
        bar = below + 34
        draw.rectangle([left, bar, left + THUMB[0], bar + 7], outline=LINE)
        draw.rectangle([left, bar, left + round(THUMB[0] * min(max(posterior, 0.0), 1.0)), bar + 7], fill=BAR)


def paste_picture(sheet: Image.Image, image: Image.Image, left: int, top: int, box: tuple[int, int] = THUMB) -> int:
    """Puts a picture, framed, into a box that it fills on one side, keeping its shape; returns its width in pixels."""
    scale = min(box[0] / image.width, box[1] / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (left, top))
    ImageDraw.Draw(sheet).rectangle([left, top, left + small.width, top + small.height], outline=LINE)
    return small.width


def write_lines(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, lines: int, size: int, colour: str
) -> int:
    """Writes at most `lines` wrapped lines and returns their height in pixels."""
    font = ImageFont.load_default(size)
    wrapped: list[str] = []
    for word in text.split():
        trial = f"{wrapped[-1]} {word}" if wrapped else word
        if wrapped and draw.textlength(trial, font=font) <= width:
            wrapped[-1] = trial
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " ..."]
    for place, line in enumerate(wrapped):
        draw.text((left, top + place * (size + 4)), line, font=font, fill=colour)
    return len(wrapped) * (size + 4)
