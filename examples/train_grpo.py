"""Reinforcement: a reader learns by rewards when to search and when to answer at once (trl's GRPO).

    python examples/train_grpo.py --output_dir runs/grpo  # the shipped model, on flags: about an hour on one core

Every other question brings the passage that answers it ("Capital of Fiji: Suva. What is the ...?") and needs
no search. The reader sees image and question, and either answers or writes `search`, upon which it is asked again with
what the retriever finds. The reward is 1 for a right answer, less the cost of a search. It starts as one that was
taught to search nearly always; the curve of the rewards, searches and right answers on countries that nothing was
trained on are written to `grpo.json`. Needs trl: pip install "hf_ravlm[strangers]".
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import HfArgumentParser, TrainingArguments, set_seed
from trl import GRPOConfig, GRPOTrainer

from hf_ravlm import EvidenceMix, RavlmTrainer
from hf_ravlm.images import safe_image
from hf_ravlm.pipelines.opening import open_pipeline
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.training.rewards import SearchCost, exact_match_reward, text_of
from training_rows import CHECKPOINT, flag_rows


SEARCH = "search"
CALL = rf"^\s*{SEARCH}"


@dataclass
class Options:
    """What is trained, and how long."""

    model: str = field(default=CHECKPOINT, metadata={"help": "a saved system"})
    output_dir: str = field(default="runs/grpo", metadata={"help": "folder to write"})
    train_questions: int = field(default=400, metadata={"help": "of the countries to learn from"})
    test_questions: int = field(default=200, metadata={"help": "of countries that nothing was trained on"})
    searches_at_first: float = field(default=0.8, metadata={"help": "share of `search` in the first lessons"})
    first_steps: int = field(default=60, metadata={"help": "steps of the first lessons"})
    steps: int = field(default=150, metadata={"help": "steps by rewards"})
    search_cost: float = field(default=0.2, metadata={"help": "what a search takes from the reward"})
    generations: int = field(default=8, metadata={"help": "answers to each question, which are compared"})
    batch: int = field(default=32, metadata={"help": "answers in a step"})
    learning_rate: float = field(default=2e-5, metadata={"help": "of the steps by rewards"})
    seed: int = 0


def half_told(rows: Sequence[dict[str, Any]], passages: Any, number: int, seed: int) -> list[dict[str, Any]]:
    """So many short questions by chance, every other with the passage that holds its answer in front of it."""
    rng = random.Random(seed)
    short = [row for row in rows if len(row["answers"][0].split()) <= 3 and row["gold_ids"][0] in passages]
    chosen = rng.sample(short, min(number, len(short)))
    return [
        {
            "image": safe_image(row["image"]["bytes"]),
            "question": f"{passages[row['gold_ids'][0]].text} {row['question']}" if place % 2 else row["question"],
            "answers": list(row["answers"]),
            "told": bool(place % 2),
        }
        for place, row in enumerate(chosen)
    ]


def answers_of(system: Any, rows: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    """What the reader says, greedily; `k=0` without a search."""
    asked = [{"image": row["image"], "question": row["question"]} for row in rows]
    settings = {"max_new_tokens": 12, "batch_size": 16, "with_posterior": False, "policy": AnswerPolicy()}
    return [record["generated_text"] for (record,) in system(asked, **settings, **options)]


def figures(system: Any, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Right answers and searches of the reader as it is, on questions of which `found` is known."""
    said = answers_of(system, rows, k=0)
    searched = [text.strip().startswith(SEARCH) for text in said]
    final = [row["found"] if search else text for row, search, text in zip(rows, searched, said, strict=True)]
    right = exact_match_reward(final, [row["answers"] for row in rows])
    told = [search for row, search in zip(rows, searched, strict=True) if row["told"]]
    return {
        "exact_match": sum(right) / len(right),
        "searches": sum(searched) / len(searched),
        "searches_where_told": sum(told) / max(len(told), 1),
    }


def teach_to_search(system: Any, rows: Sequence[dict[str, Any]], options: Options) -> None:
    """The first lessons: `search` nearly always, whether it is needed or not."""
    rng = random.Random(options.seed)
    lessons = [
        {
            "image": row["image"],
            "question": row["question"],
            "answer": SEARCH if rng.random() < options.searches_at_first else row["answers"][0],
            "evidence": [],
        }
        for row in rows
    ]
    arguments = TrainingArguments(
        str(Path(options.output_dir) / "first"),
        max_steps=options.first_steps,
        per_device_train_batch_size=16,
        learning_rate=5e-5,
        **_quiet(options),
    )
    trainer = RavlmTrainer(
        system.model, arguments, train_dataset=lessons, processing_class=system.processor, evidence=EvidenceMix(1)
    )
    trainer.train()


def reward_answers(completions: list[Any], answers: list[list[str]], found: list[str], **_: Any) -> list[float]:
    """1 for a right answer: the one that was written, or the one that a search gives."""
    final = [
        known if text_of(said).strip().startswith(SEARCH) else text_of(said)
        for said, known in zip(completions, found, strict=True)
    ]
    return exact_match_reward(final, answers)


def learn_by_rewards(system: Any, rows: Sequence[dict[str, Any]], options: Options) -> list[dict[str, float]]:
    """GRPO; the curve, one entry per step."""
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "image": row["image"],
                "answers": row["answers"],
                "found": row["found"],
            }
            for row in rows
        ]
    )
    arguments = GRPOConfig(
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        num_generations=options.generations,
        max_completion_length=12,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        beta=0.0,
        bf16=False,
        logging_steps=1,
        **_quiet(options),
    )
    rewards = [reward_answers, SearchCost(options.search_cost, CALL)]
    trainer = GRPOTrainer(system.model, rewards, args=arguments, train_dataset=data, processing_class=system.processor)
    trainer.train()
    names = {"reward": "reward", "rewards/reward_answers/mean": "right", "rewards/search_cost/mean": "search_cost"}
    logs = [line for line in trainer.state.log_history if "reward" in line]
    return [{"step": line["step"], **{name: line[key] for key, name in names.items()}} for line in logs]


def _quiet(options: Options) -> dict[str, Any]:
    use_cpu = not torch.cuda.is_available()
    return {"report_to": "none", "save_strategy": "no", "seed": options.seed, "use_cpu": use_cpu}


def main(options: Options) -> None:
    """Trains, measures before and after, and writes both and the curve."""
    set_seed(options.seed)
    system = open_pipeline(options.model)
    passages = system.retriever.knowledge_base
    train = half_told(flag_rows("train"), passages, options.train_questions, options.seed)
    test = half_told(flag_rows("dev"), passages, options.test_questions, options.seed)
    for rows in (train, test):  # what a search gives is asked once, of the reader as it came
        for row, found in zip(rows, answers_of(system, rows), strict=True):
            row["found"] = found
    teach_to_search(system, train, options)
    before = figures(system, test)
    curve = learn_by_rewards(system, train, options)
    after = figures(system, test)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"options": vars(options), "before": before, "after": after, "curve": curve}
    (folder / "grpo.json").write_text(json.dumps(record, indent=1) + "\n")
    system.model.save_pretrained(folder)
    system.processor.save_pretrained(folder)
    print(json.dumps({"before": before, "after": after}, indent=1))


if __name__ == "__main__":
    main(*HfArgumentParser(Options).parse_args_into_dataclasses())
