"""Fitting of an `AnswerPolicy` on questions with known answers: critic, then gate, then confidence.

Calibration and thresholds come from heads fitted on other folds than the questions that they judge; the heads that are
kept are fitted on all questions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InvalidInputError
from ..metrics.calibration import auroc, fit_isotonic, fit_temperature
from ..metrics.decisions import best_threshold, withholding_threshold
from ..pipelines.answering import read_with_confidence
from ..pipelines.policy.answer_policy import AnswerPolicy
from ..pipelines.policy.decision_heads import (
    ANSWER_FEATURES,
    DRAFT_FEATURES,
    PASSAGE_FEATURES,
    DecisionHead,
    stack_features,
)
from ..pipelines.policy.features import passage_features, quoting_features, word_shares
from ..pipelines.policy.steps import columns_of, draft_features, read_in_turns


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedQuestion:
    """A question whose answer can be judged, with the passages that were found for it.

    Attributes:
        question, image: What is asked.
        found: Passages, best first: as many as the policy is to look at.
        relevant: Whether each passage is about the question; see `relevance_from_ids` and `relevance_from_answers` of
            `hf_ravlm.metrics`.
        is_right: Gives an answer 0..1; it is right from 0.5 on.
        cluster: Questions of one cluster (about one image, say) stay in one fold.
    """

    question: str
    image: Any
    found: Sequence[Any]
    relevant: Sequence[bool]
    is_right: Callable[[str], float]
    cluster: str | None = None


def counterfactual_labels(
    loss_without: Sequence[float] | np.ndarray,
    loss_with: Sequence[float] | np.ndarray,
    margin: float = 0.0,
    temperature: float | None = None,
) -> np.ndarray:
    """Whether evidence helped each question, in 0..1: the labels of a gate, `(Q,)`.

    `1[loss_with + margin < loss_without]`, or softly `sigmoid((loss_without - loss_with - margin) / temperature)`.
    Where the two losses are equal, the hard label is 0: the search changed nothing.

    Args:
        loss_without, loss_with (`(Q,)`): Of the closed-book answer and of the one with evidence: negative
            log-likelihoods, or one minus a score.
        margin (`float`): How much better evidence must be, such as the price of a search.
        temperature (`float`, *optional*): Of the soft labels; `None` for hard ones.

    Raises:
        InvalidInputError: The two differ in shape, a loss is NaN, or the temperature is not positive.

    Rescued, harmed, right anyway:

    >>> counterfactual_labels([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]).tolist()
    [1.0, 0.0, 0.0]
    >>> counterfactual_labels([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], temperature=0.5).round(2).tolist()
    [0.88, 0.12, 0.5]
    """
    without, with_evidence = np.asarray(loss_without, np.float64), np.asarray(loss_with, np.float64)
    if without.ndim != 1 or without.shape != with_evidence.shape or np.isnan(without + with_evidence).any():
        raise InvalidInputError(
            f"Expected two losses per question, none of them NaN; came {without.shape} and {with_evidence.shape}."
        )
    if temperature is None:
        return (with_evidence + margin < without).astype(np.float64)
    if temperature <= 0:
        raise InvalidInputError(f"temperature={temperature} must be positive, or None for hard labels.")
    return 1 / (1 + np.exp(-(without - with_evidence - margin) / temperature))


def fit_decision_head(
    features: Mapping[str, torch.Tensor],
    labels: Sequence[float] | np.ndarray | torch.Tensor,
    names: Sequence[str] | None = None,
    hidden_dim: int = 0,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> DecisionHead:
    """A `DecisionHead` fitted by cross-entropy on all rows at once, with L-BFGS.

    Args:
        features (`dict[str, torch.Tensor]`): Each `(N,)`.
        labels (`(N,)`): In 0..1.
        names (`list[str]`, *optional*): Of the features to use; all by default.
        hidden_dim (`int`): 0 fits a logistic regression.
        weight_decay (`float`): Factor of the sum of squared weights (not biases) in the loss.
        seed (`int`): Of the hidden layer.

    Raises:
        InvalidInputError: There are no rows, all labels are the same, or one is not in 0..1.

    >>> head = fit_decision_head({"score": torch.tensor([0.1, 0.2, 0.8, 0.9])}, [0, 0, 1, 1])
    >>> (head({"score": torch.tensor([0.15, 0.85])}) > 0.5).tolist()
    [False, True]
    """
    names = tuple(features if names is None else names)
    values, wanted = stack_features(features, names), torch.as_tensor(np.asarray(labels), dtype=torch.float32)
    if wanted.ndim != 1 or values.shape[0] != len(wanted) or not ((wanted >= 0) & (wanted <= 1)).all():
        raise InvalidInputError(
            f"Expected one label in 0..1 for each of {values.shape[0]} rows; came {tuple(wanted.shape)}."
        )
    if len(wanted) == 0 or wanted.min() == wanted.max():
        raise InvalidInputError(
            f"Nothing to learn from: the {len(wanted)} labels are all the same. Give questions of both kinds."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = DecisionHead(names, hidden_dim)
        if hidden_dim:
            torch.nn.init.normal_(head.out.weight, std=hidden_dim**-0.5)
    head.center.copy_(values.mean(dim=0))
    deviation = values.std(dim=0, correction=0)
    head.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))  # what never changes tells nothing
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(head.logits(values), wanted)
        squares = sum(weight.square().sum() for name, weight in head.named_parameters() if name.endswith("weight"))
        loss = loss + weight_decay * squares
        loss.backward()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(closure)
    return head.eval().requires_grad_(False)


def fit_answer_policy(
    model,
    processor,
    questions: Sequence[JudgedQuestion],
    k: int | None = None,
    search_cost: float | None = None,
    wrong_cost: float = 1.0,
    abstention_precision: float | None = None,
    num_readings: int = 1,
    keep_weight: float = 3.0,
    calibration: Literal["isotonic", "temperature"] = "isotonic",
    num_folds: int = 5,
    hidden_dim: int = 0,
    batch_size: int = 32,
    seed: int = 0,
    **generate_kwargs,
) -> AnswerPolicy:
    """An answer policy with fitted critic, gate, confidence, calibration and thresholds.

    1. The critic learns which of the passages belong to the question.
    2. The gate learns from closed-book drafts where evidence turned a wrong answer into a right one.
    3. The confidence learns which answers are right, drafts that the gate gives among them, is calibrated, and gets
       the threshold of abstention.

    The questions must be of all kinds that will be asked, also those that the knowledge does not answer and those for
    which wrong passages are found: the policy guards against nothing that it has not seen.

    Args:
        model, processor: The reader and its processor; they are not trained.
        questions (`list[JudgedQuestion]`): Some hundreds; not those that the policy is measured with.
        k (`int`, *optional*): Passages per question, `config.num_passages` by default.
        search_cost (`float`, *optional*): What a search costs, where a right answer is worth 1. `None` fits no gate:
            every question is searched for.
        wrong_cost (`float`): What a wrong answer costs. 0 never abstains; 1 answers from even odds on; 9 from 90 %.
        abstention_precision (`float`, *optional*): In the place of `wrong_cost`, how many of the withheld answers must
            have been wrong, in 0..1: as many are withheld as that allows.
        num_readings (`int`): How often the policy lets the reader read, see `AnswerPolicy`.
        keep_weight (`float`): What losing a relevant passage costs, where keeping an irrelevant one costs 1.
        calibration (`str`): `"isotonic"` (some hundred questions) or `"temperature"` (fewer).
        num_folds (`int`): At least 2.
        hidden_dim (`int`): Of all heads; 0 for logistic regressions.
        batch_size (`int`): Questions that the reader answers at once.
        seed (`int`): Of the folds.
        generate_kwargs: Those that the policy will be used with.

    Raises:
        InvalidInputError: There are fewer clusters than folds, all passages are relevant or none, all answers are
            right or all wrong, or `relevant` and `found` differ in length.
    """
    if not questions:
        raise InvalidInputError("No question came to fit a policy on.")
    for name, cost in (("search_cost", search_cost), ("wrong_cost", wrong_cost)):
        if cost is not None and not (0 <= cost < math.inf):
            raise InvalidInputError(f"{name}={cost!r}: expected a number from 0 on, where a right answer is worth 1")
    k = model.config.num_passages if k is None else k
    folds = _folds(questions, num_folds, seed)
    shares = word_shares({passage.text or "" for question in questions for passage in question.found})
    depth = max(len(q.found) for q in questions)
    policy = AnswerPolicy(num_candidates=depth, num_readings=num_readings, common_words=shares)
    policy = _fit_critic(policy, questions, folds, hidden_dim, keep_weight)
    sifted = [policy.sift(question.found) for question in questions]
    read = partial(_read, policy, model, processor, batch_size=batch_size, options=generate_kwargs)
    answers = _read_in_turns(policy, k, [judged.kept for judged in sifted], questions, read)
    if search_cost is not None:
        drafts = read(questions, evidence=[[] for _ in questions])
        right, without = (np.array([row["right"] for row in rows]) for rows in (answers, drafts))
        helped = counterfactual_labels(1 - without, 1 - right)
        features = columns_of([{name: draft[name] for name in DRAFT_FEATURES} for draft in drafts])
        gate, need = _cross_fit("gate", features, helped, folds, hidden_dim)
        need = np.where(features["says_nothing"].numpy() > 0, 1.0, need)  # as `AnswerPolicy.needs_search`
        threshold = _threshold("gate", need, helped >= 0.5, right - search_cost, without)
        policy = replace(policy, gate=gate, gate_threshold=threshold)
        for place in np.flatnonzero(need < threshold):  # what is given without a search is judged, too
            answers[place], sifted[place] = drafts[place], policy.sift([])
    right = np.array([answer["right"] for answer in answers])
    for row, judged in zip(answers, sifted, strict=True):
        row |= judged.features | quoting_features(row.pop("text"), row.pop("read"), judged.kept)
    features = columns_of([{name: row[name] for name in ANSWER_FEATURES} for row in answers])
    confidence, raw = _cross_fit("confidence", features, right >= 0.5, folds, hidden_dim)
    calibrator = {"isotonic": fit_isotonic, "temperature": fit_temperature}[calibration](raw, right >= 0.5)
    threshold = _answer_threshold(calibrator(raw), right >= 0.5, wrong_cost, abstention_precision)
    return replace(policy, confidence=confidence, calibrator=calibrator, answer_threshold=threshold)


def _answer_threshold(confidences: np.ndarray, right: np.ndarray, cost: float, precision: float | None) -> float:
    if precision is not None:
        return withholding_threshold(confidences, right, precision)
    return _threshold("confidence", confidences, right, np.where(right, 1.0, -cost))


def _fit_critic(policy: AnswerPolicy, questions, folds: np.ndarray, hidden_dim: int, keep_weight: float):
    columns = [passage_features(question.found, policy.common_words) for question in questions]
    if wrong := [question for question in questions if len(question.relevant) != len(question.found)]:
        raise InvalidInputError(
            f"The question {wrong[0].question!r} has {len(wrong[0].found)} passages and {len(wrong[0].relevant)} "
            "marks of what is relevant. Mark each passage."
        )
    features = {name: torch.cat([column[name] for column in columns]) for name in PASSAGE_FEATURES}
    relevant = np.array([mark for question in questions for mark in question.relevant], bool)
    of_passages = np.repeat(folds, [len(question.found) for question in questions])
    head, beliefs = _cross_fit("critic", features, relevant, of_passages, hidden_dim)
    threshold = _threshold("critic", beliefs, relevant, np.where(relevant, keep_weight, -1.0))
    return replace(policy, critic=head, critic_threshold=threshold)


# Of what each head learns, what both kinds of labels are.
_LEARNT = {
    "critic": "passages that are about their question, and others",
    "gate": "questions for which a search turns a wrong answer into a right one, and others",
    "confidence": "questions that are answered right (exact_match calls a whole sentence wrong), and others",
}


def _cross_fit(
    name: str, features, labels: np.ndarray, folds: np.ndarray, hidden_dim: int
) -> tuple[DecisionHead, np.ndarray]:
    """A head fitted on all rows, and the probabilities `(N,)` of heads that were not fitted on a row's fold.

    Raises:
        InvalidInputError: Outside of some fold all labels are the same.
    """
    if any(len(np.unique(labels[folds != fold])) < 2 for fold in np.unique(folds)):
        raise InvalidInputError(
            f"The {name} has nothing to learn from: it needs {_LEARNT[name]}, several of each. Of {len(labels)}, "
            f"{int((labels >= 0.5).sum())} are of the first kind. Give more questions, of all kinds to be asked."
        )
    probabilities = np.zeros(len(labels))
    for fold in np.unique(folds):
        own = folds == fold
        other_rows, own_rows = ({name: x[torch.from_numpy(at)] for name, x in features.items()} for at in (~own, own))
        head = fit_decision_head(other_rows, labels[~own], hidden_dim=hidden_dim)
        probabilities[own] = head(own_rows).double().clamp(0, 1).numpy()
    return fit_decision_head(features, labels, hidden_dim=hidden_dim), probabilities


def _threshold(name: str, scores: np.ndarray, labels: np.ndarray, *gains: np.ndarray) -> float:
    """The best threshold, from 0 to 1.1: JSON has no infinity."""
    threshold = min(max(best_threshold(scores, *gains).value, 0.0), 1.1)
    logger.info("The AUROC of the %s is %.3f, its threshold %.3f.", name, auroc(scores, labels), threshold)
    return threshold


def _read_in_turns(policy: AnswerPolicy, k: int, kept, questions, read) -> list[dict[str, Any]]:
    """What `_read` gives for each question, read as the policy reads: from its passages in turn, or from none."""
    rows: dict[int, dict[str, Any]] = {}

    def texts(places: list[int], evidence: list[list[Any]]) -> list[str]:
        found = read([questions[place] for place in places], evidence=evidence)
        rows.update(zip(places, found, strict=True))
        return [row["text"] for row in found]

    read_in_turns(policy, k, dict(enumerate(kept)), texts)
    left = [place for place in range(len(questions)) if place not in rows]
    texts(left, [[] for _ in left])
    return [rows[place] for place in range(len(questions))]


def _read(
    policy: AnswerPolicy, model, processor, questions, evidence, batch_size: int, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The answer to each question with given evidence: `text`, what was `read`, whether `right`, and its features."""
    rows = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        images = None if all(question.image is None for question in batch) else [q.image for q in batch]
        given = [list(passages) for passages in evidence[start : start + batch_size]]
        asked = [question.question for question in batch]
        answers, tokens = read_with_confidence(model, processor, images, asked, given, with_posterior=False, **options)
        for question, answer, row in zip(batch, answers, draft_features(policy, answers, tokens), strict=True):
            said = {"text": answer.text, "read": answer.evidence, "right": float(question.is_right(answer.text))}
            rows.append(row | said)
    return rows


def _folds(questions: Sequence[JudgedQuestion], num_folds: int, seed: int) -> np.ndarray:
    """The fold of each question, by chance; one for all questions of a cluster."""
    clusters = [str(place) if q.cluster is None else q.cluster for place, q in enumerate(questions)]
    names = sorted(set(clusters))
    if num_folds < 2 or len(names) < num_folds:
        raise InvalidInputError(
            f"{len(questions)} questions of {len(names)} clusters came for num_folds={num_folds}; expected two folds "
            "at least, and a cluster for each."
        )
    Random(seed).shuffle(names)
    fold_of = {name: place % num_folds for place, name in enumerate(names)}
    return np.array([fold_of[cluster] for cluster in clusters])
