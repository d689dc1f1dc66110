"""What each fusion makes of the same evidence: answers about flags after the same short training.

    python benchmarks/fusions.py --curve --output fusions.jsonl
    python benchmarks/fusions_card.py fusions.jsonl model_cards/flags_fusions.md

Every reader starts from the shipped flag reader (towers and language model trained, its own fusion new) and learns on
fictional countries, whose facts it cannot know, with two passages per question: the one that holds the answer and
another about the same country. Half of the rows at the start, and none at the end, ask for a passage to be repeated
from memory, but for `attention` and `gated`, whose eight tokens cannot hold one. It is then asked about the 40
countries that no training saw, with two real passages of each, and closed-book. The passages come in any order: some
fusions have none. `in_context` is the shipped reader as it is.

    python benchmarks/fusions.py --reader smollm2 --fusions in_context concat --batch_size 8 --reconstruction 0

asks the same of a reader that was not made for it: SmolLM2-135M-Instruct with MiniLM as text encoder, without pictures
(the pretrained parts of `examples/photographs`). What learns is the fusion and LoRA in the attention of the language
model, and `in_context` learns from the same rows. With `--steps 0` nothing learns.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainingArguments


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from flags.measure import Task, score, tasks_of  # noqa: E402
from flags.questions import SHORT_KINDS, ask  # noqa: E402
from flags.shuffled import ShuffledCountries, answers_from  # noqa: E402
from flags.texts import passage_texts  # noqa: E402
from flags.world import World, load_world, split_entities  # noqa: E402
from hf_ravlm import RavlmForConditionalGeneration, RavlmProcessor, RavlmTrainer  # noqa: E402
from hf_ravlm.evaluation import normalize_answer  # noqa: E402
from hf_ravlm.pipelines import answer_questions  # noqa: E402
from hf_ravlm.training import MemoryTraining  # noqa: E402


CHECKPOINT = ROOT / "examples" / "flags" / "checkpoint"
STEPS = {"in_context": 0, "concat": 300, "product": 300, "attention": 500, "gated": 600, "cross_attention": 700}
STEPS_OF = {"flags": STEPS, "smollm2": dict.fromkeys(STEPS, 100)}  # by reader
USUAL = {"lr": 1e-3, "reconstruction": [0.5, 0.0]}
POINTING = {"lr": 5e-4, "reconstruction": [0.0, 0.0]}  # at the usual ones about every second seed learned little
SETTINGS = dict.fromkeys(STEPS, USUAL) | dict.fromkeys(("attention", "gated"), POINTING)
LORA_RANK = 16
NUMBERS = (2, 5, 10, 20)  # passages
VIEW = "openmoji"


def load_reader(
    reader: str, checkpoint: Path, fusion: str, seed: int
) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
    """The shipped reader with another fusion, or SmolLM2 with one; its weights are new."""
    torch.manual_seed(seed)
    if reader == "smollm2":
        from photographs.parts import load_parts

        model, processor, _ = load_parts(fusion)
        processor.max_passage_length = 64
        return model, processor
    model = RavlmForConditionalGeneration.from_pretrained(
        checkpoint, fusion=fusion, num_memory_tokens=8, cross_attention_every=1
    )
    processor = RavlmProcessor.from_pretrained(checkpoint)
    processor.fusion, processor.num_memory_tokens = fusion, 8
    return model, processor


def training_rows(countries: ShuffledCountries, world: World, images: list, rng: random.Random, number: int) -> list:
    """Questions on fictional countries, with the passage that answers and another of the same country."""
    rows: list[dict] = []
    while len(rows) < number:
        shown = [passage for passage in countries.passages_of(countries.country()) if passage.kind in SHORT_KINDS]
        if len(shown) < 2:
            continue
        gold, other = rng.sample(shown, 2)
        passages = [gold.text, other.text]
        rng.shuffle(passages)
        picture = world.images[rng.choice(images)] if images else None
        row = {"image": picture, "question": ask(gold.kind, rng), "evidence": passages}
        rows.append({**row, "answer": answers_from([gold])[gold.kind]})
    return rows


def train(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    world: World,
    countries: list[str],
    run: argparse.Namespace,
) -> float:
    """Trains the fusion and how the language model reads it; the CPU seconds that it took."""
    rng, fiction = random.Random(run.seed), ShuffledCountries([world.entities[c] for c in countries], run.seed)
    images = [(c, VIEW) for c in countries if (c, VIEW) in world.images]
    rows = training_rows(fiction, world, images, rng, run.steps * run.batch_size)
    start = time.process_time()
    settings = {"max_steps": run.steps, "per_device_train_batch_size": run.batch_size, "seed": run.seed}
    memory = MemoryTraining(run.reconstruction, run.distillation, run.focus)
    learning = adapters(run.lr) if run.reader == "smollm2" else {"optimizers": whole_model(model, run)}
    settings |= learning.pop("settings", {})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, save_strategy="no", report_to="none", use_cpu=True, logging_steps=10, disable_tqdm=True, **settings
        )
        trainer = RavlmTrainer(
            model,
            arguments,
            train_dataset=rows,
            processing_class=processor,
            memory=None if model.config.fusion == "in_context" else memory,
            **learning,
        )
        trainer.train()
    if "peft_config" in learning:
        trainer.model.merge_and_unload()
    model.eval()
    return time.process_time() - start


def whole_model(model: RavlmForConditionalGeneration, run: argparse.Namespace) -> tuple:
    """Optimizer and schedule for text encoder, fusion and language model; pictures tell nothing here."""
    groups: dict[bool, list] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("fusion.", "model.text_encoder.", "language_model."))
        if parameter.requires_grad:
            groups[name.startswith("language_model.")].append(parameter)
    # The language model can copy already, and forgets it at the pace at which a fusion learns.
    optimizer = torch.optim.AdamW([{"params": groups[old], "lr": run.lr / (3 if old else 1)} for old in (True, False)])
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / run.steps)
    )


def adapters(lr: float) -> dict:
    """The fusion, and LoRA in the attention of a language model that was trained by others, all at one rate."""
    from peft import LoraConfig

    settings = {"learning_rate": lr, "warmup_steps": 10, "lr_scheduler_type": "constant_with_warmup"}
    return {"peft_config": LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK), "settings": settings}


def replies(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    world: World,
    tasks: list,
    num_passages: int = 2,
    seed: int = 0,
) -> list[str]:
    """What it answers with the gold passage among `num_passages` in any order; closed-book with 0."""
    rng, texts = random.Random(seed), []
    for start in range(0, len(tasks), 32):
        batch = tasks[start : start + 32]
        answers = answer_questions(
            model,
            processor,
            None,
            [world.images.get((task.entity, task.view)) for task in batch],
            [task.question for task in batch],
            evidence=[passages_for(world, task, num_passages, rng) for task in batch],
            with_posterior=False,
            do_sample=False,
            max_new_tokens=24,
        )
        texts += [rows[0].text for rows in answers]
    return texts


def exact_match(world: World, tasks: list, texts: list[str]) -> float:
    """Share of right answers."""
    return sum(score(world, task, text)["exact match"] for task, text in zip(tasks, texts, strict=True)) / len(tasks)


def named(tasks: list, texts: list[str]) -> float:
    """Share of replies that hold a right answer, however much is said around it."""
    normal = [f" {normalize_answer(text)} " for text in texts]
    found = [
        any(f" {normalize_answer(answer)} " in text for answer in task.answers)
        for task, text in zip(tasks, normal, strict=True)
    ]
    return sum(found) / len(tasks)


def passages_for(world: World, task: Task, number: int, rng: random.Random) -> list[str]:
    """The passage that answers and others, in any order: short ones of the country, then of others about other things.

    No other tells of what is asked, so that a picture need not say which country is meant.
    """
    if not number:
        return []
    own = short_passages(world.entities[task.entity])
    gold, others = own.pop(task.kind), list(own.values())
    rng.shuffle(others)
    while len(others) < number - 1:
        texts = short_passages(world.entities[rng.choice(sorted(world.entities))])
        others.append(texts[rng.choice([kind for kind in sorted(texts) if kind != task.kind])])
    passages = [gold, *others[: number - 1]]
    rng.shuffle(passages)
    return passages


def short_passages(row: dict) -> dict[str, str]:
    """Kind and text of the passages of one fact each."""
    return {kind: text for kind, (_, text) in passage_texts(row).items() if kind in SHORT_KINDS}


def first_token(
    model: RavlmForConditionalGeneration, processor: RavlmProcessor, world: World, task: Task, number: int
) -> float:
    """The least CPU seconds until the first token of an answer from `number` passages whose states are kept."""
    evidence = [passages_for(world, task, number, random.Random(0))]
    images = [world.images.get((task.entity, task.view))]
    inputs = processor(images=images, text=[task.question], evidence=evidence)
    if "evidence_input_ids" in inputs:
        ids, mask = inputs.pop("evidence_input_ids"), inputs.pop("evidence_attention_mask")
        inputs["evidence_states"], inputs["evidence_token_mask"] = model.encode_evidence(ids, mask)
    times = []
    for _ in range(8):
        start = time.process_time()
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        times.append(time.process_time() - start)
    return min(times)


def curve(model: RavlmForConditionalGeneration, processor: RavlmProcessor, world: World, tasks: list, numbers) -> dict:
    """Exact match and seconds to the first token, by the number of passages."""
    return {
        str(number): [
            exact_match(world, tasks, replies(model, processor, world, tasks, number)),
            first_token(model, processor, world, tasks[0], number),
        ]
        for number in numbers
    }


def measured(world: World, countries: list[str], tasks: list, fusion: str, run: argparse.Namespace) -> dict:
    """Trains one reader and asks it: its line of the report."""
    model, processor = load_reader(run.reader, run.checkpoint, fusion, run.seed)
    found = {"reader": run.reader, "fusion": fusion, "seed": run.seed, "steps": run.steps}
    seconds = train(model, processor, world, countries, run) if run.steps else 0.0
    texts = replies(model, processor, world, tasks, 2, run.seed)
    found |= {
        "minutes": seconds / 60,
        "parameters": sum(p.numel() for p in model.fusion.parameters()),
        "settings": {
            name: getattr(run, name) for name in ("lr", "batch_size", "reconstruction", "distillation", "focus")
        },
        "tasks": len(tasks),
        "exact match": exact_match(world, tasks, texts),
        "named": named(tasks, texts),
        "closed-book": exact_match(world, tasks, replies(model, processor, world, tasks, 0)),
    }
    if run.curve:
        found["curve"] = curve(model, processor, world, tasks, run.numbers)
    return found


def main() -> None:
    """One report: reader after reader, each a line of the file that is written after it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reader", choices=STEPS_OF, default="flags", help="the shipped one, or SmolLM2-135M")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="another folder of a flags reader")
    parser.add_argument("--fusions", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps of each reader; by default of each fusion its own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, help="peak of the fusion's (its own); the language model's is a third")
    parser.add_argument("--reconstruction", type=float, nargs="+", help="share, or from and to; by default its own")
    parser.add_argument("--distillation", type=float, default=0.0, help="weight")
    parser.add_argument("--focus", type=float, default=0.0, help="on hard tokens")
    parser.add_argument("--curve", action="store_true", help="also ask with more passages, and measure times")
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="of passages, for --curve")
    parser.add_argument("--questions", type=int, help="ask so many, drawn by chance; by default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("fusions.jsonl"), help="a line is added for each reader")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world = load_world()
    train_countries, dev_countries = split_entities(sorted(world.entities))
    tasks = tasks_of(world, dev_countries, [VIEW], SHORT_KINDS)
    if arguments.questions:
        tasks = random.Random(0).sample(tasks, arguments.questions)
    if arguments.reader == "smollm2":
        world = replace(world, images={})  # it has learned to see nothing
    for seed in arguments.seeds:
        for fusion in arguments.fusions:
            run = argparse.Namespace(**{**vars(arguments), "seed": seed})
            usual = STEPS_OF[run.reader][fusion]
            run.steps = usual if arguments.steps is None or not usual else arguments.steps
            run.lr = SETTINGS[fusion]["lr"] if run.lr is None else run.lr
            share = run.reconstruction or SETTINGS[fusion]["reconstruction"]
            run.reconstruction = share * 2 if len(share) == 1 else share
            found = measured(world, train_countries, tasks, fusion, run)
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
