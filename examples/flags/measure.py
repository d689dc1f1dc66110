"""Knows how good the system is: retrieval per drawing style, answers per question kind, always beside closed-book.

A country counts as found if the entry is its own or one with the same drawing, whichever of its passages comes first.
"Gold" hands the reader the one passage that holds the answer, and for a description those that it is made of. "Reads
on" reads up to three passages, one after the other, while the answer is "unknown". Exact match and token F1 are those
of SQuAD. Figures are plain dictionaries, to be printed, stored and compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flags.questions import OFFICIAL, SHORT_KINDS
from flags.shuffled import UNKNOWN
from flags.texts import DESCRIBING, description, parts_of_description
from flags.wordings import KEPT_OUT, ask_kept_out
from flags.world import World, drawing_group
from hf_ravlm.evaluation import exact_match, normalize_answer, token_f1
from hf_ravlm.pipelines import AnswerPolicy, answer_questions


ARMS = ("closed-book", "retrieved", "gold")
WORDING_ARMS = ("retrieved", "reads on", "gold")
NUM_READINGS = 3
LONG_KINDS = ("meaning", "describe")
BATCH = 32


@dataclass(frozen=True)
class Task:
    """One question about one picture."""

    entity: str
    view: str
    kind: str
    question: str
    answers: list[str]


def tasks_of(world: World, countries: Iterable[str], views: Sequence[str], kinds: Sequence[str]) -> list[Task]:
    """Every question of these kinds about every drawing of these countries; "describe" asks the default prompt."""
    wanted = set(countries)
    tasks = []
    for row in world.questions:
        if row["entity"] in wanted and row["type"] in kinds:
            tasks += [
                Task(row["entity"], view, row["type"], row["question"], row["answer"])
                for view in views
                if (row["entity"], view) in world.images
            ]
    if "describe" in kinds:
        for entity in sorted(wanted):
            whole = description(world.entities[entity])
            tasks += [
                Task(entity, view, "describe", OFFICIAL["describe"], [whole])
                for view in views
                if (entity, view) in world.images
            ]
    return tasks


def rank_countries(retriever, world: World, queries: Sequence[tuple[str, str]], question: str | None = None):
    """Rank, from 1, of the right country among all for pictures (entity, view), by the best of its passages.

    Returns:
        `np.ndarray` of shape `(n,)`.
    """
    images = [world.images[query] for query in queries]
    vectors = retriever.encoder.encode_queries(images, None if question is None else [question] * len(images))
    scores = vectors @ retriever.vectors.T  # (n, passages)
    owners = np.array([drawing_group(passage_id.split("/")[0]) for passage_id in retriever.knowledge_base.ids])
    groups = sorted(set(owners))
    best = np.stack([scores[:, owners == group].max(axis=1) for group in groups], axis=1)  # (n, countries)
    right = np.array([groups.index(drawing_group(entity)) for entity, _ in queries])
    own = best[np.arange(len(queries)), right]
    return 1 + (best > own[:, None]).sum(axis=1)


def retrieval_table(
    retriever, world: World, countries: Sequence[str], views: Sequence[str], question=None, leave_out=frozenset()
) -> dict[str, dict[str, float]]:
    """hit@1, hit@5 and mean rank (from 1) of the right country, per drawing style and over all ("mean", "worst").

    Args:
        question (`str`, *optional*): asked with every picture; `None` searches by picture alone.
        leave_out (`set[tuple[str, str]]`): pictures (entity, view) not to count.
    """
    table = {}
    for view in views:
        queries = [(e, view) for e in countries if (e, view) in world.images and (e, view) not in leave_out]
        ranks = rank_countries(retriever, world, queries, question)
        table[view] = {
            "hit@1": float((ranks <= 1).mean()),
            "hit@5": float((ranks <= 5).mean()),
            "mean rank": float(ranks.mean()),
            "pictures": len(queries),
        }
    rows = list(table.values())
    names = ("hit@1", "hit@5", "mean rank")
    table["mean"] = {name: float(np.mean([row[name] for row in rows])) for name in names}
    table["worst"] = {name: (max if name == "mean rank" else min)(row[name] for row in rows) for name in names}
    return table


def answer_tasks(model, processor, retriever, world: World, tasks: Sequence[Task], arm) -> list[str]:
    """What the system answers in one arm: "closed-book", "retrieved", "reads on", or "gold" (what has the answer).

    In the place of an arm may stand the passages to read, a list for each task.
    """
    by_id = None if arm != "gold" else retriever.knowledge_base
    order = sorted(range(len(tasks)), key=lambda i: (tasks[i].kind, tasks[i].entity))
    outputs: list[str] = [""] * len(tasks)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = [tasks[i] for i in rows]
        evidence = None if isinstance(arm, str) else [arm[i] for i in rows]
        if arm == "gold":
            evidence = [[by_id[passage_id] for passage_id in gold_ids(by_id, task)] for task in batch]
        answers = answer_questions(
            model,
            processor,
            retriever,
            [world.images[task.entity, task.view] for task in batch],
            [task.question for task in batch],
            k=0 if arm == "closed-book" else None,
            evidence=evidence,
            policy=AnswerPolicy(num_readings=NUM_READINGS) if arm == "reads on" else None,
            with_posterior=False,
            do_sample=False,
            max_new_tokens=256 if any(task.kind in LONG_KINDS for task in batch) else 32,
        )
        for row, answer in zip(rows, answers, strict=True):
            outputs[row] = answer[0].text
    return outputs


def wording_table(
    model, processor, retriever, world: World, views: Sequence[str], per_family: int = 40, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Exact match of short answers by family of wordings that nothing was trained on; "mean", "worst" and "Chinese".

    Args:
        views (`Sequence[str]`): Drawing styles of the pictures.
        per_family (`int`): Questions of each family, drawn once: the same countries, kinds and pictures for all.
        seed (`int`): Of the questions.
    """
    rng = random.Random(seed)
    drawn = rng.sample(tasks_of(world, world.dev, views, SHORT_KINDS), per_family)
    tasks = [replace(task, question=ask_kept_out(name, task.kind, rng)) for name in KEPT_OUT for task in drawn]
    table: dict[str, dict[str, float]] = {name: {} for name in KEPT_OUT}
    for arm in WORDING_ARMS:
        outputs = answer_tasks(model, processor, retriever, world, tasks, arm)
        right = [exact_match(output, task.answers) for output, task in zip(outputs, tasks, strict=True)]
        for place, name in enumerate(KEPT_OUT):
            table[name][arm] = float(np.mean(right[place * per_family : (place + 1) * per_family]))
    families = list(table.values())
    chinese = [row for name, row in table.items() if name.startswith("Chinese")]
    for name, rows, join in (("mean", families, np.mean), ("worst", families, min), ("Chinese", chinese, np.mean)):
        table[name] = {arm: float(join([row[arm] for row in rows])) for arm in WORDING_ARMS}
    return table


def place_table(model, processor, retriever, world: World, tasks: Sequence[Task], places: int = 5, seed: int = 0):
    """Exact match with all passages of the right country, by the place of the one that answers: "1", "2", ..."""
    base, table = retriever.knowledge_base, {}
    for place in range(places):
        rng, evidence = random.Random(seed), []
        for task in tasks:
            gold = f"{task.entity}/{task.kind}"
            others = [one for one in base.ids if one.startswith(f"{task.entity}/") and one != gold]
            rng.shuffle(others)
            evidence.append([base[one] for one in [*others[:place], gold, *others[place:]]])
        outputs = answer_tasks(model, processor, retriever, world, tasks, evidence)
        right = [exact_match(output, task.answers) for output, task in zip(outputs, tasks, strict=True)]
        table[str(place + 1)] = float(np.mean(right))
    return table


def abstention_table(model, processor, retriever, world: World, tasks: Sequence[Task]) -> dict[str, float]:
    """The reader's own "unknown" where every passage of the country is read but the one that answers, and with it."""
    base, told = retriever.knowledge_base, {}
    for known in (False, True):
        evidence = []
        for task in tasks:
            ids = [one for one in base.ids if one.startswith(f"{task.entity}/")]
            evidence.append([base[one] for one in ids if known or one != f"{task.entity}/{task.kind}"])
        told[known] = answer_tasks(model, processor, retriever, world, tasks, evidence)
    silent = {known: [output == UNKNOWN for output in outputs] for known, outputs in told.items()}
    return {
        "precision": sum(silent[False]) / max(sum(silent[False]) + sum(silent[True]), 1),
        "recall": float(np.mean(silent[False])),
        "coverage of the answerable": 1 - float(np.mean(silent[True])),
    }


def gold_ids(knowledge_base, task: Task) -> list[str]:
    """The passage that holds the answer, in a list that is empty where there is none."""
    kinds = DESCRIBING if task.kind == "describe" else (task.kind,)
    known = set(knowledge_base.ids)
    return [f"{task.entity}/{kind}" for kind in kinds if f"{task.entity}/{kind}" in known][:1]


def score(world: World, task: Task, output: str) -> dict[str, float]:
    """Exact match for short kinds; for the long ones token F1, and whether a description names the country."""
    if task.kind == "describe":
        row = world.entities[task.entity]
        opening, meant = parts_of_description(output)
        named = f" {normalize_answer(row['name'])} " in f" {normalize_answer(opening)} "
        scores = {"names the country": float(named)}
        if row.get("flag_meaning"):
            scores["F1 of the meaning"] = token_f1(meant, [row["flag_meaning"]])
        return scores
    if task.kind == "meaning":
        return {"F1": token_f1(output, task.answers)}
    return {"exact match": exact_match(output, task.answers)}


def answer_table(model, processor, retriever, world: World, tasks: Sequence[Task], arms=ARMS) -> dict[str, dict]:
    """Mean scores per kind and arm: `{"capital": {"closed-book": {"exact match": 0.1}, ...}, ...}`."""
    table: dict[str, dict] = {}
    for arm in arms:
        outputs = answer_tasks(model, processor, retriever, world, tasks, arm)
        scores: dict[str, dict[str, list[float]]] = {}
        for task, output in zip(tasks, outputs, strict=True):
            for name, value in score(world, task, output).items():
                scores.setdefault(task.kind, {}).setdefault(name, []).append(value)
        for kind, named in scores.items():
            table.setdefault(kind, {})[arm] = {name: float(np.mean(values)) for name, values in named.items()}
    short = [kind for kind in table if "exact match" in table[kind][arms[0]]]
    if short:
        table["short answers"] = {
            arm: {"exact match": float(np.mean([table[kind][arm]["exact match"] for kind in short]))} for arm in arms
        }
    return table


def format_answers(table: dict[str, dict]) -> str:
    """The answer table as Markdown.

    Example:

    ```python
    >>> print(format_answers({"capital": {"closed-book": {"exact match": 0.0}, "gold": {"exact match": 1.0}}}))
    | question | measure | closed-book | gold |
    |---|---|---|---|
    | capital | exact match | 0.000 | 1.000 |

    ```
    """
    arms = list(next(iter(table.values())))
    lines = ["| question | measure | " + " | ".join(arms) + " |", "|---" * (len(arms) + 2) + "|"]
    for kind, by_arm in table.items():
        for name in by_arm[arms[0]]:
            values = " | ".join(f"{by_arm[arm][name]:.3f}" for arm in arms)
            lines.append(f"| {kind} | {name} | {values} |")
    return "\n".join(lines)


def format_table(table: dict[str, float | dict[str, float]]) -> str:
    """Any other table as Markdown: a row for each name, with one value or several.

    Example:

    ```python
    >>> print(format_table({"quiz": {"retrieved": 0.9, "gold": 1.0}}))
    | | retrieved | gold |
    |---|---|---|
    | quiz | 0.900 | 1.000 |

    ```
    """
    rows = {name: row if isinstance(row, dict) else {"": row} for name, row in table.items()}
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |".replace("|  |", "| |"), "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {n} | {' | '.join(f'{row[c]:.3f}' for c in columns)} |" for n, row in rows.items()])


def format_retrieval(table: dict[str, dict[str, float]]) -> str:
    """The retrieval table as Markdown.

    Example:

    ```python
    >>> print(format_retrieval({"openmoji": {"hit@1": 0.9, "hit@5": 1.0, "mean rank": 1.2}}))
    | style | hit@1 | hit@5 | mean rank |
    |---|---|---|---|
    | openmoji | 0.900 | 1.000 | 1.20 |

    ```
    """
    lines = ["| style | hit@1 | hit@5 | mean rank |", "|---|---|---|---|"]
    lines += [f"| {s} | {r['hit@1']:.3f} | {r['hit@5']:.3f} | {r['mean rank']:.2f} |" for s, r in table.items()]
    return "\n".join(lines)
