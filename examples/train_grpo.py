"""Reinforcement: a reader learns by rewards when to search and when to answer at once (trl's GRPO).

    python examples/train_grpo.py --output_dir runs/grpo  # the shipped model, on flags: a few minutes on one core
    python examples/train_grpo.py --model Qwen/Qwen3-VL-2B-Instruct --encoder google/siglip2-base-patch16-224 \
        --knowledge_base my_folder --dataset questions.jsonl --eval_dataset more.jsonl --use_lora
        # not run here: it needs a GPU

Every other question brings the passage that answers it ("Capital of Fiji: Suva. What is the ...?") and needs no
search. The reader sees image and question, and either answers or writes `search`, upon which it is asked again with
what the retriever finds. The reward is 1 for a right answer, less the cost of a search. It starts as one that was
taught to search nearly always. Rewards, searches and right answers on questions that nothing was trained on are
written to `grpo.json`, their curve to `grpo.png`, and the reader beside them. Run again with the same output folder,
it goes on where it was stopped. Needs trl: pip install "hf_ravlm[strangers]".
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from hf_ravlm import EvidenceMix, RavlmTrainer
from hf_ravlm.evaluation.charts import curves_chart
from hf_ravlm.images import safe_image
from hf_ravlm.pipelines.opening import open_pipeline
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.training import freeze
from hf_ravlm.training.rewards import SearchCost, exact_match_reward, text_of
from train import lora
from training_rows import CHECKPOINT, DataOptions, evaluation_rows, training_rows


SEARCH = "search"
CALL = rf"^\s*{SEARCH}"
CURVE = {"reward": "reward", "rewards/reward_answers/mean": "right answers", "rewards/search_cost/mean": "searches"}


@dataclass
class Options:
    """What is trained, and how long."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of the reader to start from"})
    knowledge_base: str | None = field(default=None, metadata={"help": "what is searched; by default that of model"})
    encoder: str | None = field(default=None, metadata={"help": "what encodes it; by default the one that built it"})
    output_dir: str = field(default="runs/grpo", metadata={"help": "folder to write"})
    use_lora: bool = field(default=False, metadata={"help": "train adapters of the language model, not all of it"})
    lora_rank: int = field(default=16, metadata={"help": "of the adapters"})
    train_questions: int = field(default=96, metadata={"help": "to learn from, by chance of those with short answers"})
    test_questions: int = field(default=80, metadata={"help": "that nothing is trained on"})
    searches_at_first: float = field(default=0.8, metadata={"help": "share of `search` in the first lessons"})
    first_steps: int = field(default=60, metadata={"help": "steps of the first lessons"})
    steps: int = field(default=80, metadata={"help": "steps by rewards"})
    search_cost: float = field(default=0.2, metadata={"help": "what a search takes from the reward"})
    generations: int = field(default=8, metadata={"help": "answers to each question, which are compared"})
    batch: int = field(default=16, metadata={"help": "answers in a step"})
    learning_rate: float = field(default=4e-5, metadata={"help": "of the steps by rewards"})
    save_steps: int = field(default=4, metadata={"help": "steps that a kill can cost"})
    seed: int = 0


def half_told(rows: Sequence[dict[str, Any]], passages: Any, number: int, seed: int) -> list[dict[str, Any]]:
    """So many short questions by chance, every other with the passage that holds its answer in front of it."""
    rng = random.Random(seed)
    places = [place for place, row in enumerate(rows) if _is_short(row, passages)]
    chosen = []
    for at, place in enumerate(rng.sample(places, min(number, len(places)))):
        row, is_told = rows[place], bool(at % 2)
        image, before = row["image"], f"{passages[row['gold_ids'][0]].text} " if is_told else ""
        given = {"question": before + row["question"], "answers": _answers(row), "told": is_told}
        encoded = (image["bytes"] or image["path"]) if isinstance(image, dict) else image
        chosen.append({"image": safe_image(encoded), **given})
    return chosen


def _answers(row: dict[str, Any]) -> list[str]:
    return [row["answers"]] if isinstance(row["answers"], str) else list(row["answers"])


def _is_short(row: dict[str, Any], passages: Any) -> bool:
    return len(_answers(row)[0].split()) <= 3 and row["gold_ids"][0] in passages


def answers_of(system: Any, rows: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    """What the reader says, greedily; `k=0` without a search."""
    asked = [{"image": row["image"], "question": row["question"]} for row in rows]
    settings = {"max_new_tokens": 12, "batch_size": 16, "with_posterior": False, "policy": AnswerPolicy()}
    return [record["generated_text"] for (record,) in system(asked, **settings, **options)]


def figures(system: Any, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Right answers and searches of the reader as it is, on questions of which `found` is known."""
    system.model.eval()
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
        save_strategy="no",
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
    """GRPO; the curve, one entry per step: reward, share of right answers and of searches."""
    asked = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "image": row["image"],
            "answers": row["answers"],
            "found": row["found"],
        }
        for row in rows
    ]
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
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=torch.cuda.is_available(),  # a small reader on a CPU has room enough
        logging_steps=1,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        **_quiet(options),
    )
    trainer = GRPOTrainer(
        system.model,
        [reward_answers, SearchCost(options.search_cost, CALL)],
        args=arguments,
        train_dataset=Dataset.from_list(asked),
        processing_class=system.processor,
        peft_config=lora(options),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(options.output_dir))
    if options.use_lora:
        system.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    curve = []
    for line in trainer.state.log_history:
        if "reward" in line:
            curve.append({"step": line["step"], **{name: line[key] for key, name in CURVE.items()}})
            curve[-1]["searches"] /= -options.search_cost or -1
    return curve


def drawn(curve: Sequence[dict[str, float]]) -> Image.Image:
    """The curve, each point the mean of ten steps with the least and the largest of them."""
    width = max(min(10, len(curve) // 2), 1)
    groups = [curve[start : start + width] for start in range(0, len(curve), width)]

    def points(name: str) -> list[tuple[float, float, float]]:
        values = [[min(max(line[name], 0.0), 1.0) for line in group] for group in groups]
        return [(sum(row) / len(row), min(row), max(row)) for row in values]

    names = {name: points(name) for name in CURVE.values()}
    ticks = [str(int(group[-1]["step"])) for group in groups]
    return curves_chart(names, ticks, "By rewards: right answers, fewer searches", "steps")


def _quiet(options: Options) -> dict[str, Any]:
    use_cpu = not torch.cuda.is_available()
    return {"report_to": "none", "seed": options.seed, "use_cpu": use_cpu}


def prepared(system: Any, data: DataOptions, options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Questions to learn from and to test with, and the system taught to search; what is done already is read."""
    data.eval_split = data.eval_split or ("dev" if data.dataset == "flags" and data.eval_dataset is None else None)
    held_out = evaluation_rows(data)
    if held_out is None:
        raise SystemExit("--eval_dataset or --eval_split: expected questions that nothing is trained on")
    passages, start = system.retriever.knowledge_base, Path(options.output_dir) / "start"
    train = half_told(training_rows(data), passages, options.train_questions, options.seed)
    test = half_told(held_out, passages, options.test_questions, options.seed)
    kept = start / "found.json"
    if not kept.exists():
        start.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(answers_of(system, [*train, *test])))
    for row, text in zip([*train, *test], json.loads(kept.read_text()), strict=True):
        row["found"] = text  # what a search gives: of the reader as it came
    taught = (start / "config.json").exists()
    if taught:
        system.model = type(system.model).from_pretrained(start).to(system.device)
    if system.model.model is not None:
        freeze(system.model.model)  # the towers that made the vectors of the knowledge base
    if not taught:
        teach_to_search(system, train, options)
        system.model.save_pretrained(start)
    return train, test


def main(data: DataOptions, options: Options) -> None:
    """Trains, measures before and after, and writes both and the curve."""
    set_seed(options.seed)
    system = open_pipeline(options.model, options.knowledge_base, options.encoder)
    train, test = prepared(system, data, options)
    before = figures(system, test)
    curve = learn_by_rewards(system, train, options)
    after = figures(system, test)
    folder = Path(options.output_dir)
    record = {"options": asdict(options), "before": before, "after": after, "curve": curve}
    (folder / "grpo.json").write_text(json.dumps(record, indent=1) + "\n")
    drawn(curve).save(folder / "grpo.png")
    for part in (system.model, system.processor, system.retriever):
        part.save_pretrained(folder)
    print(json.dumps({"before": before, "after": after}, indent=1))


if __name__ == "__main__":
    main(*HfArgumentParser([DataOptions, Options]).parse_args_into_dataclasses())
