"""Citations in an answer, `[1]`, each checked against the passage of that number that was read.

A number counts only if so many passages were read: what a passage says about itself (`[7] ...`) makes none. The check
is one of words, which a reader can do again by hand. The statement of a citation is its sentence; of that, the words
that the question does not hold already (all words if there are none other):

1. every number stands in one of the passages that the statement cites;
2. at least half of the words do, and at least one of them, or a number, in this very passage.

Words are those of keyword search: without case, accents and a final s; pairs of characters where a script has no
spaces. Words of one or two letters and the commonest English ones do not count. The rule sees no negation and no
synonym: a citation that fails it is flagged, not proven wrong, and one that passes has its words in its source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypedDict


class Citation(TypedDict):
    """One number in an answer.

    `marker` is as written, at `span` of the answer's text; `passage_id` is `None` for a number that no passage has;
    `reason` says why a citation is not supported.
    """

    marker: str
    passage_id: str | None
    supported: bool
    span: tuple[int, int]
    reason: str | None


_MARKER = re.compile(r"[\[［【]\s*(\d{1,3}(?:\s*[,;，、–-]\s*\d{1,3})*)\s*[\]］】]")
_PART = re.compile(r"(\d+)(?:\s*[–-]\s*(\d+))?")
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_COMMON = frozenset(
    "the and for are was were has have had with that this from its his her their there which who what not but can you "
    "may also into than then them they been being will would these those such according passage".split()
)


def check_citations(answer: str, passages: Sequence[Any], question: str = "") -> list[Citation]:
    """The citations of an answer, in their order.

    Args:
        answer (`str`): the text of an answer.
        passages (`Sequence`): what was read, the first of which is number 1; objects with `id`, `text` and `title`.
        question (`str`, *optional*): what was asked; its words alone support nothing.

    >>> from hf_ravlm.retrieval import Passage
    >>> read = [Passage(id="no", text="The capital of Norway is Oslo."), Passage(id="td", text="Chad lies in Africa.")]
    >>> found = check_citations("It is Oslo [1]. It is Bergen [2]. So [3].", read, "What is the capital of Norway?")
    >>> [(citation["marker"], citation["passage_id"], citation["supported"]) for citation in found]
    [('[1]', 'no', True), ('[2]', 'td', False), ('[3]', None, False)]
    """
    markers = [(match, _numbers(match.group(1))) for match in _MARKER.finditer(answer)]
    plain = _MARKER.sub(lambda match: " " * len(match.group()), answer)
    statements = [_statement(plain, *match.span()) for match, _ in markers]
    cited: dict[tuple[int, int], list[int]] = {}
    for (_, numbers), place in zip(markers, statements, strict=True):
        cited.setdefault(place, []).extend(number for number in numbers if 0 < number <= len(passages))
    words = [_words(f"{passage.title or ''} {passage.text or ''}") for passage in passages]
    known = _words(question)
    found: list[Citation] = []
    for (match, numbers), place in zip(markers, statements, strict=True):
        for number in numbers:
            there = 0 < number <= len(passages)
            reason: str | None = f"no passage {number} was read, of {len(passages)}"
            if there:
                others = set().union(*(words[other - 1] for other in cited[place]))
                reason = _why_not(_words(plain[slice(*place)]), known, words[number - 1], others)
            found.append(
                Citation(
                    marker=match.group(),
                    passage_id=passages[number - 1].id if there else None,
                    supported=reason is None,
                    span=match.span(),
                    reason=reason,
                )
            )
    return found


def _numbers(inside: str) -> list[int]:
    """`"1, 3-5"` to 1, 3, 4, 5."""
    numbers: list[int] = []
    for first, last in _PART.findall(inside):
        numbers += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(numbers))


def _statement(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the sentence of a marker stands: before it, or behind it if the marker opens its line or sentence."""
    ends = [0, *(match.end() for match in _END_OF_SENTENCE.finditer(text)), len(text)]
    sentences = [(a, b) for a, b in zip(ends, ends[1:], strict=False) if text[a:b].strip()]
    before = [place for place in sentences if place[0] < start and text[place[0] : start].strip()]
    own = [place for place in before if place[1] > start]
    if own or not sentences:
        return own[0] if own else (0, 0)
    # A marker between two sentences belongs to the one that has just ended, and at the very start to the next.
    line = text.rfind("\n", 0, start) + 1
    if before and before[-1][0] >= line:
        return before[-1]
    return next((place for place in sentences if place[1] > end), sentences[-1])


def _words(text: str) -> set[str]:
    from ..retrieval.indexes.lexical_tokens import lexical_tokens  # pyarrow comes only when needed

    tokens = lexical_tokens(text)
    return {token for token in tokens if _counts(token) and token not in _COMMON}


def _counts(token: str) -> bool:
    return len(token) > 2 or token.isdigit() or (len(token) == 2 and not token.isascii())


def _why_not(statement: set[str], known: set[str], own: set[str], cited: set[str]) -> str | None:
    """Why a statement does not rest on its passages; `None` if it does."""
    said = statement - known or statement
    numbers = {token for token in said if token.isdigit()}
    if missing := sorted(numbers - cited):
        return f"{missing[0]} does not stand in what is cited"
    if not said:
        return "there is no statement to support"
    if not said & own:
        return "none of its words stands in the passage"
    if len(said & cited) * 2 < len(said):
        return f"{len(said & cited)} of its {len(said)} words stand in what is cited"
    return None
