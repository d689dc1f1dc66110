"""What training retriever and reader together is worth in the flags world, against training each on its own.

    python examples/compare_joint.py --seeds 0 1 2 --out runs/joint

Image tower and reader are those of `examples/flags/checkpoint`; the text tower begins with random weights and is
aligned with the passages that answer, by in-batch negatives: a pair from separate trainings. From there two arms go on
for the same number of steps, with questions about the training countries:

- *separate*: the retriever by `RavlmPreTrainer` (InfoNCE, gold passages, in-batch negatives) with as many passages and
  questions per step as the other arm, then the reader by `RavlmTrainer` on what this retriever finds.
- *joint*: both by `RavlmJointTrainer`, from answers alone; no gold passage is given.

Measured on the dev countries, with all passages of all 250 entries as the knowledge.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, set_seed
from transformers.utils import logging as transformers_logging

from flags.asked_world import AskedWorld
from flags.comparing import (
    QUERY_VIEWS,
    alignment_arguments,
    alignment_collator,
    arguments_for,
    begin_towers,
    first_hits,
    learn_words,
    retrieval_figures,
    whole_retriever,
    world_to_compare_in,
)
from flags.comparison import format_comparison, write_results
from flags.copying import copying_parts
from flags.measure import answer_table, tasks_of
from flags.questions import SHORT_KINDS
from flags.world import World
from hf_ravlm import RavlmEncoder, RavlmRetriever
from hf_ravlm.training import EvidenceMix, JointSettings, RavlmJointTrainer, RavlmPreTrainer, RavlmTrainer, freeze


logger = logging.getLogger("compare_joint")

SHIPPED = Path(__file__).parent / "flags" / "checkpoint"


@dataclass
class Options:
    """What can be chosen on the command line."""

    out: str = field(default="runs/joint", metadata={"help": "folder for results.json"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of weights and questions"})
    first_steps: int = field(default=150, metadata={"help": "of alignment, from which both arms go on"})
    towers: str | None = field(default=None, metadata={"help": "folder of compare_negatives.py; no first steps then"})
    steps: int = field(default=40, metadata={"help": "of each arm"})
    questions: int = field(default=16, metadata={"help": "per step"})
    passages: int = field(default=4, metadata={"help": "that the joint trainer scores and reads per question"})
    objective: str = field(default="rag_sequence", metadata={"help": "of the joint trainer"})
    pseudo_relevance: float = field(default=0.0, metadata={"help": "weight of that loss in the joint trainer"})
    refresh_every: int = field(default=20, metadata={"help": "steps until the index is made anew"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of the towers, in both arms"})
    reader_learning_rate: float = field(default=2e-5, metadata={"help": "in both arms; more, and it forgets to copy"})
    choose: int = field(default=0, metadata={"help": "measure so many training countries, left out, instead of dev"})
    views: list[str] = field(default_factory=lambda: list(QUERY_VIEWS), metadata={"help": "drawing styles to measure"})
    arms: list[str] = field(default_factory=lambda: ["before", "separate", "joint"], metadata={"help": "to run"})


def main(options: Options) -> None:
    """Trains and measures all arms for every seed, prints the table, writes `results.json`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    world, results = world_to_compare_in(options.choose), []
    for seed in options.seeds:
        results.append(run_seed(world, options, seed))
        write_results(Path(options.out) / "results.json", results, **vars(options))
    print(format_comparison(results, options.arms))


def run_seed(world: World, options: Options, seed: int) -> dict[str, dict[str, float]]:
    """The separately trained pair as it is, and what each arm makes of it."""
    processor = AutoProcessor.from_pretrained(SHIPPED)
    model = AutoModelForImageTextToText.from_pretrained(SHIPPED)
    rows = AskedWorld(world, world.train, options.steps * options.questions, seed)
    begin(model.model, processor, rows, options, seed)
    start, results = copy.deepcopy(model.state_dict()), {}
    for arm in options.arms:
        model.load_state_dict(start)
        started = time.process_time()
        if arm == "separate":
            train_separately(model, processor, rows, options, seed)
        elif arm == "joint":
            train_jointly(model, processor, rows, options, seed)
        seconds = time.process_time() - started
        results[arm] = {**measure(model.eval(), processor, world, options), "processor seconds of training": seconds}
        logger.warning("seed %d, %s: %s", seed, arm, results[arm])
    return results


def begin(towers, processor, rows: AskedWorld, options: Options, seed: int) -> None:
    """The retriever on its own: aligned now, or as `compare_negatives.py` left it."""
    begin_towers(towers, processor, seed)
    if options.towers:
        towers.load_state_dict(load_file(Path(options.towers) / f"in-batch-{seed}.safetensors"))
    else:
        align(towers, processor, rows, options, seed, options.first_steps, 1e-3)


def align(towers, processor, rows: AskedWorld, options: Options, seed: int, steps: int, learning_rate: float) -> None:
    """As many pairs per step as make the passages and questions of a joint step."""
    pairs = options.questions * (1 + options.passages) // 2
    arguments = alignment_arguments(f"{options.out}-training", seed, steps, pairs, learning_rate)
    collator, rows = alignment_collator(processor), rows.with_length(steps * pairs)
    RavlmPreTrainer(towers, arguments, data_collator=collator, train_dataset=rows).train()


def train_separately(model, processor, rows: AskedWorld, options: Options, seed: int) -> None:
    """The retriever from gold passages, then the reader from what the retriever finds."""
    set_seed(seed)
    learn_words(model.model)
    align(model.model, processor, rows, options, seed, options.steps, options.learning_rate)
    learn_to_read(model)
    RavlmTrainer(
        model,
        reading_arguments(options, seed),
        train_dataset=rows,
        processing_class=processor,
        retriever=RavlmRetriever.build(rows.knowledge_base(), RavlmEncoder(model.model, processor)),
        evidence=EvidenceMix(model.config.num_passages),
    ).train()


def learn_to_read(model) -> None:
    """The reader learns, but for the circuit that copies, as in the recipe."""
    model.language_model.requires_grad_(True)
    freeze(*copying_parts(model.language_model))


def reading_arguments(options: Options, seed: int):
    """Those of the reader's trainer, and of the joint one."""
    settings = {"per_device_train_batch_size": options.questions, "learning_rate": options.reader_learning_rate}
    return arguments_for(f"{options.out}-training", seed, options.steps, **settings)


def train_jointly(model, processor, rows: AskedWorld, options: Options, seed: int) -> None:
    """Retriever and reader from answers, over latent passages; each with its own learning rate."""
    set_seed(seed)
    learn_words(model.model)
    learn_to_read(model)
    usual = model.config.marginalization
    model.config.marginalization, processor.passage_prompts = "sequence", True
    towers = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    known = set(map(id, towers))
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": towers, "lr": options.learning_rate}, {"params": others, "lr": options.reader_learning_rate}]
    RavlmJointTrainer(
        model,
        reading_arguments(options, seed),
        train_dataset=rows,
        processing_class=processor,
        retriever=RavlmRetriever.build(rows.knowledge_base(), RavlmEncoder(model.model, processor)),
        evidence=EvidenceMix(options.passages),
        settings=JointSettings(
            options.objective,
            side="passage",
            refresh_every=options.refresh_every,
            pseudo_relevance_weight=options.pseudo_relevance,
        ),
        optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
    ).train()
    model.config.marginalization, processor.passage_prompts = usual, False


def measure(model, processor, world: World, options: Options) -> dict[str, float]:
    """How often the passage that answers comes first, and how often the answer is right."""
    retriever = whole_retriever(model.model, processor, world)
    figures = retrieval_figures(retriever, world, options.views)
    tasks = tasks_of(world, world.dev, options.views, SHORT_KINDS)
    figures["hit@1, any passage of the country with the answer"] = first_hits(retriever, world, tasks)["answer"]
    usual = model.config.num_passages
    for num_passages, name in ((1, "exact match, best passage read"), (2, "exact match, two passages read")):
        model.config.num_passages = num_passages
        table = answer_table(model, processor, retriever, world, tasks, arms=("retrieved",))
        figures[name] = table["short answers"]["retrieved"]["exact match"]
    model.config.num_passages = usual
    return figures


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
