"""An answer policy for one's own questions: fitted on most of them, measured on the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..evaluation.arms import model_arms
from ..evaluation.evaluator import Evaluator
from ..evaluation.questions import Question, check_questions
from ..evaluation.report import EvaluationReport
from ..evaluation.scoring import score_answers
from ..metrics.pseudo_relevance import relevance_from_answers
from ..pipelines.policy.answer_policy import AnswerPolicy
from ..pipelines.searching import find_evidence
from .policy_fitting import JudgedQuestion, fit_answer_policy


logger = logging.getLogger(__name__)

FEWEST = 30  # questions; below, thresholds are guesses
_ENOUGH_FOR_ISOTONIC = 300


@dataclass(frozen=True)
class FittedPolicy:
    """A policy, and what it is worth.

    Attributes:
        policy: Fitted on `num_fitted` questions.
        report: Of the others: closed-book, with what is found, and `guarded` by the policy.
    """

    policy: AnswerPolicy
    num_fitted: int
    report: EvaluationReport


def check_enough(questions: Sequence[Question]) -> None:
    """Refuses questions that no policy can be fitted to, before anything is loaded or asked.

    Raises:
        InvalidInputError: They are too few, or one is wrong.
    """
    check_questions(questions)
    if len(questions) < FEWEST:
        raise InvalidInputError(
            f"{len(questions)} questions are too few to fit a policy: expected {FEWEST} at least, better hundreds."
        )


def fit_policy(
    pipe: Any,
    questions: Sequence[Question],
    *,
    k: int | None = None,
    num_candidates: int | None = None,
    channels: Sequence[str] | None = None,
    metric: str = "exact_match",
    search_cost: float | None = None,
    wrong_cost: float = 1.0,
    num_readings: int = 1,
    measured_share: float = 0.25,
    batch_size: int = 8,
    seed: int = 0,
    **generate_kwargs: Any,
) -> FittedPolicy:
    """Fits a policy for a pipeline on questions with known answers, and measures it on those that it has not seen.

    A passage is relevant if it is one of the `gold_ids` of its question, or, for a question without them, if an
    accepted answer stands in it word for word. The questions must be of all kinds that will be asked, also those that
    the knowledge does not answer: see `fit_answer_policy`.

    Args:
        pipe: A pipeline with a knowledge base: `model`, `processor`, `retriever`.
        questions (`list[Question]`): Such as `questions_from` reads. Those of one `cluster`, else about one image
            file, go together.
        k (`int`, *optional*): Passages that are read, `config.num_passages` by default.
        num_candidates (`int`, *optional*): Passages that the policy looks at, by default twice as many as are read at
            once; never fewer than may be read.
        channels (`list[str]`, *optional*): As of `RavlmRetriever.retrieve`, and of the questions asked later.
        metric (`str`): Of `ANSWER_METRICS`, in 0..1; from 0.5 on an answer is right.
        search_cost, wrong_cost (`float`), num_readings (`int`): As of `fit_answer_policy`.
        measured_share (`float`): Of the questions, by which the policy is measured and not fitted.
        batch_size (`int`), seed (`int`): Of the questions, and of how they are drawn.
        generate_kwargs: Those that the policy will be used with, such as `max_new_tokens`.

    Raises:
        InvalidInputError: There is nothing to search, there are too few questions, or nothing to learn from them.
    """
    if pipe.retriever is None:
        raise InvalidInputError("There is no knowledge base, and a policy judges what is found. Give knowledge=.")
    if not 0 < measured_share < 1:
        raise InvalidInputError(f"measured_share={measured_share}: expected a share between 0 and 1, such as 0.25.")
    check_enough(questions)
    AnswerPolicy(num_readings=num_readings, num_candidates=num_candidates)  # refuses what cannot be, before a search
    k = pipe.model.config.num_passages if k is None else k
    searching: dict[str, Any] = {} if channels is None else {"channels": list(channels)}
    fitted, measured = split_questions(questions, measured_share, seed)
    depth = min(max(k * num_readings, 2 * k if num_candidates is None else num_candidates), len(pipe.retriever))
    judged = judged_questions(pipe, fitted, depth, metric, batch_size, **searching)
    policy = fit_answer_policy(
        pipe.model,
        pipe.processor,
        judged,
        k=k,
        search_cost=search_cost,
        wrong_cost=wrong_cost,
        num_readings=num_readings,
        calibration="isotonic" if len(judged) >= _ENOUGH_FOR_ISOTONIC else "temperature",
        batch_size=batch_size,
        seed=seed,
        **generate_kwargs,
    )
    names = ("closed_book", "retrieved", "guarded")
    options = {"k": k, "retrieve_options": searching, "policy": policy, "seed": seed, **generate_kwargs}
    arms = model_arms(pipe.model, pipe.processor, pipe.retriever, names, **options)
    report = Evaluator(arms, (metric,), batch_size=batch_size, seed=seed).run(measured)
    _warn_of_loss(report, metric)
    return FittedPolicy(policy, len(fitted), report)


def _warn_of_loss(report: EvaluationReport, metric: str) -> None:
    """Says so where fewer answers are right than without a policy, those that it withholds counted as they were read.

    With few questions, or one good passage among many, a critic may drop what it should keep; a gate may save searches
    that are worth more than their cost.
    """
    guarded, plain = report.arms["guarded"], report.arms["retrieved"].metrics[metric].mean
    read = guarded.metrics[metric].mean
    if guarded.policy is not None:
        held = guarded.policy.abstention
        read += (1 - held.coverage) * (1 - (held.precision or 0.0))
    if read < plain - 1e-6:
        logger.warning(
            "With this policy fewer answers are right than without one (%.3f, and %.3f of %d questions): it drops "
            "passages that answer, or does not search for them. Give more questions, fewer candidates "
            "(`num_candidates`, `num_readings`), or a lower cost of a search.",
            *(read, plain, report.num_questions),
        )


def split_questions(
    questions: Sequence[Question], share: float, seed: int = 0
) -> tuple[list[Question], list[Question]]:
    """The questions in two parts, the second of about that share, with every cluster in one of them.

    >>> questions = [Question(str(n), "?", ("!",), cluster=str(n // 2)) for n in range(8)]
    >>> fitted, measured = split_questions(questions, 0.25)
    >>> len(fitted), len(measured), {one.cluster for one in fitted} & {one.cluster for one in measured}
    (6, 2, set())
    """
    clusters: dict[str, list[Question]] = {}
    for question in questions:
        clusters.setdefault(_cluster(question), []).append(question)
    names = sorted(clusters)
    Random(seed).shuffle(names)
    measured: list[Question] = []
    while names and len(measured) < share * len(questions):
        measured += clusters[names.pop()]
    if not names:
        why = "they are all about one image or of one cluster" if len(clusters) == 1 else f"measured_share={share}"
        raise InvalidInputError(
            f"Of {len(questions)} questions none is left to fit to: {why}. Give questions about several images, and a "
            "smaller share to measure with."
        )
    return [question for name in names for question in clusters[name]], measured


def judged_questions(
    pipe: Any, questions: Sequence[Question], depth: int, metric: str, batch_size: int = 8, **searching: Any
) -> list[JudgedQuestion]:
    """Questions with the `depth` best passages that are found for each, and which of them are relevant."""
    judged = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        images = [question.image for question in batch]
        found = find_evidence(pipe.retriever, images, [question.question for question in batch], depth, **searching)
        for question, passages in zip(batch, found, strict=True):
            judged.append(
                JudgedQuestion(
                    question=question.question,
                    image=question.image,
                    found=passages,
                    relevant=_relevant(question, passages),
                    is_right=partial(_score, metric, question),
                    cluster=_cluster(question),
                )
            )
    return judged


def _relevant(question: Question, passages: Sequence[Any]) -> list[bool]:
    if question.gold_ids:
        return [passage.id in question.gold_ids for passage in passages]
    texts = [[passage.text or "" for passage in passages]]
    marks: np.ndarray = relevance_from_answers(texts, [question.answers], match="word")
    return [bool(mark) for mark in marks[0]]


def _score(metric: str, question: Question, text: str) -> float:
    return score_answers(metric, [text], [question]).value


def _cluster(question: Question) -> str:
    if question.cluster is not None:
        return question.cluster
    return f"image {question.image}" if isinstance(question.image, str) else f"question {question.id}"
