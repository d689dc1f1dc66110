"""Answers of a closed set: retriever -> processor -> head, or likelihood of each answer -> the best with scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidInputError
from ..model.loading import without_adapters
from ..model.reader.candidates import AnswerSet, score_candidates, shortlist
from ..numbers_given import check_between, check_whole
from .answer import passage_record
from .answering import for_model, greedy_unless_asked, was_read
from .searching import find_evidence, search_words


if TYPE_CHECKING:
    from ..retrieval import Evidence, RavlmRetriever

SCORED_WHOLE = 64  # larger sets are searched for a shortlist first
NUM_BEAMS = 8


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
        calibrator (callable, *optional*):
            turns scores `(n,)` into probabilities of being right, such as `metrics.fit_isotonic(scores, right)`.

    Raises:
        `InvalidInputError`: for numbers out of their range.
    """

    answers: Sequence[str]
    top_k: int = 1
    threshold: float = 0.0
    length_normalized: bool = True
    calibrator: Callable[[Any], Any] | None = field(default=None, repr=False)

    def __post_init__(self):
        check_whole("top_k", self.top_k, lowest=1)
        check_between("threshold", self.threshold, 0, 1)
        if isinstance(self.answers, str) or not isinstance(self.answers, Sequence):
            raise InvalidInputError(f"allowed_answers came as {type(self.answers).__name__}: expected a list of texts")


@torch.inference_mode()
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
        Per question a list of dictionaries with `answer`, `score` (from 0 to 1: with a head the softmax; else the mean
        probability of the answer's tokens, or the probability of the whole), `evidence` that was read and `unread`.

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
    inputs = for_model(inputs, model, evidence, None)
    if getattr(reader, "answer_head", None) is not None:
        places = _places_in_head(reader, choice.answers)
        values = model(**inputs).logits.softmax(dim=-1)[:, places]  # (B, C)
        found = [dict(enumerate(row)) for row in values.tolist()]
    else:
        candidates = candidates or AnswerSet.of(processor, choice.answers, prompt)
        found = _by_likelihood(model, processor, images, questions, evidence, inputs, candidates, choice, prompt)
    return [_ranked(scores, choice, list(row), kept) for scores, row, kept in zip(found, evidence, read, strict=True)]


def _by_likelihood(
    model: Any,
    processor: Any,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    inputs: Mapping[str, Any],
    candidates: AnswerSet,
    choice: Choice,
    prompt: Mapping[str, Any] | None,
) -> list[dict[int, float]]:
    """Scores of all candidates, or of the likeliest of many, by their places."""
    reader, every = without_adapters(model), list(range(len(candidates)))
    chosen = [every for _ in questions]
    if len(candidates) > SCORED_WHOLE:
        greedy = {**inputs, **greedy_unless_asked(model, {})}
        greedy.pop("do_sample")
        chosen = shortlist(model, greedy, candidates, max(NUM_BEAMS, choice.top_k))
    found = []
    for row, (question, places) in enumerate(zip(questions, chosen, strict=True)):
        some = AnswerSet([candidates.answers[n] for n in places], [candidates.ids[n] for n in places])
        image = None if images is None else images[row]
        sums = score_candidates(reader, processor, image, question, evidence[row], some, prompt)
        lengths = torch.tensor([len(ids) for ids in some.ids], device=sums.device)
        values = (sums / lengths if choice.length_normalized else sums).exp()
        found.append(dict(zip(places, values.tolist(), strict=True)))
    return found


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
