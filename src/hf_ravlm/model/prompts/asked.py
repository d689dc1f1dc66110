"""What is asked, as the user gives it, read once: the questions of a batch and the images of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from ...errors import InvalidInputError
from ...sequences import listed
from ...text import clean_text
from ..configuration_ravlm import DESCRIBE_PROMPT
from .evidence import EvidenceItem


class Asked(NamedTuple):
    """A batch as it is to be written: of each question its images, its passages and, to train, its answer."""

    questions: list[str]
    images: list[list[Image.Image]]
    passages: list[list[EvidenceItem]]
    answers: list[str] | None
    answer_on_top: bool = False


def rows_of_images(images: Any, text: Any) -> list[list[Any]]:
    """The images of every question, as they were given.

    Raises:
        `InvalidInputError`: if there are not as many as questions.

    >>> rows_of_images([["a.jpg", "b.jpg"], None, "c.jpg"], ["Which is older?", "Why?", "Who?"])
    [['a.jpg', 'b.jpg'], [], ['c.jpg']]
    """
    rows = [] if images is None else listed(images)
    number = max(len(rows), 1) if text is None else len(listed(text))
    if images is None:
        return [[] for _ in range(number)]
    if len(rows) != number:
        raise InvalidInputError(
            f"got {len(rows)} images and {number} questions; give one image per question, or none, and several "
            "images of one question as a list in its place: images=[[first, second]]"
        )
    return [[] if row is None else listed(row) for row in rows]


def check_one_image_each(rows: Sequence[Sequence[Any]], fusion: str) -> None:
    """Refuses what a reader with a vision tower cannot read: it has places for one image in a prompt."""
    for row in rows:
        if len(row) > 1:
            raise InvalidInputError(
                f"got {len(row)} images for one question; give exactly one, or none: a reader with a vision tower "
                "has places for one image, and an image-text-to-text generator takes several"
            )
    if fusion in ("product", "attention", "gated") and 0 < sum(map(len, rows)) < len(rows):
        raise InvalidInputError(
            f"some questions of the batch have an image and others have none, which fusion={fusion!r} cannot "
            "read together; ask them apart"
        )


def read_questions(text: Any, images: Sequence[Sequence[Any]], image_token: str) -> list[str]:
    """The questions of a batch, cleaned; the plain wish for a description where `text` is `None`.

    Raises:
        `InvalidInputError`: if one has no words.

    >>> read_questions(["<image> What is this?"], [["photo.jpg"]], "<image>")
    ['What is this?']
    """
    questions = [DESCRIBE_PROMPT] * len(images) if text is None else listed(text)
    for row, question in enumerate(questions):
        while images[row] and isinstance(question, str) and question.startswith(image_token):
            question = question.removeprefix(image_token)  # where chat templates and habit put it
        if not isinstance(question, str) or not clean_text(question):
            came = "empty" if isinstance(question, str) else f"of type {type(question).__name__}"
            raise InvalidInputError(f"question {row} is {came}; give words, or none at all for a description")
        questions[row] = clean_text(question)
    return questions
