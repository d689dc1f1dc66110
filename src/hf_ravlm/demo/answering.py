"""What the page shows for one question: answers with and without evidence, passages, maps. It knows no page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw

from ..errors import InvalidInputError
from ..explain.explanation import Explanation, explain_answer
from ..explain.explanation_sheet import explanation_sheet, nats
from ..explain.figures import FAINT, INK, PAPER, write_lines
from ..explain.overlay import heat_overlay
from ..pipelines.answering import answer_questions


WITH, WITHOUT, BOTH = "with retrieval", "without retrieval", "both, side by side"
CHOICES = (WITH, WITHOUT, BOTH)
NOTHING_SAID = "(the model said nothing)"
TABLE_HEAD = ["id", "text", "source", "licence", "score", "posterior", "worth"]
CARD = (320, 213)

Captioned = tuple[Image.Image, str]


@dataclass
class PageAnswer:
    """What is shown.

    Args:
        retrieved (`str`, *optional*), closed_book (`str`, *optional*): the answers that were asked for.
        table (`list[list]`):
            a row per passage, best first, under `TABLE_HEAD`; `worth` is what the answer loses without it, in nats.
        gallery (`list[tuple]`): a picture and a caption per passage.
        maps (`list[tuple]`): the picture, where it speaks for the answer, where it found each passage.
        sheet (`PIL.Image.Image`, *optional*): the whole explanation.
        record (`dict`): the same as JSON values.
    """

    retrieved: str | None = None
    closed_book: str | None = None
    table: list[list[Any]] = field(default_factory=list)
    gallery: list[Captioned] = field(default_factory=list)
    maps: list[Captioned] = field(default_factory=list)
    sheet: Image.Image | None = None
    record: dict[str, Any] = field(default_factory=dict)


def answer_for_page(
    model: Any,
    processor: Any,
    retriever: Any,
    picture: Any,
    question: str | None,
    mode: str = WITH,
    k: int | None = None,
    max_new_tokens: int = 64,
) -> PageAnswer:
    """Asks the model as `mode` says, and gathers what the page shows.

    Args:
        model, processor, retriever: as a pipeline holds them; without a retriever only `WITHOUT` can be asked for.
        picture: anything that the processor takes.
        question (`str`, *optional*): nothing, or blanks, asks the model's own question.
        mode (`str`): one of `CHOICES`.
        k (`int`, *optional*): passages; as the model says by default.

    Raises:
        `InvalidInputError`: without a picture, without knowledge, for another mode.
        `UnsafeInputError`: for a picture that cannot be used.
    """
    if picture is None:
        raise InvalidInputError("There is no picture. Upload one first.")
    if mode not in CHOICES:
        raise InvalidInputError(f"{mode!r} is no way to answer. Choose one of: {'; '.join(CHOICES)}.")
    if retriever is None and mode != WITHOUT:
        raise InvalidInputError("There is no knowledge base to retrieve from. Upload one, or ask without retrieval.")
    question = (question or "").strip() or model.config.default_prompt
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    shown = PageAnswer()
    if mode != WITHOUT:
        told = explain_answer(model, processor, retriever, picture, question, k=k, **settings)
        shown.retrieved = told.answer.text or NOTHING_SAID
        _show(shown, told)
        shown.record = told.to_record()
    if mode == BOTH:
        alone = answer_questions(model, processor, None, [picture], [question], k=0, **settings)[0][0]
        shown.closed_book = alone.text or NOTHING_SAID
    elif mode == WITHOUT:
        told = explain_answer(model, processor, None, picture, question, k=0, **settings)
        shown.closed_book = told.answer.text or NOTHING_SAID
        _show(shown, told)
    shown.record = {**shown.record, "question": question, "closed_book": shown.closed_book}
    return shown


def _show(shown: PageAnswer, told: Explanation) -> None:
    shown.maps = [(told.picture, "picture")]
    if told.answer_map is not None and told.picture_worth is not None:
        shown.maps.append((heat_overlay(told.picture, told.answer_map), f"answer: {nats(told.picture_worth)} nats"))
    for passage, heat in zip(told.answer.evidence, told.passage_maps, strict=False):
        shown.maps.append((heat_overlay(told.picture, heat), passage.id))
    for place, passage in enumerate(told.answer.evidence):
        posterior, loss = told.answer.posterior[place], told.answer.leave_one_out[place]
        known = [passage.id, passage.text or "", passage.source or "", passage.licence or ""]
        shown.table.append([*known, round(passage.score, 3), round(posterior, 3), round(loss, 2)])
        picture = passage.image if passage.image is not None else text_card(passage.text or "")
        shown.gallery.append((picture, f"{posterior:.2f} {passage.id}"))
    shown.sheet = explanation_sheet(told)


def text_card(text: str) -> Image.Image:
    """A passage without a picture, as a card with its words.

    >>> text_card("The wren is small and loud.").size
    (320, 213)
    """
    card = Image.new("RGB", CARD, PAPER)
    draw = ImageDraw.Draw(card)
    draw.rectangle([0, 0, CARD[0] - 1, CARD[1] - 1], outline=FAINT)
    write_lines(draw, text, 14, 14, CARD[0] - 28, 9, 15, INK)
    return card
