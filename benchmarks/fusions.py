"""What each fusion makes of the same evidence: answers about flags after the same short training.

    python benchmarks/fusions.py --steps 300 --output fusions.json

Every reader starts from the shipped flag reader (towers and language model trained, its own fusion new) and learns on
fictional countries, whose facts it cannot know, with two passages per question: the one that holds the answer and
another about the same country. It is then asked about the 40 countries that no training saw, with two real passages of
each, and closed-book. The passages come in any order: some fusions have none.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from flags.measure import score, tasks_of  # noqa: E402
from flags.questions import SHORT_KINDS, ask  # noqa: E402
from flags.shuffled import ShuffledCountries, answers_from  # noqa: E402
from flags.texts import passage_texts  # noqa: E402
from flags.world import load_world, split_entities  # noqa: E402
from hf_ravlm import RavlmForConditionalGeneration, RavlmProcessor  # noqa: E402
from hf_ravlm.pipelines import answer_questions  # noqa: E402


CHECKPOINT = ROOT / "examples" / "flags" / "checkpoint"
FUSIONS = ("in_context", "concat", "product", "attention", "gated", "cross_attention")
VIEW = "openmoji"


def load_reader(fusion: str, seed: int) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
    """The shipped reader with another fusion, whose weights are new."""
    torch.manual_seed(seed)
    model = RavlmForConditionalGeneration.from_pretrained(
        CHECKPOINT, fusion=fusion, num_memory_tokens=8, cross_attention_every=1
    )
    processor = RavlmProcessor.from_pretrained(CHECKPOINT)
    processor.fusion, processor.num_memory_tokens = fusion, 8
    return model, processor


def training_batch(countries: ShuffledCountries, world, images: list, rng: random.Random, size: int) -> dict:
    """Questions on fictional countries, with the passage that answers and another of the same country."""
    batch: dict[str, list] = {"images": [], "text": [], "evidence": [], "answers": []}
    while len(batch["text"]) < size:
        shown = [passage for passage in countries.passages_of(countries.country()) if passage.kind in SHORT_KINDS]
        if len(shown) < 2:
            continue
        gold, other = rng.sample(shown, 2)
        passages = [gold.text, other.text]
        rng.shuffle(passages)
        batch["images"].append(world.images[rng.choice(images)])
        batch["text"].append(ask(gold.kind, rng))
        batch["evidence"].append(passages)
        batch["answers"].append(answers_from([gold])[gold.kind])
    return batch


def train(model, processor, world, countries: list[str], arguments: argparse.Namespace) -> None:
    rng, fiction = (
        random.Random(arguments.seed),
        ShuffledCountries([world.entities[c] for c in countries], arguments.seed),
    )
    images = [(c, VIEW) for c in countries if (c, VIEW) in world.images]
    trained = ("fusion.", "model.text_encoder.", "language_model.")  # pictures tell nothing here
    groups: dict[bool, list] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(trained)
        if parameter.requires_grad:
            groups[name.startswith("language_model.")].append(parameter)
    # The language model can copy already, and forgets it at the pace at which a fusion learns.
    peaks = {True: arguments.lr / 20, False: arguments.lr}
    optimizer = torch.optim.AdamW([{"params": groups[old], "lr": peaks[old]} for old in (True, False)])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / arguments.steps)
    )
    model.train()
    for step in range(arguments.steps):
        inputs = processor(**training_batch(fiction, world, images, rng, arguments.batch_size))
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"  step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)
    model.eval()


def exact_match(model, processor, world, tasks: list, with_evidence: bool, seed: int) -> float:
    """Share of right answers, with the gold passage and another of the country in any order, or without any."""
    rng = random.Random(seed)
    right = 0.0
    for start in range(0, len(tasks), 32):
        batch = tasks[start : start + 32]
        evidence = [two_passages(world.entities[task.entity], task.kind, rng) for task in batch]
        answers = answer_questions(
            model,
            processor,
            None,
            [world.images[task.entity, task.view] for task in batch],
            [task.question for task in batch],
            evidence=evidence if with_evidence else [[] for _ in batch],
            with_posterior=False,
            do_sample=False,
            max_new_tokens=24,
        )
        right += sum(
            score(world, task, rows[0].text)["exact match"] for task, rows in zip(batch, answers, strict=True)
        )
    return right / len(tasks)


def two_passages(row: dict, kind: str, rng: random.Random) -> list[str]:
    """The passage of a kind and another short one of the same country, in any order."""
    texts = {name: text for name, (_, text) in passage_texts(row).items() if name in SHORT_KINDS}
    passages = [texts[kind], texts[rng.choice([name for name in sorted(texts) if name != kind])]]
    rng.shuffle(passages)
    return passages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fusions", nargs="+", choices=FUSIONS, default=FUSIONS)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each reader")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="peak learning rate of the fusion; the language model's is 1/20"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world = load_world()
    train_countries, dev_countries = split_entities(sorted(world.entities))
    tasks = tasks_of(world, dev_countries, [VIEW], SHORT_KINDS)
    figures = []
    print(
        "| fusion | parameters of the fusion | exact match, two passages | closed-book | training, s |"
        "\n|---|---|---|---|---|"
    )
    for fusion in arguments.fusions:
        model, processor = load_reader(fusion, arguments.seed)
        start = time.perf_counter()
        train(model, processor, world, train_countries, arguments)
        row = {
            "fusion": fusion,
            "parameters": sum(p.numel() for p in model.fusion.parameters()),
            "exact match": exact_match(model, processor, world, tasks, True, arguments.seed),
            "closed-book": exact_match(model, processor, world, tasks, False, arguments.seed),
            "seconds": time.perf_counter() - start,
        }
        figures.append(row)
        print(
            f"| {fusion} | {row['parameters']:,} | {row['exact match']:.3f} | {row['closed-book']:.3f} "
            f"| {row['seconds']:.0f} |",
            flush=True,
        )
        if arguments.output:
            arguments.output.write_text(json.dumps({"tasks": len(tasks), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
