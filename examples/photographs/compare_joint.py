"""Captioner and retriever trained on together, against one after the other, at equal processor time.

    python examples/photographs/compare_joint.py --data runs/photographs/data --seconds 240

`train_captioner.py` makes the pair that both begin with: a reader that has learned to read entries, and a retriever
that nobody trained. Then, each for the same seconds of processor time and with the pictures that may be trained on:

- *separate*: the projection of pictures by cross-entropy over all entries, the right one told (what the tower sees is
  computed once, so this takes seconds), then the reader by `RavlmTrainer` on what this retriever finds.
- *joint*: both by `RavlmJointTrainer` (RAG-sequence), from the captions alone; no right entry is told.

The entries' vectors stay where `parts.py` puts them. Measured on the dev pictures.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands in, not beside, the rest
from compare_training import MANY_STEPS, Clock
from hf_ravlm.evaluation.report import markdown_table
from hf_ravlm.training import EvidenceMix, JointSettings, RavlmJointTrainer, RavlmTrainer
from photographs import train_captioner
from photographs.measure import measure, table_by_kind
from photographs.parts import NUM_PASSAGES, build_retriever, load_parts
from photographs.world import World, load_world, training_rows


ARMS = ("before", "separate", "joint")
SHOWN = {"unseen": "all unseen things", "class": "found by its class"}  # of the kinds of things


@dataclass
class Options:
    """What can be chosen on the command line."""

    data: str = field(default="runs/photographs/data", metadata={"help": "folder that prepare_data.py wrote"})
    out: str = field(default="runs/photographs/joint", metadata={"help": "folder for results.json and table.md"})
    seed: int = field(default=0, metadata={"help": "of weights, data and the things set aside"})
    first_steps: int = field(default=120, metadata={"help": "of train_captioner.py, from which both arms go on"})
    seconds: float = field(default=240.0, metadata={"help": "of processor time for each arm"})
    batch_size: int = field(default=8, metadata={"help": "captions per step"})
    passages: int = field(default=4, metadata={"help": "that the joint trainer scores and reads per picture"})
    rounds: int = field(default=30, metadata={"help": "of the separate arm's projection, over all pictures at once"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of the projection, in both arms"})
    reader_learning_rate: float = field(default=1e-5, metadata={"help": "of the reader's attention, in both arms"})
    num_questions: int | None = field(default=None, metadata={"help": "measure so many dev pictures only"})


class Pair:
    """Reader and retriever, the pictures to train on, and what both are set back to."""

    def __init__(self, options: Options):
        set_seed(options.seed)
        self.options, self.world = options, load_world(options.data, seed=options.seed)
        self.model, self.processor, keys = load_parts()
        self.retriever = build_retriever(self.model, self.processor, keys, list(self.world.entries.values()))
        first = train_captioner.Options(out=options.out, seed=options.seed, steps=options.first_steps)
        trained = train_captioner.train(self.model, self.processor, self.retriever, self.world, first)
        self.model = trained.model.merge_and_unload()
        self.start = copy.deepcopy(self.model.state_dict())

    def train(self, arm: str) -> int:
        """One arm from the start; the steps of its reader."""
        self.model.load_state_dict(self.start)
        set_seed(self.options.seed)
        clock = Clock(self.options.seconds)
        if arm == "separate":
            started = time.process_time()
            align(self.model.model, self.processor, self.retriever, self.world, self.options)
            clock.seconds -= time.process_time() - started
            rows = training_rows(self.world.train, self.retriever, NUM_PASSAGES, 0.0, self.options.seed)
            self.read(RavlmTrainer, clock, rows, EvidenceMix(NUM_PASSAGES))
        elif arm == "joint":
            usual = self.model.config.marginalization
            self.model.config.marginalization, self.processor.passage_prompts = "sequence", True
            rows = [{**row, "evidence": None} for row in self.world.train]
            self.read(RavlmJointTrainer, clock, rows, EvidenceMix(self.options.passages), settings=JointSettings())
            self.model.config.marginalization, self.processor.passage_prompts = usual, False
        return clock.steps

    def read(
        self, trainer: type[RavlmTrainer], clock: Clock, rows: list[dict], evidence: EvidenceMix, **parts
    ) -> None:
        """The attention of the reader learns and, where the trainer trains it, the projection of pictures."""
        groups = {"reader": [], "retriever": []}
        for name, parameter in self.model.named_parameters():
            part = learns_in(name, together=trainer is RavlmJointTrainer)
            parameter.requires_grad = part is not None
            if part is not None:
                groups[part].append(parameter)
        rates = {"reader": self.options.reader_learning_rate, "retriever": self.options.learning_rate}
        parameters = [{"params": group, "lr": rates[part]} for part, group in groups.items() if group]
        trainer(
            self.model,
            TrainingArguments(
                output_dir=self.options.out,
                max_steps=MANY_STEPS,
                per_device_train_batch_size=self.options.batch_size,
                lr_scheduler_type="constant",
                seed=self.options.seed,
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
            ),
            train_dataset=rows,
            processing_class=self.processor,
            retriever=self.retriever,
            evidence=evidence,
            callbacks=[clock],
            optimizers=(torch.optim.AdamW(parameters, weight_decay=0.0), None),
            **parts,
        ).train()


def learns_in(name: str, together: bool) -> str | None:
    """Which part of the pair a parameter belongs to, if it learns.

    >>> learns_in("language_model.model.layers.0.self_attn.q_proj.weight", together=False)
    'reader'
    >>> learns_in("model.image_projection.weight", together=True)
    'retriever'
    """
    if name.startswith("language_model.") and ".self_attn." in name:
        return "reader"
    if together and name.startswith(("model.image_projection.", "model.logit_scale")):
        return "retriever"
    return None


def align(towers, processor, retriever, world: World, options: Options) -> None:
    """Trains the projection of pictures: every picture's vector beside its own entry's, and far from all others'."""
    images = [row["image"] for row in world.train]
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), 16):
            pixels = processor.for_retrieval(images=images[start : start + 16])["pixel_values"]
            parts.append(towers.get_image_patches(pixels, grid=1).flatten(1))
    features = torch.cat(parts)  # (n, C)
    places = {entry: row for row, entry in enumerate(world.entries)}
    labels = torch.tensor([places[row["gold_ids"][0]] for row in world.train])
    entries = torch.tensor(retriever.vectors)
    optimizer = torch.optim.AdamW(towers.image_projection.requires_grad_(True).parameters(), lr=options.learning_rate)
    for _ in range(options.rounds):
        vectors = torch.nn.functional.normalize(towers.image_projection(features), dim=-1)
        loss = torch.nn.functional.cross_entropy(towers.logit_scale.exp() * vectors @ entries.mT, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(options: Options) -> None:
    """Trains and measures the arms; writes `results.json` and `table.md`."""
    transformers_logging.set_verbosity_error()
    pair, folder, results = Pair(options), Path(options.out), {}
    for arm in ARMS:
        steps = pair.train(arm) if arm != "before" else 0
        parts = (pair.model, pair.processor, pair.retriever, pair.world, folder / arm)
        _, captions = measure(*parts, ["closed_book", "retrieved"], NUM_PASSAGES, options.num_questions)
        results[arm] = {"steps": steps, "by kind": table_by_kind(captions)}
        print(arm, json.dumps(results[arm]), flush=True)
        report = {"options": vars(options), "results": results}
        (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    table = "\n".join(table_of(results))
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def table_of(results: dict) -> list[str]:
    """A row for each arm: how often the right entry comes first, and how often the caption names the thing."""
    rows = []
    for arm, row in results.items():
        of_kinds = [row["by kind"][kind] for kind in SHOWN]
        hits = [f"{figures['hit@1']:.3f}" for figures in of_kinds]
        rows.append([arm, str(row["steps"]), *hits, *(f"{figures['named']['retrieved']:.3f}" for figures in of_kinds)])
    names = [f"{name}, {kind}" for name in ("hit@1", "named") for kind in SHOWN.values()]
    return markdown_table(["arm", "steps", *names], rows)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
