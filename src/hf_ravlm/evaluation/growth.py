"""Knows how answers fare when the knowledge base grows: the same questions among 1, 10 and 100 times the passages.

Papers measure on a knowledge base that holds little but what is asked for; in use it holds everything else too. The
curve over its size is what tells whether a system survives that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..metrics.intervals import Interval
from .evaluator import Evaluator
from .questions import AnswerFunction, Question, Reply, check_questions
from .report import Effect, EvaluationReport, markdown_table, percent, with_interval
from .scoring import AnswerMetric


_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class GrowthPoint:
    """The answers with a knowledge base of one size.

    Attributes:
        factor, num_passages: The size, as a multiple of the original one and in passages.
        accuracy: Of the first metric.
        hit: How often a gold passage was found; `None` where nobody knows them.
        effect: Beside closed-book.
    """

    factor: int
    num_passages: int
    accuracy: Interval
    hit: Interval | None
    effect: Effect


@dataclass(frozen=True)
class GrowthReport:
    """The curve.

    Attributes:
        num_questions: How many were asked at every size.
        accuracy: The name of the metric.
        hit: The name of the hit rate, such as `"hit@5"`; `None` where nobody knows the gold passages.
        closed_book: The accuracy without evidence, which does not depend on the size.
        points: In the order of their size.
    """

    num_questions: int
    accuracy: str
    hit: str | None
    closed_book: Interval
    points: list[GrowthPoint]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        table = markdown_table(
            ["passages", self.accuracy, self.hit or "hit", "rescued", "harmed", "net gain"],
            [
                [f"{point.num_passages:,} ({point.factor}×)", with_interval(point.accuracy)]
                + [percent(None if point.hit is None else point.hit.mean)]
                + [with_interval(i) for i in (point.effect.rescue_rate, point.effect.harm_rate, point.effect.net_gain)]
                for point in self.points
            ],
        )
        closed = f"Closed-book: {with_interval(self.closed_book)}. Percentages, with 95 % bootstrap intervals."
        head = f"# {self.num_questions} questions in a growing knowledge base"
        return "\n".join([head, "", *table, "", closed]) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `growth.json`, `growth.md` and `growth.png` into a folder and returns their paths."""
        from .charts import growth_chart

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "growth.json", folder / "growth.md", folder / "growth.png"]
        paths[0].write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        paths[1].write_text(self.to_markdown() + "\n![Accuracy over passages](growth.png)\n", encoding="utf-8")
        growth_chart(self).save(paths[2])
        return paths


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

    ```python
    >>> questions = [Question(str(n), "Which colour?", ("red",)) for n in range(4)]
    >>> report = measure_growth(
    ...     questions,
    ...     closed_book=lambda batch: ["blue" for question in batch],
    ...     arm_among=lambda count: lambda batch: ["red" if count < 50 else "blue" for question in batch],
    ...     num_passages=10,
    ... )
    >>> [(point.num_passages, point.accuracy.mean) for point in report.points]
    [(10, 1.0), (100, 0.0), (1000, 0.0)]

    ```
    """
    sizes = list(factors)
    if not sizes or sizes[0] < 1 or sizes != sorted(set(sizes)) or num_passages < 1:
        raise InvalidInputError(
            f"factors={factors!r} of {num_passages} passages: expected growing numbers from 1 on, and a passage."
        )
    arms: dict[str, AnswerFunction] = {"closed_book": closed_book}
    for factor in sizes:
        arms[f"x{factor}"] = _when_asked(arm_among, (factor - 1) * num_passages)
    among = {"num_passages": num_passages, "questions": _digest(questions)}
    evaluator = Evaluator(arms, metrics, batch_size=batch_size, settings={**(settings or {}), **among})
    return _curve(evaluator.run(questions, folder), sizes, num_passages)


def without_answers(
    distractors: Iterable[Mapping[str, Any]], questions: Iterable[Question]
) -> Iterator[Mapping[str, Any]]:
    """Leaves out passages whose text holds an accepted answer as whole words: they would not distract, but help.

    Args:
        distractors (iterable of `dict`): Passages with a `text`, read as they are needed.
        questions (iterable of `Question`): What will be asked. Where everything is "yes" or "2", nothing is left.

    Example:

    ```python
    >>> questions = [Question("1", "Which colour?", ("red",))]
    >>> passages = [{"text": "A red flag."}, {"text": "It is rendered."}]
    >>> [passage["text"] for passage in without_answers(passages, questions)]
    ['It is rendered.']

    ```
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


def _digest(questions: Sequence[Question]) -> str:
    """Of ids and answers, which may decide what distracts."""
    asked = [(question.id, question.answers) for question in check_questions(questions)]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:16]


def _when_asked(arm_among: Callable[[int], AnswerFunction], num_distractors: int) -> AnswerFunction:
    """The arm among so many distractors, made at its first question."""
    made: list[AnswerFunction] = []

    def answer(questions: Sequence[Question]) -> Sequence[Reply | str]:
        if not made:
            made.append(arm_among(num_distractors))
        return made[0](questions)

    return answer


def _curve(report: EvaluationReport, factors: Sequence[int], num_passages: int) -> GrowthReport:
    first = report.arms[f"x{factors[0]}"].retrieval
    hits = [name for name in first if name.startswith("hit@")]
    hit = hits[-1] if hits else None  # of the deepest list
    points = []
    for factor in factors:
        arm = report.arms[f"x{factor}"]
        effect = arm.effect
        if effect is None:
            raise AssertionError("only closed-book has no effect")
        points.append(
            GrowthPoint(
                factor,
                factor * num_passages,
                arm.metrics[report.accuracy],
                None if hit is None else arm.retrieval.get(hit),
                effect,
            )
        )
    closed_book = report.arms[report.baseline].metrics[report.accuracy]
    return GrowthReport(report.num_questions, report.accuracy, hit, closed_book, points)
