"""The same questions asked closed-book, with evidence, and in any other arm, and how the arms compare."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError, KnowledgeBaseLockedError
from ..metrics.answers import normalize_answer
from ..metrics.calibration import auroc, expected_calibration_error, reliability_bins
from ..metrics.decisions import abstention
from ..metrics.intervals import Interval, bootstrap_interval
from ..metrics.retrieval_effect import retrieval_effect
from ..saving.durable import exclusive_lock
from .finished_replies import FinishedReplies, FinishedReply
from .questions import AnswerFunction, Question, Reply, check_questions
from .report import ArmReport, Calibration, Cost, Effect, EvaluationReport, PolicyEffect
from .scoring import ANSWER_METRICS, AnswerMetric, Scores, retrieval_scores, score_answers


logger = logging.getLogger(__name__)

REPLIES_FILE = "replies.jsonl"
_RIGHT = 0.5  # from this score on an answer counts as right
_MANY = 0.1  # of the replies: more than these is said


@dataclass
class Evaluator:
    """Asks the same questions in several arms and reports how they compare, always beside closed-book.

    Args:
        arms (`dict[str, callable]`): By name, functions from a list of `Question` to as many `Reply` (or strings). One
            of them must be `baseline`.
        metrics (`list[str]` or `dict[str, callable]`): Names of `ANSWER_METRICS`, or functions
            `(prediction, question) -> score`, also mixed (`{"exact_match": None, "mine": my_metric}`). The first
            decides what is right (a score of 0.5 or more) and must be in 0..1.
        baseline (`str`): The arm without evidence.
        batch_size (`int`): Questions per call of an arm; also how much is lost when the run is killed.
        ks (`list[int]`): For the figures of retrieval.
        num_resamples, seed (`int`): Of the bootstrap intervals.
        settings (`dict`): Whatever decides the replies (fingerprint of the model, number of passages): written beside
            them, and a folder of other settings is not continued.

    Raises:
        InvalidInputError: There is no such baseline, no metric, or one that is not known.

    Example:

    >>> questions = [Question(str(n), f"What is {n} + 1?", (str(n + 1),)) for n in range(4)]
    >>> closed_book = lambda batch: ["2" for question in batch]
    >>> retrieved = lambda batch: [Reply(question.answers[0], num_retrievals=1) for question in batch]
    >>> report = Evaluator({"closed_book": closed_book, "retrieved": retrieved}).run(questions)
    >>> report.arms["retrieved"].effect.rescue_rate.mean, report.arms["retrieved"].effect.harm_rate.mean
    (0.75, 0.0)
    """

    arms: Mapping[str, AnswerFunction]
    metrics: Sequence[str] | Mapping[str, AnswerMetric | None] = ("exact_match", "token_f1")
    baseline: str = "closed_book"
    batch_size: int = 8
    ks: Sequence[int] = (1, 5, 10)
    num_resamples: int = 1000
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.baseline not in self.arms:
            raise InvalidInputError(
                f"There is no arm {self.baseline!r}; there is {', '.join(self.arms) or 'none'}. Figures with evidence "
                "are only reported beside those without: add that arm, or name it with `baseline`."
            )
        if not self.metrics or self.batch_size < 1:
            raise InvalidInputError("Pass at least one metric and a batch_size of at least 1.")
        own = {name for name, metric in self.metrics.items() if metric} if isinstance(self.metrics, Mapping) else set()
        if unknown := [name for name in self.metrics if name not in ANSWER_METRICS and name not in own]:
            raise InvalidInputError(
                f"The metric {unknown[0]!r} is not known. Choose of {', '.join(ANSWER_METRICS)}, or pass a function."
            )

    def run(self, questions: Sequence[Question], folder: str | Path | None = None) -> EvaluationReport:
        """Asks all questions in all arms, the baseline first, and reports.

        Args:
            questions (sequence of `Question`): Read batch by batch, so that images can be decoded when they are
            needed.
            folder (`str` or `Path`, *optional*): Keeps the replies (not the report); those that are there already are
                not asked for again.

        Raises:
            InvalidInputError: A question has no answer or shares its id, an arm returned something else than a reply
                per question, a metric does not fit, or the folder is of another run or in use.
        """
        asked = check_questions(questions)
        with _locked(folder):
            finished = FinishedReplies(None if folder is None else Path(folder) / REPLIES_FILE, self.settings)
            names = dict.fromkeys([self.baseline, *self.arms])
            items = {name: self._ask(name, questions, finished) for name in names}
        scores = {name: self._score([item.reply for item in of_arm], asked) for name, of_arm in items.items()}
        accuracy = next(iter(scores[self.baseline]))
        baseline = scores[self.baseline][accuracy]
        for name, of_arm in scores.items():
            texts = [item.reply.text for item in items[name]]
            _tell_of_sentences(name, accuracy, texts, asked, of_arm[accuracy].per_question)
        values = np.concatenate([of_arm[accuracy].per_question for of_arm in scores.values()])
        if ((values < 0) | (values > 1)).any():
            raise InvalidInputError(
                f"The first metric decides what is right and must be in 0..1; {accuracy!r} is not."
            )
        arms = {
            name: self._report(asked, items[name], scores[name], None if name == self.baseline else baseline)
            for name in self.arms
        }
        return EvaluationReport(len(asked), self.baseline, accuracy, dict(self.settings), arms)

    def _ask(self, name: str, questions: Sequence[Question], finished: FinishedReplies) -> list[FinishedReply]:
        from transformers.utils.logging import tqdm

        found: list[FinishedReply] = []
        for start in tqdm(range(0, len(questions), self.batch_size), desc=name):
            batch = questions[start : start + self.batch_size]
            known = [finished.find(name, question) for question in batch]
            new: list[FinishedReply] = []
            if pending := [question for question, item in zip(batch, known, strict=True) if item is None]:
                new = self._answer(name, pending)
                finished.add(new)
            found += [item or new.pop(0) for item in known]
        return found

    def _answer(self, name: str, questions: Sequence[Question]) -> list[FinishedReply]:
        start = time.perf_counter()
        replies = list(self.arms[name](questions))
        seconds = (time.perf_counter() - start) / len(questions)
        if len(replies) != len(questions):
            raise InvalidInputError(f"The arm {name!r} gave {len(replies)} replies to {len(questions)} questions.")
        return [
            FinishedReply(name, question.id, question.digest(), _checked_reply(reply, name, question), seconds)
            for question, reply in zip(questions, replies, strict=True)
        ]

    def _score(self, replies: Sequence[Reply], questions: Sequence[Question]) -> dict[str, Scores]:
        metrics = self.metrics if isinstance(self.metrics, Mapping) else dict.fromkeys(self.metrics)
        texts = [reply.text for reply in replies]
        return {name: score_answers(name, texts, questions, metric) for name, metric in metrics.items()}

    def _report(
        self,
        questions: Sequence[Question],
        items: Sequence[FinishedReply],
        scores: Mapping[str, Scores],
        baseline: Scores | None,
    ) -> ArmReport:
        replies = [item.reply for item in items]
        values = next(iter(scores.values())).per_question
        clusters = [question.id if question.cluster is None else question.cluster for question in questions]
        interval = partial(bootstrap_interval, clusters=clusters, num_resamples=self.num_resamples, seed=self.seed)
        tokens = [reply.num_tokens for reply in replies if reply.num_tokens is not None]
        said = [reply if reply.withheld is None else replace(reply, text=reply.withheld) for reply in replies]
        if_all_said = values if said == replies else next(iter(self._score(said, questions).values())).per_question
        return ArmReport(
            metrics={
                name: interval(score.per_question) if score.is_mean else Interval(score.value, math.nan, math.nan)
                for name, score in scores.items()
            },
            by_kind=_by([question.kind for question in questions], values),
            by_split=_by([question.split for question in questions], values),
            retrieval={name: interval(found) for name, found in retrieval_scores(replies, questions, self.ks).items()},
            effect=None if baseline is None else _effect(baseline.per_question, values, interval),
            calibration=_calibration(replies, if_all_said),
            cost=Cost(
                seconds=float(np.mean([item.seconds for item in items])),
                retrievals=float(np.mean([reply.num_retrievals for reply in replies])),
                tokens=float(np.mean(tokens)) if len(tokens) == len(replies) else None,
            ),
            num_broken=sum(reply.error is not None for reply in replies),
            policy=_policy_effect(replies, if_all_said, None if baseline is None else baseline.per_question),
        )


def _tell_of_sentences(
    arm: str, metric: str, texts: Sequence[str], questions: Sequence[Question], values: npt.NDArray[np.float64]
) -> None:
    """Warns where replies count as wrong and hold an accepted answer: a reader that answers in sentences."""

    def holds(text: str, question: Question) -> bool:
        words = f" {normalize_answer(text)} "
        return any(f" {answer} " in words for answer in filter(None, map(normalize_answer, question.answers)))

    pairs = zip(texts, questions, values, strict=True)
    number = sum(value < _RIGHT and holds(text, question) for text, question, value in pairs)
    if number > _MANY * len(texts):
        logger.warning(
            "%s: %d of %d replies hold an accepted answer and count as wrong by %s. Ask the reader for the answer "
            "alone (system_message, --system_message), or decide by token_f1.",
            *(arm, number, len(texts), metric),
        )


def _by(names: Sequence[str], values: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """How many questions have each name, and their mean."""
    marks = {name: [other == name for other in names] for name in sorted(set(names))}
    return {name: {"count": float(sum(mark)), "value": float(values[mark].mean())} for name, mark in marks.items()}


def _effect(
    without: npt.NDArray[np.float64], with_evidence: npt.NDArray[np.float64], interval: Callable[[Any], Interval]
) -> Effect:
    before, after = without >= _RIGHT, with_evidence >= _RIGHT
    effect = retrieval_effect(before, after)
    return Effect(
        rescue_rate=interval(after & ~before),
        harm_rate=interval(before & ~after),
        net_gain=interval(after.astype(float) - before),
        rescued_of_wrong=effect.rescued_of_wrong,
        harmed_of_right=effect.harmed_of_right,
    )


def _calibration(replies: Sequence[Reply], values: npt.NDArray[np.float64]) -> Calibration | None:
    asked = [reply.error is None for reply in replies]
    confidences = [reply.confidence for reply in replies if reply.confidence is not None]
    if len(confidences) < sum(asked) or not confidences:
        return None
    values = values[asked]
    area = auroc(confidences, values >= _RIGHT)
    return Calibration(
        ece=expected_calibration_error(confidences, values),
        auroc=None if math.isnan(area) else area,
        mean_confidence=float(np.mean(confidences)),
        bins=[bin for bin in reliability_bins(confidences, values) if bin.count],
    )


def _policy_effect(
    replies: Sequence[Reply], values: npt.NDArray[np.float64], without: npt.NDArray[np.float64] | None
) -> PolicyEffect | None:
    needs = [reply.need for reply in replies if reply.need is not None]
    if not needs and all(reply.withheld is None for reply in replies):
        return None
    area = math.nan if without is None or len(needs) < len(replies) else auroc(needs, without < _RIGHT)
    return PolicyEffect(
        abstention([reply.withheld is None for reply in replies], values >= _RIGHT),
        searches_saved=float(np.mean([reply.num_retrievals == 0 for reply in replies])),
        gate_auroc=None if math.isnan(area) else area,
    )


def _checked_reply(reply: Reply | str, arm: str, question: Question) -> Reply:
    reply = Reply(reply) if isinstance(reply, str) else reply
    if not isinstance(reply, Reply) or not isinstance(reply.text, str):
        raise InvalidInputError(
            f"The arm {arm!r} answered question {question.id!r} by {reply!r}; expected a Reply or a string."
        )
    if reply.confidence is not None and not 0 <= reply.confidence <= 1:
        raise InvalidInputError(
            f"The arm {arm!r} answered question {question.id!r} with the confidence {reply.confidence}, not in 0..1."
        )
    return reply


@contextmanager
def _locked(folder: str | Path | None) -> Iterator[None]:
    """Keeps a second run out of the folder."""
    with ExitStack() as stack:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(exclusive_lock(Path(folder) / "lock", timeout_seconds=0))
            except KnowledgeBaseLockedError:
                raise InvalidInputError(
                    f"{folder}: another evaluation is writing there, or the disk knows no locks. Pass another folder."
                ) from None
        yield
