"""Knows how an evaluation is told: as JSON for programs, as Markdown for people. Plain data and strings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..metrics.calibration import ReliabilityBin
from ..metrics.decisions import Abstention
from ..metrics.intervals import Interval


@dataclass(frozen=True)
class Calibration:
    """How far the confidence of an arm can be trusted.

    Attributes:
        ece: Expected calibration error over 15 bins; 0 is perfect.
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
    """What one answer cost on average.

    Attributes:
        seconds: Wall time, of the batch shared out among its questions.
        retrievals: Searches.
        tokens: Read and written by the reader; `None` if they were not counted.
    """

    seconds: float
    retrievals: float
    tokens: float | None


@dataclass(frozen=True)
class Effect:
    """An arm beside closed-book answers to the same questions; shares of all questions, with paired intervals.

    Attributes:
        rescue_rate: Wrong without evidence, right with it.
        harm_rate: Right without evidence, wrong with it.
        net_gain: The difference of the two.
        rescued_of_wrong, harmed_of_right: Among the questions that could be rescued or harmed; `None` if there were
            none.
    """

    rescue_rate: Interval
    harm_rate: Interval
    net_gain: Interval
    rescued_of_wrong: float | None
    harmed_of_right: float | None


@dataclass(frozen=True)
class Restraint:
    """What a policy's gate and its abstentions did.

    Attributes:
        abstention: Coverage, accuracy of the answers given, precision and recall of the abstentions.
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
        restraint: `None` if the arm neither has a gate nor abstained.
    """

    metrics: dict[str, Interval]
    by_kind: dict[str, dict[str, float]]
    retrieval: dict[str, Interval]
    effect: Effect | None
    calibration: Calibration | None
    cost: Cost
    restraint: Restraint | None = None


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
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def to_markdown(self) -> str:
        """A few short tables: answers, effect of the evidence, retrieval, what was held back, trust and cost."""
        return "\n".join(_markdown(self)) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `report.json`, `report.md` and `report.png` into a folder and returns their paths."""
        from .charts import arms_chart

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "report.json", folder / "report.md", folder / "report.png"]
        paths[0].write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        paths[1].write_text(self.to_markdown() + "\n![Answers per arm](report.png)\n", encoding="utf-8")
        arms_chart(self).save(paths[2])
        return paths


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, the first column to the left and the others to the right.

    Example:

    ```python
    >>> markdown_table(["arm", "n"], [["gold", "3"]])
    ['| arm | n |', '|---|---:|', '| gold | 3 |']

    ```
    """
    lines = [" | ".join(row) for row in [head, *rows]]
    return [f"| {lines[0]} |", "|---" + "|---:" * (len(head) - 1) + "|", *(f"| {line} |" for line in lines[1:])]


def percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def with_interval(interval: Interval, scale: float = 100) -> str:
    """A mean with the ends of its interval, as `12.3 (10.1–14.2)`."""
    mean = f"{scale * interval.mean:.1f}" if scale == 100 else f"{scale * interval.mean:.3f}"
    if math.isnan(interval.lower):
        return mean
    digits = 1 if scale == 100 else 3
    return f"{mean} ({scale * interval.lower:.{digits}f} to {scale * interval.upper:.{digits}f})"


def _markdown(report: EvaluationReport) -> Iterable[str]:
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
    kinds = sorted({kind for arm in arms.values() for kind in arm.by_kind})
    if len(kinds) > 1:
        counts = next(iter(arms.values())).by_kind
        yield from ("", f"`{report.accuracy}` per kind of question:", "")
        yield from markdown_table(
            ["arm", *(f"{kind or 'other'} ({counts[kind]['count']:.0f})" for kind in kinds)],
            [[name, *(percent(arm.by_kind[kind]["value"]) for kind in kinds)] for name, arm in arms.items()],
        )
    effects = {name: arm.effect for name, arm in arms.items() if arm.effect is not None}
    if effects:
        yield from ("", f"## What evidence did, beside {report.baseline}", "")
        yield from markdown_table(
            ["arm", "rescued", "harmed", "net gain", "rescued of wrong", "harmed of right"],
            [
                [name]
                + [with_interval(interval) for interval in (effect.rescue_rate, effect.harm_rate, effect.net_gain)]
                + [percent(effect.rescued_of_wrong), percent(effect.harmed_of_right)]
                for name, effect in effects.items()
            ],
        )
    figures = list(dict.fromkeys(figure for arm in arms.values() for figure in arm.retrieval))
    if figures:
        yield from ("", "## What stood in the evidence", "")
        yield from markdown_table(
            ["arm", *figures],
            [
                [name, *(percent(arm.retrieval[f].mean) if f in arm.retrieval else "–" for f in figures)]
                for name, arm in arms.items()
                if arm.retrieval
            ],
        )
    restrained = {name: arm.restraint for name, arm in arms.items() if arm.restraint is not None}
    if restrained:
        yield from ("", "## What was held back", "")
        yield from markdown_table(
            ["arm", "answered", "right of these", "abstentions that spared an error", "errors spared"]
            + ["searches saved", "AUROC of the gate"],
            [[name, *map(percent, _restraint(restraint))] for name, restraint in restrained.items()],
        )
    yield from ("", "## Trust and cost per question", "")
    yield from markdown_table(
        ["arm", "mean confidence", "ECE", "AUROC", "searches", "tokens", "seconds"],
        [[name, *_trust(arm.calibration), *_cost(arm.cost)] for name, arm in arms.items()],
    )


def _restraint(restraint: Restraint) -> list[float | None]:
    held = restraint.abstention
    return [held.coverage, held.accuracy, held.precision, held.recall, restraint.searches_saved, restraint.gate_auroc]


def _trust(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return ["–", "–", "–"]
    return [percent(calibration.mean_confidence), percent(calibration.ece), percent(calibration.auroc)]


def _cost(cost: Cost) -> list[str]:
    return [f"{cost.retrievals:.2f}", "–" if cost.tokens is None else f"{cost.tokens:.0f}", f"{cost.seconds:.3f}"]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
