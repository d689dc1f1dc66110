"""What a question is searched with: its words, or others, and each of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..images import several
from ..sequences import is_column


if TYPE_CHECKING:
    from ..retrieval import Evidence


def search_words(questions: Sequence[str], queries: Sequence[str | None] | None) -> list[str | None]:
    """What is searched for by words: the queries, and the questions where there is none.

    Raises:
        InvalidInputError: If their numbers differ.

    >>> search_words(["What is this?", "And this?", "Who?"], ["wren", None, ""])
    ['wren', 'And this?', None]
    """
    if queries is None:
        return list(questions)
    if len(queries) != len(questions):
        raise InvalidInputError(f"{len(queries)} queries came with {len(questions)} questions: give one each, or None")
    return [question if query is None else query or None for query, question in zip(queries, questions, strict=True)]


def find_evidence(
    retriever: Any, images: Sequence[Any] | None, words: Sequence[str | None], k: int, **options: Any
) -> list[list[Evidence]]:
    """The `k` best passages of each question, best first.

    A question of several images is searched with each of them; a passage that several find counts once, by its best
    ranking score.

    Args:
        retriever: Has `retrieve`.
        images (`list`, *optional*): Of each question its image, a list of several, or `None`.
        words (`list[str]`): Of each question what is searched for by words, or `None`.
        options: Of `retriever.retrieve`: `where`, `channels`, ...; a `region` for all, or one for each question.
    """
    rows = [several(None if images is None else images[place]) for place in range(len(words))]
    asked = [image for row in rows for image in row or [None]]
    said = [text for row, text in zip(rows, words, strict=True) for _ in row or [None]]
    region = options.get("region")
    if is_column(region) and len(region) == len(rows) and any(part is None or is_column(part) for part in region):
        options["region"] = [part for row, part in zip(rows, region, strict=True) for _ in row or [None]]
    found = retriever.retrieve(asked if any(rows) else None, said, k=k, **options)
    bounds = pairwise(accumulate((len(row) or 1 for row in rows), initial=0))
    return [list(found[start]) if end - start == 1 else _best(found[start:end], k) for start, end in bounds]


def _best(found: Sequence[Sequence[Evidence]], k: int) -> list[Evidence]:
    best: dict[str, Evidence] = {}
    for passage in (passage for row in found for passage in row):
        if passage.id not in best or passage.ranking_score > best[passage.id].ranking_score:
            best[passage.id] = passage
    ranked = sorted(best.values(), key=lambda passage: -passage.ranking_score)[:k]
    return [replace(passage, rank=rank) for rank, passage in enumerate(ranked, start=1)]
