"""How a prompt is laid out in token ids, and how text that came from outside is kept literal.

`<bos> <image>*P [<passage> text]*K <question> question <answer>`; with memory tokens `<evidence>*(K*M)` stands where
the passages' text would. The best passage stands last, next to the question: what is near weighs most. The markers are
ids of ours: passages and questions are tokenised apart, with special tokens split into ordinary ones, so no text can
produce a marker. Too long a prompt loses passage text, worst passage first; image and question are never cut.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidInputError


@dataclass(frozen=True)
class PromptMarkers:
    """Token ids of the marks in a prompt; `bos` is `None` for tokenizers without one."""

    bos: int | None
    eos: int
    image: int
    evidence: int
    passage: int
    question: int
    answer: int


def clean_text(text: str) -> str:
    r"""Text as the reader shall see it: NFC, control and invisible format characters dropped, blanks folded.

    >>> clean_text("Caf" + "e\u0301\u200b  \n au lait\x00")
    'Café au lait'
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf"))


def layout_prompt(
    markers: PromptMarkers,
    question: Sequence[int],
    passages: Sequence[Sequence[int]],
    num_image_tokens: int,
    num_evidence_tokens: int,
    max_length: int,
    answer: Sequence[int] | None = None,
) -> tuple[list[int], int]:
    """Lays out one prompt.

    Args:
        markers (`PromptMarkers`): ids of the marks.
        question, passages, answer: token ids; passages in the retriever's order, best first.
        num_image_tokens, num_evidence_tokens (`int`): placeholders; 0 for none.
        max_length (`int`): tokens in all, the answer included.
        answer (`Sequence[int]`, *optional*): for training; closed by `<eos>`.

    Returns:
        The ids, and how many of them belong to the prompt (the answer starts there).

    Raises:
        `InvalidInputError`: if image, question and answer alone are longer than `max_length`.

    Example:

    >>> marks = PromptMarkers(bos=0, eos=1, image=2, evidence=3, passage=4, question=5, answer=6)
    >>> layout_prompt(marks, [50], [[60, 61], [70, 71]], 1, 0, max_length=9)
    ([0, 2, 4, 4, 60, 61, 5, 50, 6], 9)
    """
    head = [] if markers.bos is None else [markers.bos]
    head += [markers.image] * num_image_tokens + [markers.evidence] * num_evidence_tokens
    tail = [markers.question, *question, markers.answer]
    target = [] if answer is None else [*answer, markers.eos]
    room = max_length - len(head) - len(tail) - len(target)
    if room < 0:
        raise InvalidInputError(
            f"the question is too long: image, evidence marks, question and answer take {max_length - room} tokens "
            f"({len(question)} of them the question), the context holds {max_length}; shorten the question "
            "or raise the processor's max_length up to what the language model was trained for"
        )
    body: list[int] = []
    for passage in passages:
        body = [markers.passage, *passage][: room - len(body)] + body
    prompt = head + body + tail
    return prompt + target, len(prompt)
