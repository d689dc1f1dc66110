"""Knows how good captions are: in every arm, and apart for things that pictures find by class, by kinds, by words.

Right is a caption that names the thing, by any of WordNet's words for it. Beside it stand CIDEr-D, BLEU-4 and ROUGE-L
against the one caption that a person wrote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ravlm.evaluation import EvaluationReport, Evaluator, cider_d, model_arms, questions_from
from hf_ravlm.evaluation.finished_replies import FinishedReplies
from hf_ravlm.metrics.caption_tokens import caption_tokens
from photographs.world import World, names_it


ARMS = ("closed_book", "retrieved", "gold", "gold_and_distractors", "distractors_only")
KINDS = ("class", "kinds", "words", "seen")
MAX_NEW_TOKENS = 16
BATCH = 16
COLUMNS = {name: name for name in ("id", "question", "answers", "image", "gold_ids", "kind", "cluster")}


def measure(
    model, processor, retriever, world: World, folder: Path, arms: Sequence[str], k: int, limit: int | None = None
) -> tuple[EvaluationReport, list[dict]]:
    """Captions of the dev pictures, scored.

    Args:
        model, processor, retriever: Of the captioner.
        world (`World`): Its `dev` pictures are described.
        folder (`Path`): For the report.
        arms (`list[str]`): Of `ARMS`.
        k (`int`): Entries to read.
        limit (`int`, *optional*): Describes so many pictures only.

    Returns:
        `tuple[EvaluationReport, list[dict]]`: The report, and one row per picture with all captions and entries.
    """
    questions = questions_from([{name: row[name] for name in COLUMNS} for row in world.dev][:limit], COLUMNS)
    words = {row["id"]: world.entries[row["gold_ids"][0]]["words"] for row in world.dev}
    metrics = {
        "names the thing": lambda said, question: float(names_it(said, words[question.id])),
        **dict.fromkeys(("cider_d", "bleu_4", "rouge_l")),
    }
    functions = model_arms(model.eval(), processor, retriever, arms, k=k, max_new_tokens=MAX_NEW_TOKENS)
    with tempfile.TemporaryDirectory() as replies:
        report = Evaluator(functions, metrics, batch_size=BATCH, ks=(1, 2)).run(questions, replies)
        finished = FinishedReplies(Path(replies) / "replies.jsonl", {})
    report.save(folder)
    rows = []
    for question in questions:
        said = {name: finished.find(name, question).reply for name in arms}
        rows.append(
            {
                "id": question.id,
                "kind": question.kind,
                "caption": question.answers[0],
                "gold": question.gold_ids[0],
                "said": {name: reply.text for name, reply in said.items()},
                "named": {name: names_it(reply.text, words[question.id]) for name, reply in said.items()},
                "entries": {name: list(reply.evidence_ids) for name, reply in said.items()},
            }
        )
    return report, rows


def table_by_kind(rows: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """Per kind of thing: pictures, hits of the retriever, and per arm the share of captions that name the thing.

    CIDEr-D stands beside it; its word statistics are those of the pictures of that kind. "unseen" is all but "seen".

    Example:

    ```python
    >>> row = {"kind": "class", "gold": "n1", "caption": "A koala.", "named": {"retrieved": True}}
    >>> row |= {"said": {"retrieved": "A koala."}, "entries": {"retrieved": ["n2", "n1"]}}
    >>> table_by_kind([row])["class"]["hit@1"], table_by_kind([row])["class"]["named"]
    (0.0, {'retrieved': 1.0})

    ```
    """
    groups = {"unseen": [row for row in rows if row["kind"] != "seen"]}
    groups |= {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    return {kind: _figures(group) for kind, group in groups.items() if group}


def _figures(rows: Sequence[dict]) -> dict[str, Any]:
    arms = list(rows[0]["said"])
    references = [[caption_tokens(row["caption"])] for row in rows]
    figures: dict[str, Any] = {
        "pictures": len(rows),
        "named": {name: float(np.mean([row["named"][name] for row in rows])) for name in arms},
        "cider_d": {
            name: cider_d([caption_tokens(row["said"][name]) for row in rows], references).corpus for name in arms
        },
    }
    if "retrieved" in arms:
        for k in (1, 2):
            hits = [row["gold"] in row["entries"]["retrieved"][:k] for row in rows]
            figures[f"hit@{k}"] = float(np.mean(hits))
    return figures
