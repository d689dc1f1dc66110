"""The same questions while the knowledge base grows by passages that nobody asks for."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .evaluator import Evaluator
from .questions import AnswerFunction, Question, Reply, check_questions
from .report import GrowthPoint, GrowthReport
from .scoring import AnswerMetric


_WORD = re.compile(r"\w+")


def measure_growth(
    questions: Sequence[Question],
    closed_book: AnswerFunction,
    arm_among: Callable[[int], AnswerFunction],
    num_passages: int,
    factors: Sequence[int] = (1, 10, 100),
    folder: str | Path | None = None,
    metrics: Sequence[str] | Mapping[str, AnswerMetric | None] = ("exact_match",),
    batch_size: int = 8,
    settings: Mapping[str, Any] | None = None,
) -> GrowthReport:
    """Asks the same questions while the knowledge base grows by distractors.

    Args:
        questions (sequence of `Question`): What is asked at every size.
        closed_book (callable): Answers without evidence.
        arm_among (callable): Given a number of distractors, returns what answers with that many of them in the
            knowledge base. Called with growing numbers, and only for sizes that have questions to ask.
        num_passages (`int`): The original size.
        factors (`list[int]`): Sizes, as multiples of it; 1 is without distractors.
        folder, metrics, batch_size, settings: As for `Evaluator`; a killed run goes on. Say in `settings` which
            distractors these are.

    Raises:
        InvalidInputError: `factors` does not grow from 1 or more, or there is no passage; and what `Evaluator` raises.

    Example: an oracle that finds what it needs among few passages only.

    >>> questions = [Question(str(n), "Which colour?", ("red",)) for n in range(4)]
    >>> closed_book = lambda batch: ["blue" for question in batch]
    >>> arm_among = lambda count: lambda batch: ["red" if count < 50 else "blue" for question in batch]
    >>> report = measure_growth(questions, closed_book, arm_among, num_passages=10)
    >>> [(point.num_passages, point.accuracy.mean) for point in report.points]
    [(10, 1.0), (100, 0.0), (1000, 0.0)]
    """
    sizes = list(factors)
    if not sizes or sizes[0] < 1 or sizes != sorted(set(sizes)) or num_passages < 1:
        raise InvalidInputError(
            f"factors={factors!r} of {num_passages} passages: expected growing numbers from 1 on, and a passage."
        )
    arms: dict[str, AnswerFunction] = {"closed_book": closed_book}
    made = functools.cache(arm_among)  # at the first question: a size that is already answered costs nothing
    for factor in sizes:
        arms[f"x{factor}"] = partial(_ask_among, made, (factor - 1) * num_passages)
    asked = [(question.id, question.answers) for question in check_questions(questions)]  # may decide what distracts
    digest = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:16]
    among = {"num_passages": num_passages, "questions": digest}
    evaluator = Evaluator(arms, metrics, batch_size=batch_size, settings={**(settings or {}), **among})
    report = evaluator.run(questions, folder)
    hits = [name for name in report.arms[f"x{sizes[0]}"].retrieval if name.startswith("hit@")]
    hit = hits[-1] if hits else None  # of the deepest list
    points = []
    for factor in sizes:
        arm = report.arms[f"x{factor}"]
        assert arm.effect is not None  # only closed-book has none
        found = None if hit is None else arm.retrieval.get(hit)
        points.append(GrowthPoint(factor, factor * num_passages, arm.metrics[report.accuracy], found, arm.effect))
    accuracy = report.arms[report.baseline].metrics[report.accuracy]
    return GrowthReport(report.num_questions, report.accuracy, hit, accuracy, points)


def without_answers(
    distractors: Iterable[Mapping[str, Any]], questions: Iterable[Question]
) -> Iterator[Mapping[str, Any]]:
    """Leaves out passages whose text holds an accepted answer as whole words: they would not distract, but help.

    Args:
        distractors (iterable of `dict`): Passages with a `text`, read as they are needed.
        questions (iterable of `Question`): What will be asked. Where everything is "yes" or "2", nothing is left.

    Example:

    >>> questions = [Question("1", "Which colour?", ("red",))]
    >>> passages = [{"text": "A red flag."}, {"text": "It is rendered."}]
    >>> [passage["text"] for passage in without_answers(passages, questions)]
    ['It is rendered.']
    """
    answers = {_words(answer) for question in questions for answer in question.answers} - {()}
    lengths = sorted({len(answer) for answer in answers})
    for passage in distractors:
        words = _words(str(passage.get("text") or ""))
        phrases = (words[start : start + n] for n in lengths for start in range(len(words) - n + 1))
        if not any(phrase in answers for phrase in phrases):
            yield passage


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _ask_among(
    made: Callable[[int], AnswerFunction], num_distractors: int, questions: Sequence[Question]
) -> Sequence[Reply | str]:
    return made(num_distractors)(questions)
