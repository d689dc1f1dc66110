"""Answers of a closed set: retriever -> processor -> head, or likelihood of each answer -> the best with scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..errors import InvalidInputError
from ..model.loading import without_adapters
from ..model.parts.looking_once import looking_once
from ..model.reader.candidates import AnswerSet, likeliest_candidates, score_candidates, shortlist
from ..numbers_given import check_between, check_whole
from .answer import passage_record
from .answering import for_model, greedy_unless_asked, was_read
from .searching import find_evidence, search_words


if TYPE_CHECKING:
    from ..retrieval import Evidence, RavlmRetriever

SCORED_WHOLE = 32  # larger sets are searched for the likeliest first
NUM_BEAMS = 8
CONTENT_FREE = "N/A"  # a question that asks nothing, of Zhao et al. 2021 (arXiv 2102.09690)


@dataclass(frozen=True)
class Choice:
    """How a closed set is chosen from.

    Args:
        answers (`list[str]`): the answers that are allowed.
        top_k (`int`): so many are returned, best first.
        threshold (`float`): answers whose score is below are not returned.
        length_normalized (`bool`):
            whether answers are ranked by the mean log-probability of their tokens, which is fair to long ones; else by
            their sum.
        content_free_weight (`float`, *optional*):
            how much of what the reader holds of an answer anyway is taken from it, from 0 to 1: its log-probability
            behind a question without content ("N/A"), without image and passages. 1 is PMI-DC of Holtzman et al.
            2021 (arXiv 2104.08315); by default that of the model's config.
        calibrator (callable, *optional*):
            turns scores `(n,)` into probabilities of being right, such as `metrics.fit_isotonic(scores, right)`.

    Raises:
        `InvalidInputError`: for numbers out of their range.
    """

    answers: Sequence[str]
    top_k: int = 1
    threshold: float = 0.0
    length_normalized: bool = True
    content_free_weight: float | None = None
    calibrator: Callable[[Any], Any] | None = field(default=None, repr=False)

    def __post_init__(self):
        check_whole("top_k", self.top_k, lowest=1)
        check_between("threshold", self.threshold, 0, 1)
        if self.content_free_weight is not None:
            check_between("content_free_weight", self.content_free_weight, 0, 1)
        if isinstance(self.answers, str) or not isinstance(self.answers, Sequence):
            raise InvalidInputError(f"allowed_answers came as {type(self.answers).__name__}: expected a list of texts")


@torch.inference_mode()
@looking_once()
def choose_answers(
    model: Any,
    processor: Any,
    retriever: RavlmRetriever | None,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    choice: Choice,
    k: int | None = None,
    evidence: Sequence[Sequence[Any]] | None = None,
    queries: Sequence[str | None] | None = None,
    prompt: Mapping[str, Any] | None = None,
    candidates: AnswerSet | None = None,
    **search: Any,
) -> list[list[dict[str, Any]]]:
    """The best answers of a closed set to each question, with what they rest on.

    Args:
        model, processor, retriever, images, questions, k, evidence, queries, prompt: as of `answer_questions`.
        choice ([`Choice`]): which answers, and how many.
        candidates ([`AnswerSet`], *optional*): that of `choice.answers`, if it is made already.
        search: `where`, `channels` and the others of `RavlmRetriever.retrieve`.

    Returns:
        Per question a list of dictionaries with `answer`, `score` (from 0 to 1: with a head the softmax; else see
        `answer_score`), `evidence` that was read and `unread`.

    Raises:
        `InvalidInputError`: if the set is empty, the head does not know an answer, or two are the same to the reader.
    """
    reader = without_adapters(model)
    k = reader.config.num_passages if k is None else k
    if evidence is None:
        evidence = [[] for _ in questions]
        if retriever is not None and k > 0:
            evidence = find_evidence(retriever, images, search_words(questions, queries), k, **search)
    inputs = processor(images=images, text=list(questions), evidence=evidence, prompt=prompt)
    read = was_read(inputs, evidence)
    if getattr(reader, "answer_head", None) is not None:
        if choice.content_free_weight is not None:
            raise InvalidInputError("content_free_weight= is of answers that are compared, and this model has a head")
        places = _places_in_head(reader, choice.answers)
        values = model(**for_model(inputs, model, evidence, None)).logits.softmax(dim=-1)[:, places]  # (B, C)
        found = [dict(enumerate(row)) for row in values.tolist()]
    else:
        candidates = candidates or AnswerSet.of(processor, choice.answers, prompt)
        found = _by_likelihood(model, processor, images, questions, evidence, candidates, choice, prompt)
    return [_ranked(scores, choice, list(row), kept) for scores, row, kept in zip(found, evidence, read, strict=True)]


def _by_likelihood(
    model: Any,
    processor: Any,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    candidates: AnswerSet,
    choice: Choice,
    prompt: Mapping[str, Any] | None,
) -> list[dict[int, float]]:
    """Scores of all candidates, or of the likeliest of many, by their places."""
    reader, width, many = without_adapters(model), max(NUM_BEAMS, choice.top_k), len(candidates) > SCORED_WHOLE
    held: list[dict[int, float]] = []
    for row, question in enumerate(questions):
        asked = (reader, processor, None if images is None else images[row], question, evidence[row])
        likely = likeliest_candidates(*asked, candidates, prompt, width) if many else None
        if likely is None:
            places: Sequence[int] = range(len(candidates))
            if many:
                places = _written(model, processor, *asked[2:], candidates, prompt, width)
            likely = _scored(*asked, candidates, places, prompt)
        held.append(likely)
    weight = reader.config.content_free_weight if choice.content_free_weight is None else choice.content_free_weight
    if weight:
        unknown = sorted({place for likely in held for place in likely} - candidates.priors.keys())
        if unknown:
            candidates.priors |= _held_anyway(reader, processor, candidates, unknown, prompt)
    found = []
    for likely in held:
        lengths = {place: len(candidates.ids[place]) if choice.length_normalized else 1 for place in likely}
        priors = candidates.priors if weight else dict.fromkeys(likely, 0.0)
        found.append({
            place: answer_score(value / lengths[place], priors[place] / lengths[place], weight)
            for place, value in likely.items()
        })  # fmt: skip
    return found


def _held_anyway(
    reader: Any, processor: Any, candidates: AnswerSet, places: Sequence[int], prompt: Mapping[str, Any] | None
) -> dict[int, float]:
    """`log p` of candidates where nothing is asked; a reader that takes no prompt without an image sees a grey one."""
    try:
        return _scored(reader, processor, None, CONTENT_FREE, [], candidates, places, prompt)
    except InvalidInputError:
        grey = Image.new("RGB", (224, 224), "grey")
        return _scored(reader, processor, grey, CONTENT_FREE, [], candidates, places, prompt)


def answer_score(log_prob: float, prior: float, weight: float) -> float:
    """How well an answer fits, from 0 to 1.

    Without a weight its probability; else `p / (p + q**weight)` with the probability `q` that it has anyway: with the
    whole weight one half where the question and what was found say nothing.

    >>> answer_score(math.log(0.5), 0.0, 0.0), round(answer_score(math.log(0.2), math.log(0.2), 1.0), 4)
    (0.5, 0.5)
    """
    if not weight:
        return math.exp(log_prob)
    more = log_prob - weight * prior
    return 1 / (1 + math.exp(-more)) if more > 0 else math.exp(more) / (1 + math.exp(more))


def _scored(
    reader: Any,
    processor: Any,
    image: Any,
    question: str,
    evidence: Sequence[Any],
    candidates: AnswerSet,
    places: Sequence[int],
    prompt: Mapping[str, Any] | None,
) -> dict[int, float]:
    """`log p` of the candidates at some places."""
    sums = score_candidates(reader, processor, image, question, evidence, candidates.some(places), prompt)
    return dict(zip(places, sums.tolist(), strict=True))


def _written(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    evidence: Sequence[Any],
    candidates: AnswerSet,
    prompt: Mapping[str, Any] | None,
    width: int,
) -> list[int]:
    """The places of likely candidates, of a reader that takes no prompt in pieces."""
    inputs = processor(
        images=None if image is None else [image], text=[question], evidence=[list(evidence)], prompt=prompt
    )
    greedy = greedy_unless_asked(model, {})
    greedy.pop("do_sample")
    return shortlist(model, {**for_model(inputs, model, [evidence], None), **greedy}, candidates, width)[0]


def _ranked(
    scores: Mapping[int, float], choice: Choice, evidence: list[Evidence], read: list[bool]
) -> list[dict[str, Any]]:
    """The best answers as a pipeline returns them."""
    told = dict(scores)
    if choice.calibrator is not None and told:
        told = dict(zip(told, map(float, choice.calibrator(list(told.values()))), strict=True))
    best = sorted(scores, key=lambda place: (-scores[place], place))[: choice.top_k]
    beside = {
        "evidence": [passage_record(passage) for passage, kept in zip(evidence, read, strict=True) if kept],
        "unread": [passage_record(passage) for passage, kept in zip(evidence, read, strict=True) if not kept],
    }
    return [
        {"answer": choice.answers[place], "score": told[place], **beside}
        for place in best
        if told[place] >= choice.threshold
    ]


def _places_in_head(reader: Any, answers: Sequence[str]) -> list[int]:
    known = {name: int(place) for place, name in reader.config.id2label.items()}
    if not len(answers):
        raise InvalidInputError("the set of allowed answers is empty: expected at least one answer")
    if unknown := [name for name in answers if name not in known]:
        raise InvalidInputError(
            f"the allowed answer {unknown[0]!r} is none of the {len(known)} that the head was trained for: name some "
            "of these, or compare answers by a reader without a head, to which any can be added"
        )
    return [known[name] for name in answers]


__all__ = ["Choice", "choose_answers"]
