"""Asks the trained flags model every short question about the dev countries, in three arms, and keeps the report.

    python examples/flags/evaluation.py examples/flags/checkpoint

Writes `evaluation.json` into the folder, from which `examples/flags/card.py` takes the tables of the model card: the
report on all questions, and one on a small sample, which the tests ask again. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import AutoModelForImageTextToText, AutoProcessor

from flags.measure import Task, tasks_of
from flags.world import ENTRY_VIEW, SHORT_KINDS, VIEWS, World, load_world
from hf_ravlm import RavlmRetriever
from hf_ravlm.evaluation import EvaluationReport, Evaluator, Question, model_arms
from hf_ravlm.saving.checksums import read_entries


SAMPLE = 24
BATCH = 16


def evaluate_flags(folder: Path, questions: Sequence[Question], out: Path | None = None) -> EvaluationReport:
    """Closed-book, with what the folder's own knowledge base gives, and with the one passage that has the answer.

    Args:
        folder (`Path`): model, processor and knowledge base.
        questions (`list[Question]`): of `short_questions`.
        out (`Path`, *optional*): where replies are kept, so that a stopped run goes on; those of other weights are
            refused.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    arms = model_arms(model, processor, RavlmRetriever.from_pretrained(folder), max_new_tokens=32)
    return Evaluator(arms, batch_size=BATCH, settings={"weights": weights_digest(folder)}).run(questions, out)


def weights_digest(folder: Path) -> str:
    """Tells apart what two trainings left in a folder."""
    return read_entries(folder)["model.safetensors"]["xxh3_128"]


def short_questions(world: World, number: int | None = None) -> list[Question]:
    """Short questions about drawings of dev countries in all styles but that of the entries; a sample, if told so."""
    tasks = tasks_of(world, world.dev, [view for view in VIEWS if view != ENTRY_VIEW], SHORT_KINDS)
    return [question_of(world, task) for task in (tasks if number is None else random.Random(0).sample(tasks, number))]


def question_of(world: World, task: Task) -> Question:
    """A task as the evaluator takes it; questions about one country stand together in the intervals."""
    return Question(
        id=f"{task.entity}-{task.view}-{task.kind}",
        question=task.question,
        answers=tuple(task.answers),
        image=world.images[task.entity, task.view],
        gold_ids=(f"{task.entity}/{task.kind}",),
        kind=task.kind,
        cluster=task.entity,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the trained model with its knowledge base")
    parser.add_argument("--replies", type=Path, default=Path("runs/flags_evaluation"), help="where replies are kept")
    options = parser.parse_args()
    world = load_world()
    reports = {
        "sample": evaluate_flags(options.folder, short_questions(world, SAMPLE), options.replies / "sample"),
        "all": evaluate_flags(options.folder, short_questions(world), options.replies / "all"),
    }
    text = json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=1)
    (options.folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(reports["all"].to_markdown())


if __name__ == "__main__":
    main()
