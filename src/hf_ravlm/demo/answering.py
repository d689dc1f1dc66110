"""What the page shows for one question: answers with and without evidence, passages, maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..errors import InvalidInputError
from ..explain.explanation import Explanation, explain_answer
from ..explain.overlay import SHOWN_PIXELS, heat_overlay
from ..explain.sheets import explanation_sheet, nats
from ..images import safe_image, shrunk
from ..pipelines.answering import answer_questions
from ..pipelines.closed_answers import Choice, choose_answers
from ..saving.drawing import FAINT, INK, canvas, write_lines


WITH, WITHOUT, BOTH = "with retrieval", "without retrieval", "both, side by side"
CHOICES = (WITH, WITHOUT, BOTH)
NOTHING_SAID = "(the model said nothing)"
TABLE_HEAD = ["id", "text", "source", "licence", "score", "posterior", "worth"]
CARD = (320, 213)
MOST_PIXELS = 4_000_000  # of the image that is asked about
MOST_ANSWERS, MOST_SHOWN = 1_000, 10  # of a closed set

Captioned = tuple[Image.Image, str]


@dataclass
class PageAnswer:
    """What is shown.

    Args:
        retrieved, closed_book (`str`, *optional*): the answers that were asked for.
        table (`list[list]`): a row per passage, best first, under `TABLE_HEAD`; `worth` is in nats.
        gallery (`list[tuple]`): an image and a caption per passage.
        maps (`list[tuple]`): the image, where it speaks for the answer, where it found each passage.
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
    image: Any,
    question: str | None,
    mode: str = WITH,
    k: int | None = None,
    max_new_tokens: int = 64,
) -> PageAnswer:
    """Asks the model as `mode` says, and gathers what the page shows.

    Args:
        model, processor, retriever: as a pipeline holds them; without a retriever only `WITHOUT` can be asked for.
        image: anything that the processor takes.
        question (`str`, *optional*): nothing, or blanks, asks the model's own question.
        mode (`str`): one of `CHOICES`.
        k (`int`, *optional*): passages; as the model says by default.

    Raises:
        `InvalidInputError`: without an image, without knowledge, for another mode.
        `UnsafeInputError`: for an image that cannot be used.
    """
    if mode not in CHOICES:
        raise InvalidInputError(f"{mode!r} is no way to answer. Choose one of: {'; '.join(CHOICES)}.")
    image = picture_of(image)
    if retriever is None and mode != WITHOUT:
        raise InvalidInputError("There is no knowledge base to retrieve from. Upload one, or ask without retrieval.")
    question = (question or "").strip() or model.config.default_prompt
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    shown = PageAnswer()
    if mode != WITHOUT:
        explanation = explain_answer(model, processor, retriever, image, question, k=k, **settings)
        shown.retrieved = explanation.answer.text or NOTHING_SAID
        _show(shown, explanation)
        shown.record = explanation.to_record()
    if mode == BOTH:
        alone = answer_questions(model, processor, None, [image], [question], k=0, **settings)[0][0]
        shown.closed_book = alone.text or NOTHING_SAID
    elif mode == WITHOUT:
        explanation = explain_answer(model, processor, None, image, question, k=0, **settings)
        shown.closed_book = explanation.answer.text or NOTHING_SAID
        _show(shown, explanation)
    shown.record = {**shown.record, "question": question, "closed_book": shown.closed_book}
    return shown


def choose_for_page(
    model: Any, processor: Any, retriever: Any, image: Any, question: str | None, answers: str, k: int
) -> tuple[dict[str, float], list[list[Any]]]:
    """Chooses among answers, one a line: the score of the best, and rows of what was read under `TABLE_HEAD`.

    Raises:
        `InvalidInputError`: without an image or an answer, for too many answers, or two that are the same.
        `UnsafeInputError`: for an image that cannot be used.
    """
    names = [line.strip() for line in answers.splitlines() if line.strip()]
    if len(names) > MOST_ANSWERS:
        raise InvalidInputError(f"There are {len(names):,} answers. Choose among at most {MOST_ANSWERS:,}.")
    question = (question or "").strip() or model.config.default_prompt
    choice = Choice(names, top_k=MOST_SHOWN)
    (told,) = choose_answers(model, processor, retriever, [picture_of(image)], [question], choice, k=k)
    scores = {one["answer"]: round(one["score"], 4) for one in told}
    read = told[0]["evidence"] if told else []
    return scores, [
        [*(one[name] or "" for name in ("id", "text", "source", "licence")), round(one["score"], 3), "", ""]
        for one in read
    ]


def picture_of(image: Any) -> Image.Image:
    """The image that came, decoded: larger ones are read no better, and it is looked at again and again.

    Raises:
        `InvalidInputError`: without one.
        `UnsafeInputError`: if it cannot be used.
    """
    if image is None:
        raise InvalidInputError("There is no image. Upload one first.")
    return shrunk(safe_image(image), MOST_PIXELS)


def _show(shown: PageAnswer, explanation: Explanation) -> None:
    image, answer = explanation.image, explanation.answer
    if image is not None:
        shown.maps = [(image, "image")]
        if explanation.answer_map is not None and explanation.image_worth is not None:
            caption = f"answer: {nats(explanation.image_worth)} nats"
            shown.maps.append((heat_overlay(image, explanation.answer_map), caption))
        for passage, heat in zip(answer.evidence, explanation.passage_maps, strict=False):
            shown.maps.append((heat_overlay(image, heat), passage.id))
    passages = zip(answer.evidence, answer.posterior, answer.leave_one_out, explanation.passage_images, strict=True)
    for passage, posterior, worth, drawn in passages:
        known = [passage.id, passage.text or "", passage.source or "", passage.licence or ""]
        shown.table.append([*known, round(passage.score, 3), round(posterior, 3), round(worth, 2)])
        entry = text_card(passage.text or "") if drawn is None else shrunk(drawn, SHOWN_PIXELS)
        shown.gallery.append((entry, f"{posterior:.2f} {passage.id}"))
    shown.sheet = explanation_sheet(explanation)


def text_card(text: str) -> Image.Image:
    """A passage without an image, as a card with its words.

    >>> text_card("The wren is small and loud.").size
    (320, 213)
    """
    card, draw = canvas(*CARD)
    draw.rectangle([0, 0, CARD[0] - 1, CARD[1] - 1], outline=FAINT)
    write_lines(draw, text, 14, 14, CARD[0] - 28, 9, 15, INK)
    return card
