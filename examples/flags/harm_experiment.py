"""Does a policy do no harm? Flags with wrong passages, and with knowledge that lacks the answer.

    python examples/flags/harm_experiment.py --output harm

Fits an `AnswerPolicy` (critic, confidence, calibration, thresholds) on countries that nothing was trained on, and asks
about the dev countries in a clean world, in other words, and in worlds where knowledge goes wrong
(`wrong_knowledge.py`), each drawn with several seeds. Writes the policy, the tables (`harm.md`, `harm.json`) and the
curve of accuracy over coverage. A run that was stopped goes on: what was fitted and told is kept in the folder.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, pipeline
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hf_ravlm  # noqa: F401  (registers the models)
from flags.harm_report import figures, mean_of_seeds, outcome, write_report
from flags.measure import BATCH, Task, tasks_of
from flags.questions import SHORT_KINDS
from flags.redrawn import redrawn_tasks
from flags.texts import passage_texts
from flags.wordings import KEPT_OUT, ask_anyhow, ask_kept_out
from flags.world import ENTRY_VIEW, VIEWS, World, load_world
from flags.wrong_knowledge import (
    FlagKnowledge,
    is_about,
    mix_strangers,
    rows_with_forgeries,
    rows_with_swaps,
    rows_with_twins,
    true_rows,
)
from hf_ravlm.evaluation import exact_match
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.training.policy_fitting import JudgedQuestion, fit_answer_policy


CHECKPOINT = Path(__file__).parent / "checkpoint"
WORLDS = ("clean", "told", "reworded", "strangers", "twins", "swaps", "forgeries", "half gone", "all gone")
FEARED = ("clean", "told", "reworded", "strangers", "twins", "swaps", "half gone")  # what the policy is fitted on
ONE_SEED = ("clean", "told", "reworded", "all gone")
SEARCH_COST = 0.02
FIT_SEED = 1000
HIDDEN_DIM = 4  # a passage may be far below the best or name something else, but not both


@dataclass
class Options:
    """What to run."""

    model: str = field(default=str(CHECKPOINT), metadata={"help": "Folder with model, processor and knowledge base."})
    output: str = field(default="harm", metadata={"help": "Folder for tables, curve and policy."})
    num_questions: int = field(default=200, metadata={"help": "About the dev countries, drawn once for all worlds."})
    num_candidates: int = field(default=16, metadata={"help": "Passages that the critic sees."})
    num_readings: int = field(
        default=3, metadata={"help": "How often the reader may read, one passage more each time."}
    )
    precision: float = field(default=0.97, metadata={"help": "How many withheld answers of the fit must be wrong."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of what goes wrong."})


class Flags:
    """The system under test, and what it finds in a world."""

    def __init__(self, options: Options):
        self.ask = pipeline("image-to-text", model=options.model)
        self.world, self.depth = load_world(), options.num_candidates
        self.knowledge = FlagKnowledge(self.ask.retriever.encoder)
        self.pictures: dict[tuple[str, str], Any] = {}

    def asked(self, tasks: Sequence[Task]) -> tuple[list, list[str]]:
        known = [(task.entity, task.view) for task in tasks]
        pictures = [self.pictures[key] if key in self.pictures else self.world.images[key] for key in known]
        return pictures, [task.question for task in tasks]

    def find(self, tasks: Sequence[Task], countries: Sequence[str], name: str, seed: int) -> list[list]:
        """The candidates for every question in one of `WORLDS`."""
        rng = random.Random(f"{name} {seed}")
        gone = countries if name == "all gone" else rng.sample(countries, len(countries) // 2)
        wrong = {"twins": rows_with_twins, "swaps": rows_with_swaps, "forgeries": rows_with_forgeries}
        rows = wrong[name](self.world, rng) if name in wrong else true_rows(self.world, gone if "gone" in name else ())
        retriever, found = self.knowledge.retriever(rows), []
        for start in range(0, len(tasks), BATCH):
            batch = tasks[start : start + BATCH]
            pictures, questions = self.asked(batch)
            if name != "strangers":
                found += retriever.retrieve(pictures, questions, k=self.depth)
                continue
            half = retriever.retrieve(pictures, questions, k=self.depth // 2)
            found += mix_strangers(retriever, half, pictures, questions, [task.entity for task in batch], rng)
        return found

    def answer(self, tasks: Sequence[Task], found: Sequence[Sequence], policy: AnswerPolicy) -> list:
        answers = []
        for start in range(0, len(tasks), BATCH):
            rows = answer_questions(
                self.ask.model,
                self.ask.processor,
                None,
                *self.asked(tasks[start : start + BATCH]),
                evidence=found[start : start + BATCH],
                with_posterior=False,
                policy=policy,
                max_new_tokens=32,
            )
            answers += [answer for (answer,) in rows]
        return answers

    def judged(self, tasks: Sequence[Task], found: Sequence[Sequence]) -> list[JudgedQuestion]:
        """What `fit_answer_policy` learns from."""
        return [
            JudgedQuestion(
                question=task.question,
                image=picture,
                found=row,
                relevant=[is_about(passage, task.entity) for passage in row],
                is_right=lambda text, task=task: exact_match(text, task.answers),
                cluster=task.entity,
            )
            for task, picture, row in zip(tasks, self.asked(tasks)[0], found, strict=True)
        ]

    def fit(self, precision: float, num_readings: int) -> AnswerPolicy:
        tasks, pictures = redrawn_tasks(self.world)
        self.pictures |= pictures
        judged, rng = [], random.Random(FIT_SEED)
        for name in FEARED:
            asked = [replace(t, question=ask_anyhow(t.kind, rng)) for t in tasks] if name == "reworded" else tasks
            asked = half_told(self.world, tasks, FIT_SEED) if name == "told" else asked
            judged += self.judged(asked, self.find(asked, self.world.held_out, name, FIT_SEED))
        parts = (self.ask.model, self.ask.processor, judged)
        wanted = {"abstention_precision": precision, "num_readings": num_readings, "search_cost": SEARCH_COST}
        return fit_answer_policy(*parts, **wanted, hidden_dim=HIDDEN_DIM, max_new_tokens=32)


def main(options: Options) -> None:
    logging.disable_progress_bar()
    torch.manual_seed(0)
    output = Path(options.output)
    flags = Flags(options)
    fitted = _timed(output / "fit.json", lambda: _fitted(flags, options, output / "policy"))
    seconds = {"fit": fitted["s"]}
    policy = AnswerPolicy.from_pretrained(output / "policy")
    every = tasks_of(flags.world, flags.world.dev, [view for view in VIEWS if view != ENTRY_VIEW], SHORT_KINDS)
    tasks = random.Random(0).sample(every, min(options.num_questions, len(every)))
    pooled: dict[str, dict[str, list]] = {}
    table: dict[str, list[dict]] = {}
    for name in WORLDS:
        for seed in options.seeds[: 1 if name in ONE_SEED else None]:
            kept = _timed(output / f"{name} {seed}.json", lambda n=name, s=seed: told_in(flags, tasks, n, s, policy))
            told, seconds[f"{name} {seed}"] = kept["found"], kept["s"]
            table.setdefault(name, []).append(figures(told))
            pooled[name] = {key: pooled.get(name, {}).get(key, []) + values for key, values in told.items()}
        print(name, {key: mean_of_seeds(table[name], key) for key in table[name][0]}, flush=True)
    told_seconds = {"questions": len(tasks), "fit": seconds["fit"], "all": sum(seconds.values())}
    write_report(output, table, pooled, told_seconds)


def told_in(flags: Flags, tasks: Sequence[Task], name: str, seed: int, policy: AnswerPolicy) -> dict[str, list]:
    """What both systems say in one world.

    In `reworded` the questions are of wordings kept out of all training; in `told` half of them tell their answer.
    """
    if name == "reworded":
        rng = random.Random(seed)
        tasks = [
            replace(t, question=ask_kept_out(KEPT_OUT[i % len(KEPT_OUT)], t.kind, rng)) for i, t in enumerate(tasks)
        ]
    tasks = half_told(flags.world, tasks, seed) if name == "told" else tasks
    found = flags.find(tasks, flags.world.dev, name, seed)
    return outcome(tasks, found, flags.answer(tasks, found, AnswerPolicy()), flags.answer(tasks, found, policy))


def half_told(world: World, tasks: Sequence[Task], seed: int) -> list[Task]:
    """Every other question, by chance, with the passage that holds its answer in front of it."""
    rng = random.Random(seed)
    told = set(rng.sample(range(len(tasks)), len(tasks) // 2))
    return [
        replace(task, question=f"{passage_texts(world.entities[task.entity])[task.kind][1]} {task.question}")
        if place in told
        else task
        for place, task in enumerate(tasks)
    ]


def _fitted(flags: Flags, options: Options, folder: Path) -> None:
    policy = flags.fit(options.precision, options.num_readings)
    policy.save_pretrained(folder)
    print(f"fitted: {policy}".partition(", common_words")[0], flush=True)


def _timed(path: Path, make: Callable[[], Any]) -> dict[str, Any]:
    """What `make` gave (`found`) and the seconds it took (`s`), kept in a file."""
    if not path.exists():
        started = time.perf_counter()
        kept = {"found": make(), "s": time.perf_counter() - started}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
