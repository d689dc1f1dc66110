"""The arms of an evaluation in which a reader chooses among the answers of a closed set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..model.reader.candidates import AnswerSet
from ..pipelines.closed_answers import Choice, choose_answers
from ..pipelines.numbered_inputs import OnError, check_on_error
from .arms import answer_sound, evidence_of_arm
from .questions import AnswerFunction, Question, Reply


if TYPE_CHECKING:
    from ..retrieval import RavlmRetriever

CLOSED_ARMS = ("closed_book", "retrieved", "gold", "gold_and_distractors", "distractors_only")


def closed_set_arms(
    model: Any,
    processor: Any,
    retriever: RavlmRetriever | None,
    answers: Sequence[str],
    arms: Sequence[str] = ("closed_book", "retrieved", "gold"),
    k: int | None = None,
    retrieve_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_error: OnError = "raise",
) -> dict[str, AnswerFunction]:
    """Arms for an `Evaluator`, whose replies are the best of a closed set, with its score as confidence.

    Args:
        model, processor, retriever, k, retrieve_options, seed, on_error: As of `model_arms`.
        answers (`list[str]`): The closed set; of a model with a head, some of what it was trained for.
        arms (`list[str]`): Of `CLOSED_ARMS`.

    Raises:
        InvalidInputError: An arm is not known or needs a retriever, or the set is empty.
    """
    check_on_error(on_error)
    if unknown := sorted(set(arms) - set(CLOSED_ARMS)):
        raise InvalidInputError(f"There is no arm {', '.join(unknown)} of a closed set: {', '.join(CLOSED_ARMS)}.")
    if retriever is None and set(arms) - {"closed_book"}:
        raise InvalidInputError("All arms but closed_book need a retriever, which also holds the gold passages.")
    choice, number = Choice(list(answers)), model.config.num_passages if k is None else k
    has_head = getattr(model, "answer_head", None) is not None
    candidates = None if has_head else AnswerSet.of(processor, choice.answers, None)

    def arm(name: str) -> AnswerFunction:
        def answer(questions: Sequence[Question], images: Sequence[Any]) -> list[Reply]:
            evidence = evidence_of_arm(name, questions, images, retriever, number, dict(retrieve_options or {}), seed)
            replies: dict[int, Reply] = {}
            for with_image in (True, False):  # a batch is of one or the other
                rows = [row for row, image in enumerate(images) if (image is not None) == with_image]
                if not rows:
                    continue
                shown = [images[row] for row in rows] if with_image else None
                words, read = [questions[row].question for row in rows], [evidence[row] for row in rows]
                chosen = choose_answers(
                    model, processor, None, shown, words, choice, k=number, evidence=read, candidates=candidates
                )
                replies |= zip(rows, map(reply_of, chosen), strict=True)
            return [replies[row] for row in range(len(questions))]

        return partial(answer_sound, answer, on_error)

    return {name: arm(name) for name in arms}


def reply_of(chosen: Sequence[Mapping[str, Any]]) -> Reply:
    """The best answer as a reply.

    >>> reply_of([{"answer": "Oslo", "score": 0.9, "evidence": [{"id": "1", "text": "..."}], "unread": []}]).text
    'Oslo'
    """
    if not chosen:
        return Reply("")
    best = chosen[0]
    found = [*best["evidence"], *best["unread"]]
    ids, texts = ([passage[name] or "" for passage in found] for name in ("id", "text"))
    return Reply(best["answer"], best["score"], tuple(ids), tuple(texts))


def answers_of_model(model: str | os.PathLike[str]) -> list[str] | None:
    """The closed set that a saved model was made for, or `None`."""
    from ..model import RavlmForVisualQuestionAnswering
    from ..model.backbones import read_config

    config = read_config(model, "model")
    if RavlmForVisualQuestionAnswering.__name__ not in (config.architectures or []):
        return None
    return [config.id2label[number] for number in range(config.num_labels)]
