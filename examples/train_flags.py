"""Train the retriever and the reader of the flags world from scratch, and write the folder that `make demo` uses.

    accelerate launch examples/train_flags.py --out runs/flags

Four stages (`examples/flags/recipe.py` says why): the picture tower learns to match drawings across styles, the text
tower to find the passage that answers, whatever the words of the question, the reader to copy the answer out of
passages, and then, made deeper, to tell what is asked for in any words, and which of many passages answers. Then the
knowledge base is indexed, everything is saved to one folder, and the dev countries are measured. Any option of a stage
scales with its number of steps, 0 skips it; `--start_from FOLDER` goes on from what another run wrote; `--leave_out
STYLE` keeps one drawing style out of training altogether. With `--by_country` a search finds the country by its
picture first, and what is known of it is read; what that is worth stands in `model_cards/flags_training.md`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from flags.copying import copying_parts, deepen
from flags.matching import FlagPairs, wrong_flag_pictures
from flags.measure import answer_table, format_answers, format_retrieval, retrieval_table, tasks_of
from flags.reading import ReadingBatches, make_tokenizer
from flags.recipe import (
    COARSE_SIZE,
    FINE_SIZE,
    AskingTrainer,
    MatchingTrainer,
    ReadingTrainer,
    build_model,
    build_processor,
)
from flags.shuffled import MOST_PASSAGES
from flags.text_pairs import TextPairs
from flags.wordings import ask_in_noise
from flags.world import VIEWS, load_world
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.training import freeze


logger = logging.getLogger("train_flags")


@dataclass
class Options:
    """What can be chosen on the command line."""

    out: str = field(default="runs/flags", metadata={"help": "folder to write"})
    seed: int = field(default=0, metadata={"help": "of weights and data"})
    matching_steps: int = field(default=1300, metadata={"help": "stage 1: batches of about 208 drawings"})
    sharpening_steps: int = field(default=400, metadata={"help": "end of stage 1: the same, on sharper pictures"})
    text_steps: int = field(default=2000, metadata={"help": "stage 2: batches of 24 questions"})
    reading_steps: int = field(default=1800, metadata={"help": "stage 3: batches of about 2048 tokens"})
    choosing_steps: int = field(default=8000, metadata={"help": "stage 4: batches of about 2048 tokens"})
    by_country: bool = field(default=False, metadata={"help": "find the country first, and read all that is known"})
    start_from: str | None = field(default=None, metadata={"help": "folder of an earlier run to go on from"})
    leave_out: str | None = field(default=None, metadata={"help": f"never to train on: {', '.join(VIEWS)}"})
    designs: int = field(default=5000, metadata={"help": "invented flags of stage 1: a multiple of 4, 32 or more"})
    evaluate: bool = field(default=True, metadata={"help": "measure the dev countries at the end"})


def main(options: Options) -> None:
    """Runs the stages, saves the folder, prints the tables."""
    transformers_logging.set_verbosity_warning()
    check(options)
    set_seed(options.seed)
    started = time.perf_counter()
    world = load_world()
    views = [view for view in VIEWS if view != options.leave_out]
    if options.start_from:
        processor = AutoProcessor.from_pretrained(options.start_from)
        model = AutoModelForImageTextToText.from_pretrained(options.start_from)
    else:
        processor = build_processor(make_tokenizer([world.entities[entity] for entity in world.train]))
        model = build_model(processor, options.seed)
    model.model.modality_log_weight.requires_grad_(False)  # pictures decide the country, words the passage
    folder = Path(options.out)
    train_matching(model, world, views, options)
    train_asking(model, processor, world, views, options)
    save(model, processor, folder, options)  # what a run that ends early can go on from
    train_reading(model, processor, world, views, options)
    train_choosing(model, processor, world, views, options)
    save(model, processor, folder, options)
    index(model, processor, world, folder, options)
    minutes = (time.perf_counter() - started) / 60
    logger.warning("trained and saved to %s in %.1f minutes", folder, minutes)
    if options.evaluate:
        evaluate(folder, processor, world, minutes, options)


def check(options: Options) -> None:
    """Refuses what would train the wrong thing for an hour, or fail after it."""
    for name, value in vars(options).items():
        if name.endswith("_steps") and value < 0:
            raise SystemExit(f"--{name} {value}: expected 0, which skips the stage, or more")
    if options.leave_out not in (None, *VIEWS):
        raise SystemExit(f"--leave_out {options.leave_out}: expected one of {', '.join(VIEWS)}")
    if options.start_from and not (Path(options.start_from) / "config.json").is_file():
        raise SystemExit(f"--start_from {options.start_from}: expected a folder that this program wrote")
    if options.designs % 4 or options.designs < 32:
        raise SystemExit(f"--designs {options.designs}: expected a multiple of 4, 32 or more")


def train_matching(model, world, views, options: Options) -> None:
    """Stage 1: the dual encoder's picture side, on small pictures first, which is fast, then on sharper ones."""
    encoder = model.model.to(memory_format=torch.channels_last)
    sides = (
        ("matching", options.matching_steps, COARSE_SIZE, 4e-3),
        ("sharpening", options.sharpening_steps, FINE_SIZE, 1.5e-3),
    )
    for name, steps, size, learning_rate in sides:
        if steps:
            pairs = FlagPairs(world, world.train, views, size, options.seed, num_designs=options.designs)
            arguments = stage(options, name, steps, learning_rate=learning_rate, weight_decay=0.05)
            fit(MatchingTrainer, encoder, arguments, pairs)
    model.model.to(memory_format=torch.contiguous_format)


def train_asking(model, processor, world, views, options: Options) -> None:
    """Stage 2: the dual encoder's text side, asked in any words of `flags.wordings`, idle ones among them."""
    encoder = model.model
    freeze(encoder.vision_tower, encoder.image_projection)
    encoder.logit_scale.requires_grad_(False)
    pairs = TextPairs(processor, world, world.train, views, seed=options.seed, ask=ask_in_noise, beginning=40)
    pairs.encode(encoder.eval())
    fit(AskingTrainer, encoder, stage(options, "asking", options.text_steps, learning_rate=2e-3), pairs)


def train_reading(model, processor, world, views, options: Options) -> None:
    """Stage 3: the reader, on an encoder that no longer changes."""
    freeze(model.model, *copying_parts(model.language_model))
    batches = ReadingBatches(
        processor, world, world.train, views, seed=options.seed, num_short_batches=options.reading_steps // 4
    )
    arguments = stage(options, "reading", options.reading_steps, learning_rate=3e-4, adam_beta2=0.98)
    fit(ReadingTrainer, model, arguments, batches)


def train_choosing(model, processor, world, views, options: Options) -> None:
    """Stage 4: the reader, deepened, asked in any words: on what a search brings, and on all that is known."""
    if options.choosing_steps:
        model.language_model = deepen(model.language_model, seed=options.seed)
        model.config.generator_config = model.language_model.config
    freeze(model.model, *copying_parts(model.language_model))
    batches = ReadingBatches(processor, world, world.train, views, seed=options.seed, whole=True)
    arguments = stage(options, "choosing", options.choosing_steps, learning_rate=3e-4, adam_beta2=0.98)
    fit(ReadingTrainer, model, arguments, batches)


def stage(options: Options, name: str, steps: int, **settings) -> TrainingArguments:
    """The arguments that all stages share: cosine schedule, bf16 where that is fast, no checkpoints in between."""
    return TrainingArguments(
        output_dir=f"{options.out}-{name}",
        max_steps=steps,
        seed=options.seed,
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=1,
        lr_scheduler_type="cosine",
        warmup_steps=max(steps // 20, 1),
        logging_steps=max(steps // 20, 1),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False},
        **settings,
    )


def has_fast_bf16() -> bool:
    """Whether the processor computes in bf16 by itself; where it does not, bf16 takes ten times as long as float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fit(trainer_class, model, arguments: TrainingArguments, batches) -> None:
    """Trains on batches that come ready made; the seed is set anew, so that no stage depends on those before."""
    set_seed(arguments.seed)
    if arguments.max_steps > 0:
        trainer_class(model=model, args=arguments, train_dataset=batches, data_collator=lambda rows: rows[0]).train()
        Path(arguments.output_dir).rmdir()  # the Trainer makes it, and without checkpoints nothing comes into it


def save(model, processor, folder: Path, options: Options) -> None:
    """Model and processor to one folder."""
    model.config.use_cache = model.config.generator_config.use_cache = True  # a Trainer turns them off
    if options.by_country:
        model.config.num_passages = MOST_PASSAGES
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def index(model, processor, world, folder: Path, options: Options) -> None:
    """Knowledge base and vectors to the same folder."""
    knowledge_base = KnowledgeBase.from_dicts([row for entity in world.entities for row in world.passages(entity)])
    grouping = {"group_by": "entity", "group_query": "image"} if options.by_country else {}
    RavlmRetriever.build(knowledge_base, RavlmEncoder(model.model, processor), **grouping).save_pretrained(folder)


def evaluate(folder: Path, processor, world, minutes: float, options: Options) -> None:
    """Loads the folder as a user would, measures the dev countries, writes `figures.json` beside the weights."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    retriever = RavlmRetriever.from_pretrained(folder, encoder=RavlmEncoder(model.model, processor))
    queries = [view for view in VIEWS if view != "mledoze"]
    wrong = wrong_flag_pictures(world, [*world.train, *world.dev], VIEWS)
    figures = {
        "left out": options.leave_out,
        "minutes": round(minutes, 1),
        "parameters": model.num_parameters(),
        "passages": len(retriever),
    }
    uncounted = {"retrieval": frozenset(), "retrieval without pictures that show another entry's flag": wrong}
    for name, pictures in uncounted.items():
        figures[name] = retrieval_table(retriever, world, world.dev, queries, leave_out=pictures)
        print(f"\n{name} (dev countries, all {len(world.entities)} entries)\n{format_retrieval(figures[name])}")
    if options.reading_steps or options.choosing_steps:
        kinds = ("name", "capital", "language", "currency", "subregion", "meaning", "describe")
        figures["answers"] = answer_table(
            model, processor, retriever, world, tasks_of(world, world.dev, queries, kinds)
        )
        print(f"\nanswers\n{format_answers(figures['answers'])}")
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
