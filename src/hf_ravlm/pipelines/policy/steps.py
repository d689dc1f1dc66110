"""The steps of answering by an `AnswerPolicy`: draft, gate, search, critic, read, read on, confidence, abstention.

Search and reader are functions of places in the batch, so that no model is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...metrics.answers import is_no_answer
from .features import quoting_features


if TYPE_CHECKING:
    from ..answer import Answer
    from .answer_policy import AnswerPolicy, SiftedEvidence

# The passages found for some of the questions, and the answers to some of them with their `TOKEN_FEATURES`.
Search = Callable[[list[int]], Sequence[Sequence[Any]]]
Read = Callable[[list[int], list[list[Any]]], tuple[Sequence["Answer"], Mapping[str, torch.Tensor]]]


def answer_by_policy(
    policy: AnswerPolicy, num_questions: int, k: int, search: Search | None, read: Read
) -> list[Answer]:
    """One answer per question, each with its `decision`.

    Args:
        policy (`AnswerPolicy`), num_questions (`int`): what decides, and on how many questions.
        k (`int`): how many passages the reader gets at most.
        search (callable, *optional*): finds passages; `None` if there is nothing to search.
        read (callable): answers from the passages that it is given, or closed-book from none.
    """
    places = list(range(num_questions))
    answers: dict[int, Answer] = {}
    features: dict[int, dict[str, float]] = {}

    def answer(chosen: list[int], evidence: list[list[Any]]) -> None:
        if chosen:
            written, columns = read(chosen, evidence)
            answers.update(zip(chosen, written, strict=True))
            features.update(zip(chosen, draft_features(policy, written, columns), strict=True))

    need: list[float | None] = [None] * num_questions
    if policy.gate is not None and search is not None:
        answer(places, [[] for _ in places])
        need = [*policy.needs_search(columns_of([features[place] for place in places]))]
    searched = [place for place, value in enumerate(need) if value is None or value >= policy.gate_threshold]
    sifted: dict[int, SiftedEvidence] = {}
    if searched and search is not None:
        sifted = {place: policy.sift(found) for place, found in zip(searched, search(searched), strict=True)}

    def texts(chosen: list[int], evidence: list[list[Any]]) -> list[str]:
        answer(chosen, evidence)
        return [answers[place].text for place in chosen]

    readings = read_in_turns(policy, k, {place: judged.kept for place, judged in sifted.items()}, texts)
    left = [place for place in places if place not in answers]
    answer(left, [[] for _ in left])
    rows = []
    for place in places:
        judged = sifted.get(place) or policy.sift([])
        quoting = quoting_features(answers[place].text, answers[place].evidence, judged.kept)
        rows.append(features[place] | judged.features | quoting)
    for place, confidence in enumerate(policy.judge(columns_of(rows)) if rows else []):
        policy.decide(answers[place], sifted.get(place), need[place], confidence, readings.get(place, 0))
    return [answers[place] for place in places]


def read_in_turns(
    policy: AnswerPolicy,
    k: int,
    kept: Mapping[int, Sequence[Any]],
    read: Callable[[list[int], list[list[Any]]], Sequence[str]],
) -> dict[int, int]:
    """Reads the first `k` passages of each question, and the next `k` where they hold no answer, and so on.

    Args:
        policy (`AnswerPolicy`): says how often at most, and what no answer is.
        kept (`dict[int, list]`): of each question the passages, best first.
        read (callable): takes questions and what to read for each, and gives the texts of the answers.

    Returns:
        How often was read for each question; one without passages is missing.
    """
    readings: dict[int, int] = {}
    due = list(kept)
    for turn in range(policy.num_readings):
        due = [place for place in due if kept[place][turn * k : (turn + 1) * k]]
        if not due:
            break
        said = read(due, [list(kept[place][turn * k : (turn + 1) * k]) for place in due])
        readings |= dict.fromkeys(due, turn + 1)
        due = [place for place, text in zip(due, said, strict=True) if is_no_answer(text, policy.no_answers)]
    return readings


def draft_features(
    policy: AnswerPolicy, answers: Sequence[Answer], tokens: Mapping[str, torch.Tensor]
) -> list[dict[str, float]]:
    """`DRAFT_FEATURES` of each answer, from `TOKEN_FEATURES`, each `(B,)`."""
    silent = [is_no_answer(answer.text, policy.no_answers) for answer in answers]
    return rows_of({**tokens, "says_nothing": torch.tensor(silent, dtype=torch.float32)})


def columns_of(rows: Sequence[Mapping[str, float]]) -> dict[str, torch.Tensor]:
    """`[{"a": 1.0}, {"a": 2.0}]` becomes `{"a": tensor([1., 2.])}`."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def rows_of(columns: Mapping[str, torch.Tensor]) -> list[dict[str, float]]:
    """`{"a": tensor([1., 2.])}` becomes `[{"a": 1.0}, {"a": 2.0}]`."""
    values = {name: column.tolist() for name, column in columns.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
