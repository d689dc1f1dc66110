"""The layout of a prompt in token ids.

`<bos> system <image>*P [<passage> text]*K <question> question <answer>`; with memory tokens `<evidence>*(K*M)`, best
passage first, stands where the passages' text would. Of texts the best stands last, next to the question, unless it is
told otherwise: what is near weighs most. With `question_first` the question stands before the passages, so that
prompts that differ in their passage alone share all that comes before it. Too long a prompt loses passage text, worst
passage first; image and question are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import InvalidInputError


SPECIAL_TOKENS = {name: f"<{name}>" for name in ("image", "evidence", "passage", "question", "answer")}


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


class PassagePart(NamedTuple):
    """One passage as a prompt shows it: its words, places for its image, places for its memory tokens."""

    text: Sequence[int] = ()
    image_tokens: int = 0
    evidence_tokens: int = 0


class Prompt(NamedTuple):
    """Token ids, the passage of every token (from 0, in the retriever's order; -1 for none), and where things end.

    `prefix` tokens stand before the first token of a passage, `answer_start` before the answer.
    """

    ids: list[int]
    passages: list[int]
    prefix: int
    answer_start: int


def layout_prompt(
    markers: PromptMarkers,
    question: Sequence[int],
    passages: Sequence[PassagePart],
    num_image_tokens: int,
    max_length: int,
    answer: Sequence[int] | None = None,
    question_first: bool = False,
    system: Sequence[int] = (),
    best_first: bool = False,
    answer_on_top: bool = False,
) -> Prompt:
    """Lays out one prompt.

    Args:
        markers (`PromptMarkers`): ids of the marks.
        question, answer: token ids; an answer, for training, is closed by `<eos>`.
        passages: in the retriever's order, best first. Words are cut, worst passage first; places for images and
            memory tokens are never cut through: a passage that has no room for them is left out whole.
        num_image_tokens (`int`): places for the image asked about; 0 for none.
        max_length (`int`): tokens in all, the answer included.
        question_first (`bool`): whether the question stands before the passages.
        system (`Sequence[int]`): token ids of what the reader is told first.
        best_first (`bool`): whether the best passage stands first.
        answer_on_top (`bool`): the prompt is that without an answer, which `max_length` does not count.

    Raises:
        `InvalidInputError`: if image, question and answer alone are longer than `max_length`.

    >>> marks = PromptMarkers(bos=0, eos=1, image=2, evidence=3, passage=4, question=5, answer=6)
    >>> passages = [PassagePart([60, 61]), PassagePart([70, 71])]
    >>> prompt = layout_prompt(marks, [50], passages, 1, max_length=10)
    >>> prompt.ids, prompt.passages
    ([0, 2, 4, 70, 4, 60, 61, 5, 50, 6], [-1, -1, 1, 1, 0, 0, 0, -1, -1, -1])
    >>> layout_prompt(marks, [50], passages[:1], 1, max_length=9, question_first=True).ids
    [0, 2, 5, 50, 4, 60, 61, 6]
    """
    head = [*([] if markers.bos is None else [markers.bos]), *system, *[markers.image] * num_image_tokens]
    asked = [markers.question, *question]
    target = [] if answer is None else [*answer, markers.eos]
    room = max_length - len(head) - len(asked) - 1 - (0 if answer_on_top else len(target))
    if room < 0:
        parts = "image, system message" if system else "image"
        raise too_long(
            max_length, max_length - room, question, None if answer_on_top else answer, parts, system=system
        )
    memory: list[int] = []
    for k, passage in enumerate(passages):
        if len(memory) + passage.evidence_tokens > room:
            break
        memory += [k] * passage.evidence_tokens
    room -= len(memory)
    texts, owners = _passage_texts(markers, passages, room, best_first)
    body, body_owners = [markers.evidence] * len(memory) + texts, memory + owners
    before, after = ([*head, *asked], []) if question_first else (head, asked)
    prompt = [*before, *body, *after, markers.answer]
    rest = len(after) + 1 + len(target)
    return Prompt(
        ids=prompt + target,
        passages=[-1] * len(before) + body_owners + [-1] * rest,
        prefix=len(before),
        answer_start=len(prompt),
    )


def too_long(
    max_length: int,
    taken: int,
    question: Sequence[int],
    answer: Sequence[int] | None,
    parts: str,
    advice: str = "",
    system: Sequence[int] | None = None,
) -> InvalidInputError:
    """The error for a prompt that has no room for what is never cut; it names what is longest."""
    lengths = {"question": len(question), "answer": len(answer or ()), "system message": len(system or ())}
    name, length = max(lengths.items(), key=lambda part: part[1])
    return InvalidInputError(
        f"the {name} is too long: {parts}, question and answer take {taken} tokens ({length} of them the {name}), "
        f"the context holds {max_length}; shorten the {name}, {advice}or raise the processor's max_length up to what "
        "the language model was trained for"
    )


def _passage_texts(
    markers: PromptMarkers, passages: Sequence[PassagePart], room: int, best_first: bool
) -> tuple[list[int], list[int]]:
    """Words and images of the passages in `room` tokens, worst passage first, and the passage of every token."""
    ids: list[int] = []
    owners: list[int] = []
    for k, passage in enumerate(passages):
        if not passage.text and not passage.image_tokens:
            continue
        part = [markers.passage, *[markers.image] * passage.image_tokens, *passage.text][: max(room - len(ids), 0)]
        if len(part) <= max(passage.image_tokens, 1):  # its image, or its first word
            break
        if best_first:
            ids, owners = ids + part, owners + [k] * len(part)
        else:
            ids, owners = part + ids, [k] * len(part) + owners
    return ids, owners
