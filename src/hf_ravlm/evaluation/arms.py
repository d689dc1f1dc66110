"""The arms of an evaluation, made of a model, its processor and a retriever.

| arm | evidence |
|---|---|
| `closed_book` | none |
| `retrieved` | what the retriever finds |
| `gold` | the passages that hold the answer (`Question.gold_ids`), or the pieces of these documents |
| `gold_and_distractors` | the gold passages, in a random place among the best that are not gold |
| `distractors_only` | the best that are not gold: what a wrong find does |
| `guarded` | what a policy lets through; it may also withhold the answer |
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import LogitsProcessorList

from ..errors import InvalidInputError, UnsafeInputError, naming
from ..images import first_of, safe_image, several
from ..pipelines.answering import answer_questions
from ..pipelines.numbered_inputs import OnError, check_on_error
from ..pipelines.policy.token_confidence import TokenConfidence
from ..pipelines.remote.reader import RemoteReader, mean_probability
from ..pipelines.searching import find_evidence
from .questions import AnswerFunction, Question, Reply


if TYPE_CHECKING:
    from ..model import RavlmForConditionalGeneration, RavlmProcessor
    from ..pipelines.policy.answer_policy import AnswerPolicy
    from ..retrieval import KnowledgeBase, Passage, RavlmRetriever

logger = logging.getLogger(__name__)

_MOST_PIECES = 20  # of a gold document, which the arms with gold passages read
ARMS = ("closed_book", "retrieved", "gold", "gold_and_distractors", "distractors_only", "guarded")


def model_arms(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    retriever: RavlmRetriever | None = None,
    arms: Sequence[str] = ("closed_book", "retrieved", "gold"),
    k: int | None = None,
    retrieve_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    policy: AnswerPolicy | None = None,
    on_error: OnError = "raise",
    **generate_kwargs: Any,
) -> dict[str, AnswerFunction]:
    """Arms for an `Evaluator`.

    Replies carry what was read, the number of tokens, and, with greedy decoding over one prompt per question, a
    confidence: the geometric mean of the probabilities of the tokens written, which is often too high.

    Args:
        model, processor: The reader and its processor.
        retriever (`RavlmRetriever`, *optional*): Needed for all arms but `closed_book`.
        arms (`list[str]`): Of `ARMS`.
        k (`int`, *optional*): Passages per question, `config.num_passages` by default.
        retrieve_options (`dict`, *optional*): Of `retriever.retrieve`: `channels`, `where`, ...
        seed (`int`): Of the places of the gold passages among distractors.
        policy (`AnswerPolicy`, *optional*): Of the arm `guarded`.
        on_error (`str`): Of a question whose image cannot be used: `"raise"` an error, or `"skip"` it, with a reply
            whose `error` says why, and which counts as wrong.
        generate_kwargs: Passed to `model.generate`; greedy unless they say otherwise.

    Raises:
        InvalidInputError: An arm is not known, or needs a retriever or a policy.
        UnsafeInputError: When an arm is asked: the image of a question cannot be used.
    """
    check_on_error(on_error)
    if unknown := sorted(set(arms) - set(ARMS)):
        raise InvalidInputError(f"There is no arm {', '.join(unknown)}. Choose of {', '.join(ARMS)}.")
    if retriever is None and set(arms) - {"closed_book"}:
        raise InvalidInputError("All arms but closed_book need a retriever, which also holds the gold passages.")
    if policy is None and "guarded" in arms:
        raise InvalidInputError("The arm guarded needs a policy. Pass `policy`, or leave the arm out.")
    number = model.config.num_passages if k is None else k
    searching = dict(retrieve_options or {})
    reading = {"do_sample": False, "num_beams": 1, "with_posterior": False, **generate_kwargs}

    def arm(name: str) -> AnswerFunction:
        def answer(questions: Sequence[Question], images: Sequence[Any]) -> list[Reply]:
            if name == "guarded" and retriever is not None:
                search = SimpleNamespace(retrieve=partial(retriever.retrieve, **searching))
                return _replies(model, processor, search, questions, images, policy=policy, k=number, **reading)
            evidence = evidence_of_arm(name, questions, images, retriever, number, searching, seed)
            num_searches = int(number > 0 and name not in ("closed_book", "gold"))
            return _replies(model, processor, None, questions, images, num_searches, evidence=evidence, **reading)

        return partial(answer_sound, answer, on_error)

    return {name: arm(name) for name in arms}


def answer_sound(answer: Any, on_error: OnError, questions: Sequence[Question]) -> list[Reply]:
    """The replies of `answer(questions, images)`, where all images can be used or such questions are skipped."""
    images: list[Any] = []
    sound: list[Question] = []
    errors: list[str | None] = []
    for question in questions:
        try:
            with naming(f"the image of question {question.id!r}"):
                shown = [safe_image(image) for image in several(question.image)]
        except UnsafeInputError as error:
            if on_error == "raise":
                raise
            logger.warning("%s The question counts as answered wrongly.", error)
            errors.append(str(error))
        else:
            sound.append(question)
            images.append(shown if len(shown) > 1 else first_of(shown))
            errors.append(None)
    replies = iter(answer(sound, images) if sound else [])
    return [next(replies) if error is None else Reply("", error=error) for error in errors]


def growing_arm(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    retriever: RavlmRetriever,
    distractors: Iterable[Mapping[str, Any]],
    **options: Any,
) -> Callable[[int], AnswerFunction]:
    """The `arm_among` of `measure_growth`: answers with what is found among ever more distractors.

    Args:
        model, processor, retriever, options: Of `model_arms`. The retriever and its folder stay as they are: the
            knowledge base grows in memory.
        distractors (iterable of `dict`): Passages, read as they are needed; their ids get a prefix.

    Raises:
        InvalidInputError: When the arm is made: there are too few distractors.
    """
    from ..retrieval import RavlmRetriever

    grown = RavlmRetriever(
        retriever.knowledge_base,
        retriever.encoder,
        retriever.vectors,
        retriever.encoder_fingerprint,
        retriever.options,
    )
    supply, num_own = iter(distractors), len(grown)

    def arm_among(num_distractors: int) -> AnswerFunction:
        missing = num_distractors - (len(grown) - num_own)
        new = [
            {**passage, "id": f"distractor/{passage.get('id', len(grown) + place)}"}
            for place, passage in enumerate(itertools.islice(supply, max(0, missing)))
        ]
        if len(new) < missing:
            raise InvalidInputError(
                f"{num_distractors} distractors are needed, and there are {len(grown) - num_own + len(new)}. "
                "Pass more, or smaller factors."
            )
        if new:
            grown.add(new)
        return model_arms(model, processor, grown, ("retrieved",), **options)["retrieved"]

    return arm_among


def evidence_of_arm(
    name: str,
    questions: Sequence[Question],
    images: Sequence[Any],
    retriever: RavlmRetriever | None,
    k: int,
    options: Mapping[str, Any],
    seed: int,
) -> list[list[Passage]]:
    """The passages that each question is answered with."""
    if name == "closed_book" or retriever is None or k == 0:
        return [[] for _ in questions]
    texts = [question.question for question in questions]
    if name == "retrieved":
        return [[*found] for found in find_evidence(retriever, images, texts, k, **options)]
    for question in questions:
        if not question.gold_ids:
            raise InvalidInputError(
                f"Question {question.id!r} has no gold_ids, which the arms with gold passages and distractors need. "
                "Say which column holds them, or leave these arms out."
            )
        if missing := [gold for gold in question.gold_ids if not _parts_of(gold, retriever.knowledge_base)]:
            raise InvalidInputError(
                f"Question {question.id!r} wants the passage {missing[0]!r}, which the knowledge base does not have."
            )
    base = retriever.knowledge_base
    gold = [[base[part] for wanted in question.gold_ids for part in _parts_of(wanted, base)] for question in questions]
    if name == "gold":
        return gold
    evidence = []
    found_passages = find_evidence(retriever, images, texts, k + max(map(len, gold)), **options)
    for question, wanted, found in zip(questions, gold, found_passages, strict=True):
        known = set(question.gold_ids)
        others: list[Passage] = [passage for passage in found if _known_as(passage, known) not in known]
        if name == "distractors_only":
            evidence.append(others[:k])
            continue
        mixed = others[: max(0, k - len(wanted))]
        places = Random(f"{seed} {question.id}")
        for passage in wanted[:k]:
            mixed.insert(places.randint(0, len(mixed)), passage)
        evidence.append(mixed)
    return evidence


def _parts_of(wanted: str, knowledge_base: KnowledgeBase) -> list[str]:
    """The ids of a gold passage: its own, or those of the first pieces of a document that was cut."""
    if wanted in knowledge_base:
        return [wanted]
    for mark in "-#":
        pieces = (f"{wanted}{mark}{number}" for number in range(_MOST_PIECES))
        if found := list(itertools.takewhile(knowledge_base.__contains__, pieces)):
            return found
    return []


def _known_as(passage: Passage, gold: set[str]) -> str:
    """The id by which questions may name a passage: its own, that of the document it was cut from, or its address."""
    names = (passage.id, passage.metadata.get("document"), passage.url)
    return next((name for name in names if isinstance(name, str) and name in gold), passage.id)


def _replies(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    retriever: Any,
    questions: Sequence[Question],
    images: Sequence[Any],
    num_searches: int = 0,
    **options: Any,
) -> list[Reply]:
    """The answers to all questions at once; what a policy decided stands above what is known without one."""
    shown = None if all(image is None for image in images) else images
    asked = (model, processor, retriever, shown, [question.question for question in questions])
    greedy = not options["do_sample"] and options["num_beams"] == 1
    if isinstance(model, RemoteReader):
        rows = answer_questions(*asked, **{"logprobs": model.gives_logprobs, **options})
        told = [(mean_probability(answer.logprobs), (answer.usage or {}).get("total_tokens")) for answer, *_ in rows]
    else:
        confidence_of = TokenConfidence(model, processor.tokenizer)
        rows = answer_questions(*asked, logits_processor=LogitsProcessorList([confidence_of]), **options)
        num_tokens = round(confidence_of.num_tokens / len(questions))
        known = confidence_of.confidences(len(questions)) if greedy else [None] * len(questions)
        told = [(confidence, num_tokens) for confidence in known]
    replies = []
    for (answer, *_), (confidence, num_read), question in zip(rows, told, questions, strict=True):
        gold = set(question.gold_ids)
        decided: dict[str, Any] = {"confidence": confidence, "num_retrievals": num_searches}
        if (decision := answer.decision) is not None:
            decided = {"confidence": decision.confidence, "num_retrievals": int(decision.retrieved)}
            decided |= {"withheld": decision.withheld, "need": decision.need}
        decided["evidence_ids"] = tuple(_known_as(passage, gold) for passage in answer.found)
        decided["evidence_texts"] = tuple(passage.text or "" for passage in answer.found)
        replies.append(Reply(answer.text, num_tokens=num_read, **decided))
    return replies
