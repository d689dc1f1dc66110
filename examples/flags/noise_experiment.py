"""What noise in training does to a reader that also knows things by heart: does it still believe every passage?

    cd examples && python -m flags.noise_experiment --out ../runs/noise --seeds 0 1 2

The shipped reader knows nothing closed-book, so evidence cannot harm it. Here it first learns the facts of some
countries by heart, half of the dev countries among them. Then two readers go on from there with the same rows, as many
steps and as many closed-book questions, and differ in the `EvidenceMix` alone: "gold" reads the passage that answers
and no other, "noise" reads retrieved, gold and distracting passages in any order, sometimes none, and about countries
that it knows sometimes none that is right. Neither reads a passage about a dev country.

Both are asked about the dev countries in drawing styles that were kept out: those that they know (can evidence harm?)
and those that they do not (does it still help?).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from flags.copying import copying_parts
from flags.noisy_rows import HELD_OUT_STYLES, countries_of, rows_to_know, rows_to_read
from flags.robustness import (
    CONDITIONS,
    answers_right,
    closed_book,
    effect_of,
    evidence_for,
    format_effects,
    harm_interval,
    questions_about,
)
from flags.world import load_world
from hf_ravlm import RavlmEncoder, RavlmRetriever
from hf_ravlm.training import EvidenceMix, RavlmTrainer, freeze


MEMORY_BATCH, BATCH = 64, 16
CHECKPOINT = Path(__file__).parent / "checkpoint"
MIXES = {
    "gold": EvidenceMix(1, gold=1.0),
    "noise": EvidenceMix(2, gold=1.0, distractors=0.6, noise=0.1, dropout=0.1, withheld=0.5, shuffled=0.5),
}


@dataclass
class Options:
    """What can be chosen on the command line."""

    out: str = field(default="runs/noise", metadata={"help": "folder to write"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "one run of both readers for each"})
    known: int = field(default=40, metadata={"help": "countries of training to know by heart"})
    memory_steps: int = field(default=300, metadata={"help": "steps of 64 rows in which they are learned"})
    steps: int = field(default=150, metadata={"help": "steps of 16 rows of each reader"})
    learning_rate: float = field(default=2.5e-4, metadata={"help": "of the language model in these steps"})
    questions: int = field(default=150, metadata={"help": "at most, of each kind of country"})
    passages: list[int] = field(default_factory=lambda: [2], metadata={"help": "passages per question when asked"})
    betas: list[float] = field(default_factory=lambda: [0.0], metadata={"help": "of conflict-aware decoding"})
    keep: list[float] = field(
        default_factory=list, metadata={"help": "also: keep closed-book answers that are at least so sure"}
    )
    table: str = field(default="robustness.json", metadata={"help": "file to write in the folder"})


def main(options: Options) -> None:
    """Trains and asks all readers, prints the table and writes it after every one of them.

    Readers that stand in the folder already are not trained again: ask them with other `passages` and `betas`, into
    another `table`.
    """
    transformers_logging.set_verbosity_warning()
    folder, world = Path(options.out), load_world()
    folder.mkdir(parents=True, exist_ok=True)
    countries = countries_of(world, options.known)
    groups = ("known dev", "unknown dev")
    asked = {group: questions_about(world, countries[group], HELD_OUT_STYLES, options.questions) for group in groups}
    seconds: dict[str, float] = {}
    if not (folder / "memory").is_dir():  # both readers and all seeds go on from it
        started = time.perf_counter()
        model, processor, retriever = load(CHECKPOINT)
        rows = rows_to_know(world, countries, retriever.knowledge_base, [MEMORY_BATCH] * options.memory_steps)
        fit(model, processor, rows, folder, MEMORY_BATCH, 3e-4, 3e-3)
        model.save_pretrained(folder / "memory")
        seconds["memory"] = time.perf_counter() - started
    outcomes: dict[tuple[str, str], list] = {}
    for seed in options.seeds:
        for arm, mix in MIXES.items():
            trained = folder / f"{arm}-{seed}"
            if not trained.is_dir():
                started = time.perf_counter()
                model, processor, retriever = load(folder / "memory")
                rows = rows_to_read(world, countries, retriever.knowledge_base, options.steps * BATCH, seed)
                fit(model, processor, rows, folder, BATCH, options.learning_rate, 5e-4, seed, retriever, mix)
                model.save_pretrained(trained)
                seconds[f"{arm}, seed {seed}"] = time.perf_counter() - started
            model, processor, retriever = load(trained)
            for name, pair in measure(model, processor, retriever, asked, options).items():
                outcomes.setdefault((f"{arm}, {name[0]}", name[1]), []).append((asked[name[0].split(",")[0]], *pair))
            report(outcomes, {"options": asdict(options), "seconds": seconds}, folder / options.table)


def fit(model, processor, rows, folder, batch_size, rate, projector_rate, seed=0, retriever=None, mix=None) -> None:
    """Trains the language model slowly, or it forgets how to copy, and what shows it the picture faster."""
    set_seed(seed)
    freeze(model.model, *copying_parts(model.language_model))
    language = [parameter for parameter in model.language_model.parameters() if parameter.requires_grad]
    groups = [{"params": language, "lr": rate}, {"params": model.image_projector.parameters(), "lr": projector_rate}]
    steps = len(rows) // batch_size
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",
        lr_scheduler_type="cosine",
        warmup_steps=max(steps // 20, 1),
        logging_steps=max(steps // 10, 1),
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        save_strategy="no",
        report_to="none",
    )
    RavlmTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=processor,
        retriever=retriever,
        evidence=mix,
        optimizers=(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0), None),
    ).train()


def measure(model, processor, retriever, asked, options: Options) -> dict[tuple[str, str], tuple]:
    """Right closed-book and right with evidence, for all countries, numbers of passages, conditions and betas."""
    model.eval()
    pairs = {}
    for group, questions in asked.items():
        alone, confidence = closed_book(model, processor, questions)
        for k in options.passages:
            evidence = evidence_for(questions, retriever, k)
            for beta in options.betas:
                told = f"{group}, k = {k}" + (f", beta = {beta}" if beta else "")
                for condition in CONDITIONS:
                    right = answers_right(model, processor, questions, evidence[condition], beta)
                    pairs[told, condition] = (alone, right)
                    for least in options.keep:
                        kept = np.where(confidence >= least, alone, right)
                        pairs[f"{told}, closed-book from {least}", condition] = (alone, kept)
    return pairs


def report(outcomes: dict[tuple[str, str], list], record: dict, path: Path) -> None:
    """What is finished, to the screen and to the file."""
    table: dict[str, dict[str, list]] = {}
    for (reader, condition), runs in outcomes.items():
        table.setdefault(reader, {})[condition] = [effect_of(alone, told) for _, alone, told in runs]
        record[f"harmed of right, 95 % interval: {reader}, {condition}"] = harm_interval(runs)
    path.write_text(json.dumps({**record, "runs": table}, indent=2) + "\n", encoding="utf-8")
    print(format_effects(table), flush=True)


def load(folder: Path):
    """Model, processor and retriever; all but the weights are those of the shipped folder."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return model, processor, RavlmRetriever.from_pretrained(CHECKPOINT, encoder=RavlmEncoder(model.model, processor))


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
