"""What an evaluation found, and how it is written: JSON for programs, Markdown and charts for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..metrics.calibration import ReliabilityBin
from ..metrics.decisions import Abstention
from ..metrics.intervals import Interval
from .charts import arms_chart, growth_chart


@dataclass(frozen=True)
class Calibration:
    """How far the confidence of an arm can be trusted.

    Attributes:
        ece: Expected calibration error over 15 bins, 0..1; 0 is perfect.
        auroc: How often a right answer is surer than a wrong one; `None` if all are right or all wrong.
        mean_confidence: Beside the accuracy of the arm.
        bins: Those that hold a question.
    """

    ece: float
    auroc: float | None
    mean_confidence: float
    bins: list[ReliabilityBin] = field(repr=False)


@dataclass(frozen=True)
class Cost:
    """What one answer cost on average: seconds, searches, and tokens read and written (`None` if not counted).

    The seconds are the wall time of a batch over its number of questions.
    """

    seconds: float
    retrievals: float
    tokens: float | None


@dataclass(frozen=True)
class Effect:
    """An arm beside closed-book: the figures of `metrics.RetrievalEffect`, the rates with paired intervals."""

    rescue_rate: Interval
    harm_rate: Interval
    net_gain: Interval
    rescued_of_wrong: float | None
    harmed_of_right: float | None


@dataclass(frozen=True)
class PolicyEffect:
    """What a policy's gate and its abstentions did.

    Attributes:
        searches_saved: The share of the questions that were answered without a search.
        gate_auroc: How often the gate asked more urgently for a search where the closed-book answer was wrong than
            where it was right; `None` without a gate, or if all were right or all wrong.
    """

    abstention: Abstention
    searches_saved: float
    gate_auroc: float | None


@dataclass(frozen=True)
class ArmReport:
    """One way of answering: closed-book, with what was retrieved, with the gold passages, and so on.

    Attributes:
        metrics: Per metric its value and interval. BLEU has no interval (its ends are `None`).
        by_kind: Per kind of question, how many there are and the first metric on them.
        retrieval: How good the evidence was, if there was any; see `retrieval_scores`.
        effect: Beside closed-book; `None` for closed-book itself.
        calibration: `None` if the arm gives no confidence. Of withheld answers, too.
        cost: Per question.
        policy: `None` if the arm neither has a gate nor abstained.
        num_broken: Questions that could not be asked, such as for a broken image; they count as answered wrongly.
        by_split: As `by_kind`, per split, such as `"unseen_question"` and `"unseen_entity"`.
    """

    metrics: dict[str, Interval]
    by_kind: dict[str, dict[str, float]]
    retrieval: dict[str, Interval]
    effect: Effect | None
    calibration: Calibration | None
    cost: Cost
    policy: PolicyEffect | None = None
    num_broken: int = 0
    by_split: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def harmonic_mean(self) -> float | None:
        """Of the first metric over the splits, which InfoSeek ranks by; `None` with fewer than two."""
        values = [found["value"] for found in self.by_split.values()]
        return None if len(values) < 2 else len(values) / sum(1 / max(value, 1e-12) for value in values)


@dataclass(frozen=True)
class EvaluationReport:
    """What an `Evaluator` found.

    Attributes:
        num_questions: How many were asked in every arm.
        baseline: The name of the closed-book arm.
        accuracy: The first metric, which decides what is right.
        settings: As they were passed to the evaluator.
        arms: By name, in the order in which they were passed.
    """

    num_questions: int
    baseline: str
    accuracy: str
    settings: dict[str, Any]
    arms: dict[str, ArmReport]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what is not a number is `None`."""
        record = {name: _plain(value) for name, value in asdict(self).items()}
        for name, arm in self.arms.items():
            record["arms"][name]["harmonic_mean"] = arm.harmonic_mean
        return record

    def to_markdown(self) -> str:
        """A few short tables: answers, effect of the evidence, retrieval, abstentions, trust and cost."""
        sections = (_answer_lines, _effect_lines, _retrieval_lines, _policy_lines, _trust_lines)
        return "\n".join(line for section in sections for line in section(self)) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `report.json`, `report.md` and `report.png` into a folder and returns their paths."""
        record = self.to_dict()
        return _write(folder, "report", record, self.to_markdown(), arms_chart(record), "Answers per arm")


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
    """The accuracy over the size of the knowledge base.

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
        """As plain JSON values; what is not a number is `None`."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def to_markdown(self) -> str:
        """One table, a row per size."""
        rows = []
        for point in self.points:
            hit = percent(None if point.hit is None else point.hit.mean)
            size = f"{point.num_passages:,} ({point.factor}×)"
            rows.append([size, with_interval(point.accuracy), hit, *_rates(point.effect)])
        head = ["passages", self.accuracy, self.hit or "hit", "rescued", "harmed", "net gain"]
        title = f"# {self.num_questions} questions in a growing knowledge base"
        closed = f"Closed-book: {with_interval(self.closed_book)}. Percentages, with 95 % bootstrap intervals."
        return "\n".join([title, "", *markdown_table(head, rows), "", closed]) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `growth.json`, `growth.md` and `growth.png` into a folder and returns their paths."""
        record = self.to_dict()
        return _write(folder, "growth", record, self.to_markdown(), growth_chart(record), "Accuracy over passages")


def _write(
    folder: str | Path, name: str, record: dict[str, Any], text: str, chart: Image.Image, label: str
) -> list[Path]:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "png")]
    paths[0].write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(f"{text}\n![{label}]({name}.png)\n", encoding="utf-8")
    chart.save(paths[2])
    return paths


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, the first column to the left and the others to the right.

    >>> markdown_table(["arm", "n"], [["gold", "3"]])
    ['| arm | n |', '|---|---:|', '| gold | 3 |']
    """
    lines = [" | ".join(row) for row in [head, *rows]]
    return [f"| {lines[0]} |", "|---" + "|---:" * (len(head) - 1) + "|", *(f"| {line} |" for line in lines[1:])]


def percent(value: float | None) -> str:
    """A share as `12.3`, a dash for what is not known."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def with_interval(interval: Interval, scale: float = 100) -> str:
    """A mean with the ends of its interval, as `12.3 (10.1 to 14.2)`."""
    mean, lower, upper = (f"{scale * end:.{1 if scale == 100 else 3}f}" for end in astuple(interval))
    return mean if math.isnan(interval.lower) else f"{mean} ({lower} to {upper})"


def _rates(effect: Effect) -> list[str]:
    return [with_interval(rate) for rate in (effect.rescue_rate, effect.harm_rate, effect.net_gain)]


def _answer_lines(report: EvaluationReport) -> Iterable[str]:
    arms = report.arms
    names = list(next(iter(arms.values())).metrics)
    yield f"# Evaluation on {report.num_questions} questions"
    yield ""
    yield (
        f"Right is what `{report.accuracy}` calls right. Figures are percentages, CIDEr-D apart; in brackets the 95 % "
        "bootstrap interval."
    )
    yield from ("", "## Answers", "")
    yield from markdown_table(
        ["arm", *names],
        [
            [name, *(with_interval(arm.metrics[m], 1 if m == "cider_d" else 100) for m in names)]
            for name, arm in arms.items()
        ],
    )
    if num_broken := max(arm.num_broken for arm in arms.values()):
        yield from (
            "",
            f"{num_broken} of the questions could not be asked and count as answered wrongly in every arm.",
        )
    yield from _part_lines(f"`{report.accuracy}` per kind of question:", {n: arm.by_kind for n, arm in arms.items()})
    splits = {name: arm.by_split for name, arm in arms.items()}
    means = {name: arm.harmonic_mean for name, arm in arms.items()}
    yield from _part_lines(f"`{report.accuracy}` per split:", splits, means)


def _part_lines(
    title: str, parts: Mapping[str, dict[str, dict[str, float]]], means: Mapping[str, float | None] | None = None
) -> Iterable[str]:
    """A table of the arms over parts of the questions, if there is more than one part."""
    first = next(iter(parts.values()))
    if len(first) < 2:
        return
    yield from ("", title, "")
    head = ["arm", *(f"{part or 'other'} ({found['count']:.0f})" for part, found in first.items())]
    rows = [[name, *(percent(of_arm[part]["value"]) for part in first)] for name, of_arm in parts.items()]
    if means is not None:
        head.append("harmonic mean")
        rows = [[*row, percent(means[row[0]])] for row in rows]
    yield from markdown_table(head, rows)


def _effect_lines(report: EvaluationReport) -> list[str]:
    rows = [
        [name, *_rates(arm.effect), percent(arm.effect.rescued_of_wrong), percent(arm.effect.harmed_of_right)]
        for name, arm in report.arms.items()
        if arm.effect is not None
    ]
    head = ["arm", "rescued", "harmed", "net gain", "rescued of wrong", "harmed of right"]
    return _section(f"What evidence did, beside {report.baseline}", head, rows)


def _retrieval_lines(report: EvaluationReport) -> list[str]:
    figures = list(dict.fromkeys(figure for arm in report.arms.values() for figure in arm.retrieval))
    rows = [
        [name, *(percent(arm.retrieval[f].mean) if f in arm.retrieval else "–" for f in figures)]
        for name, arm in report.arms.items()
        if arm.retrieval
    ]
    return _section("What stood in the evidence", ["arm", *figures], rows)


def _policy_lines(report: EvaluationReport) -> list[str]:
    rows = []
    for name, arm in report.arms.items():
        if arm.policy is not None:
            held = arm.policy.abstention
            figures = [held.coverage, held.accuracy, held.precision, held.recall]
            rows.append([name, *map(percent, [*figures, arm.policy.searches_saved, arm.policy.gate_auroc])])
    head = ["arm", "answered", "right of these", "abstentions that spared an error", "errors spared"]
    return _section("What was held back", [*head, "searches saved", "AUROC of the gate"], rows)


def _trust_lines(report: EvaluationReport) -> list[str]:
    rows = []
    for name, arm in report.arms.items():
        known, cost = arm.calibration, arm.cost
        trust = ["–"] * 3 if known is None else [percent(v) for v in (known.mean_confidence, known.ece, known.auroc)]
        tokens = "–" if cost.tokens is None else f"{cost.tokens:.0f}"
        rows.append([name, *trust, f"{cost.retrievals:.2f}", tokens, f"{cost.seconds:.3f}"])
    head = ["arm", "mean confidence", "ECE", "AUROC", "searches", "tokens", "seconds"]
    return _section("Trust and cost per question", head, rows)


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", f"## {title}", "", *markdown_table(head, rows)] if rows else []


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
