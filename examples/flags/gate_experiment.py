"""What is a gate worth? Half of the questions say what they ask for, and need no search.

    python examples/flags/gate_experiment.py --output gate

"Capital of Fiji: Suva. What is the capital of the country that uses this flag?" The reader copies the answer out of
the question, or out of what is found, and knows nothing by heart. A gate looks at the closed-book draft and decides
whether to search at all. Compares the learned gate with rules that need no training, and with the shipped policy, in a
clean world and in one where half of what is found is about other countries. Harmed is what is right without a search,
and wrong with one.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import HfArgumentParser
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flags.harm_experiment import FIT_SEED, HIDDEN_DIM, SEARCH_COST, Flags, Options, half_told
from flags.measure import Task, tasks_of
from flags.questions import SHORT_KINDS
from flags.redrawn import redrawn_tasks
from flags.world import ENTRY_VIEW, VIEWS
from hf_ravlm.evaluation import auroc, best_threshold, exact_match
from hf_ravlm.evaluation.report import markdown_table
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.pipelines.policy.decision_heads import UNCERTAINTY_RULES, UncertaintyRule
from hf_ravlm.training.policy_fitting import fit_answer_policy


SHIPPED = Path(__file__).parent / "policy"
WORLDS = ("clean", "strangers")


def fit_policy(flags: Flags) -> tuple[AnswerPolicy, dict[str, float]]:
    """The whole policy on countries that nothing was trained on, and the thresholds of the rules on the same ones."""
    tasks, pictures = redrawn_tasks(flags.world)
    flags.pictures |= pictures
    tasks = half_told(flags.world, tasks, FIT_SEED)
    found = {name: flags.find(tasks, flags.world.held_out, name, FIT_SEED) for name in WORLDS}
    judged = [question for rows in found.values() for question in flags.judged(tasks, rows)]
    parts = (flags.ask.model, flags.ask.processor, judged)
    costs = {"search_cost": SEARCH_COST, "wrong_cost": 0.0}  # no abstentions here
    policy = fit_answer_policy(*parts, **costs, hidden_dim=HIDDEN_DIM, max_new_tokens=32)
    thresholds = {}
    with_search = right(tasks, flags.answer(tasks, found["clean"], replace(policy, gate=None)))
    for rule in UNCERTAINTY_RULES:
        never = replace(policy, gate=UncertaintyRule(rule), gate_threshold=1.1)
        drafts = flags.answer(tasks, found["clean"], never)
        needs = [answer.decision.need for answer in drafts]
        best = best_threshold(needs, with_search - SEARCH_COST, right(tasks, drafts)).value
        thresholds[rule] = min(max(best, 0.0), 1.1)  # an infinite one: always, or never
    return policy, thresholds


def right(tasks: Sequence[Task], answers: Sequence) -> np.ndarray:
    return np.array([exact_match(answer.text, task.answers) for task, answer in zip(tasks, answers, strict=True)])


def row_of(scores: np.ndarray, closed_book: np.ndarray, searches: float, area: float | None = None) -> dict:
    """A row of the table; harmed is the share of all questions that are right closed-book, and wrong here."""
    harmed = float(((closed_book > 0.5) & (scores < 0.5)).mean())
    return {"exact match": float(scores.mean()), "harmed": harmed, "searches": searches, "AUROC": area}


def main(options: Options) -> None:
    logging.disable_progress_bar()
    torch.manual_seed(0)
    started, output = time.perf_counter(), Path(options.output)
    flags = Flags(options)
    policy, thresholds = fit_policy(flags)
    policy.save_pretrained(output / "policy")
    every = tasks_of(flags.world, flags.world.dev, [view for view in VIEWS if view != ENTRY_VIEW], SHORT_KINDS)
    tasks = random.Random(0).sample(every, min(options.num_questions, len(every)))
    tasks = half_told(flags.world, tasks, options.seeds[0])
    rules = {rule: replace(policy, gate=UncertaintyRule(rule), gate_threshold=thresholds[rule]) for rule in thresholds}
    never = replace(policy, gate_threshold=1.1)
    shipped = AnswerPolicy.from_pretrained(SHIPPED)
    systems = {
        "never search": never,
        "shipped policy": shipped,
        "always search": replace(policy, gate=None),
        "learned gate": policy,
        **rules,
    }
    table = {}
    for name in WORLDS:
        found = flags.find(tasks, flags.world.dev, name, options.seeds[0])
        answers = {system: flags.answer(tasks, found, chosen) for system, chosen in systems.items()}
        closed_book = right(tasks, answers["never search"])
        plain = right(tasks, flags.answer(tasks, found, AnswerPolicy()))
        table[f"{name}: no policy"] = row_of(plain, closed_book, 1.0)
        for system, given in answers.items():
            needs = [answer.decision.need for answer in given]
            area = None if systems[system].gate is None else auroc(needs, closed_book < 0.5)
            searches = float(np.mean([answer.decision.retrieved for answer in given]))
            table[f"{name}: {system}"] = row_of(right(tasks, given), closed_book, searches, area)
    seconds = time.perf_counter() - started
    lines = markdown_table(
        ["world: system", "exact match", "harmed", "searches per question", "AUROC of the gate"],
        [[name, *("–" if value is None else f"{value:.3f}" for value in row.values())] for name, row in table.items()],
    )
    (output / "gate.md").write_text("\n".join([f"{len(tasks)} questions, {seconds:.0f} s", "", *lines, ""]), "utf-8")
    (output / "gate.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
