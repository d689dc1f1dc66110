"""Knows what evidence does to answers that a reader knew anyway: questions, four conditions, rescued and harmed.

| condition | evidence |
|---|---|
| `closed-book` | none |
| `retrieved` | the best `k` that the retriever finds |
| `gold and distractors` | the passage that answers, in a random place among the best others |
| `distractors` | the best `k` that do not answer |
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from flags.questions import SHORT_KINDS
from flags.world import World
from hf_ravlm import RavlmRetriever
from hf_ravlm.evaluation import bootstrap_interval, exact_match
from hf_ravlm.evaluation.arms import model_arms
from hf_ravlm.evaluation.questions import Question
from hf_ravlm.images import safe_image
from hf_ravlm.metrics import retrieval_effect
from hf_ravlm.model.reader.conflict_aware import ConflictAwareLogitsProcessor
from hf_ravlm.pipelines import answer_questions


CONDITIONS = ("retrieved", "gold and distractors", "distractors")
BATCH = 50


def questions_about(world: World, countries: Sequence[str], styles: Sequence[str], most: int) -> list[Question]:
    """All short questions about these countries in these drawing styles, or a fixed sample of `most` of them."""
    asked = [
        Question(
            f"{row['entity']}/{style}/{row['type']}",
            row["question"],
            tuple(row["answer"]),
            world.images.encoded[row["entity"], style],
            (f"{row['entity']}/{row['type']}",),
            row["type"],
            row["entity"],
        )
        for row in world.questions
        if row["entity"] in set(countries) and row["type"] in SHORT_KINDS
        for style in styles
        if (row["entity"], style) in world.images
    ]
    return sorted(random.Random(0).sample(asked, min(most, len(asked))), key=lambda question: question.kind)


def evidence_for(questions: Sequence[Question], retriever: RavlmRetriever, k: int) -> dict[str, list[list]]:
    """The passages of every condition, for every question; the same for all readers."""
    images, words = [safe_image(q.image) for q in questions], [q.question for q in questions]
    found = retriever.retrieve(images, words, k=k + 1)
    evidence: dict[str, list[list]] = {name: [] for name in CONDITIONS}
    for question, passages in zip(questions, found, strict=True):
        wrong = [passage for passage in passages if passage.id not in question.gold_ids][:k]
        mixed = wrong[: k - 1]
        mixed.insert(random.Random(question.id).randint(0, k - 1), retriever.knowledge_base[question.gold_ids[0]])
        for name, chosen in zip(CONDITIONS, (list(passages)[:k], mixed, wrong), strict=True):
            evidence[name].append(chosen)
    return evidence


def closed_book(model, processor, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """Which answers match exactly without evidence, `(Q,)` bool, and how sure the reader is of each, 0..1."""
    ask = model_arms(model, processor, arms=("closed_book",), max_new_tokens=16)["closed_book"]
    replies = [reply for start in range(0, len(questions), BATCH) for reply in ask(questions[start : start + BATCH])]
    right = [exact_match(reply.text, q.answers) == 1 for reply, q in zip(replies, questions, strict=True)]
    return np.array(right), np.array([reply.confidence for reply in replies])


def answers_right(model, processor, questions: Sequence[Question], evidence: Sequence[list], beta: float = 0.0):
    """Which answers match exactly, `(Q,)` bool; with `beta` decoded by `ConflictAwareLogitsProcessor`."""
    right = []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        images, words = [safe_image(q.image) for q in batch], [q.question for q in batch]
        leaning = [ConflictAwareLogitsProcessor(model, processor(images=images, text=words), beta)] if beta else []
        answers = answer_questions(
            model,
            processor,
            None,
            images,
            words,
            evidence=evidence[start : start + BATCH],
            with_posterior=False,
            do_sample=False,
            max_new_tokens=16,
            logits_processor=leaning,
        )
        right += [exact_match(answer[0].text, q.answers) == 1 for answer, q in zip(answers, batch, strict=True)]
    return np.array(right)


def effect_of(closed_book: np.ndarray, with_evidence: np.ndarray) -> dict[str, float]:
    """Shares of all questions, and `harmed of right` of those that were right closed-book."""
    effect = retrieval_effect(closed_book, with_evidence)
    return {
        "exact match": float(with_evidence.mean()),
        "rescued": effect.rescue_rate,
        "harmed": effect.harm_rate,
        "net gain": effect.net_gain,
        "right closed-book": int(closed_book.sum()),
        "harmed of right": effect.harmed_of_right,
    }


def harm_interval(runs: Sequence[tuple[Sequence[Question], np.ndarray, np.ndarray]]) -> list[float]:
    """Of the answers that were right closed-book, the share that evidence spoiled: mean, and 95 % bootstrap interval.

    Args:
        runs: Questions, right closed-book, right with evidence. Countries are drawn, with all their questions in all
            runs. Nothing comes back where nothing was right.
    """
    known = [
        (question.cluster, float(not told))
        for questions, alone, with_evidence in runs
        for question, knew, told in zip(questions, alone, with_evidence, strict=True)
        if knew
    ]
    if not known:
        return []
    interval = bootstrap_interval([harmed for _, harmed in known], [country for country, _ in known])
    return [interval.mean, interval.lower, interval.upper]


def format_effects(table: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Mean and range over runs as Markdown: rows are readers and conditions.

    Example:

    ```python
    >>> run = {"exact match": 0.5, "rescued": 0.0, "harmed": 0.25, "net gain": -0.25, "right closed-book": 3}
    >>> print(format_effects({"gold": {"retrieved": [{**run, "harmed of right": 0.5}]}}))
    | reader | evidence | exact match | rescued | harmed | net gain | right closed-book | harmed of right |
    |---|---|---|---|---|---|---|---|
    | gold | retrieved | 0.500 | 0.000 | 0.250 | -0.250 | 3 | 0.500 |

    ```
    """
    names = ("exact match", "rescued", "harmed", "net gain", "right closed-book", "harmed of right")
    lines = ["| reader | evidence | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for reader, conditions in table.items():
        for condition, runs in conditions.items():
            cells = " | ".join(_mean_and_range([run[name] for run in runs]) for name in names)
            lines.append(f"| {reader} | {condition} | {cells} |")
    return "\n".join(lines)


def _mean_and_range(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    digits = 0 if all(isinstance(value, int) for value in there) else 3
    mean = f"{np.mean(there):.{digits}f}"
    return mean if len(there) == 1 else f"{mean} ({min(there):.{digits}f} to {max(there):.{digits}f})"
