"""What mined negatives are worth: the towers of the flags world learn with them and without, at equal cost.

    python examples/compare_negatives.py --seeds 0 1 2 --out runs/negatives

A query is an image with a question; its passage is the one of that country that answers. Both arms start from the
image tower of `examples/flags/checkpoint`, which stays as it is, and a text tower with random weights, which learns
by `RavlmPreTrainer` and InfoNCE for the same number of steps:

- *in-batch*: pairs alone; the passages of the other pairs are the negatives.
- *mined*: fewer pairs, and for each the passages that the towers as they are confuse with the right one, and others of
  the same country, by `mine_hard_negatives`, and again every so many steps by `MineNegativesCallback`. Each step reads
  as many images and texts as without.

Training sees training countries alone; measured are the dev countries, among all passages of all entries. The towers
of each arm are left in the folder, for `compare_joint.py` to go on from.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, HfArgumentParser, set_seed
from transformers.utils import logging as transformers_logging

from flags.asked_world import AskedWorld
from flags.comparing import (
    alignment_arguments,
    alignment_collator,
    begin_towers,
    retrieval_figures,
    whole_retriever,
    world_to_compare_in,
)
from flags.comparison import format_comparison, write_results
from flags.world import World
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.training import HardNegatives, MineNegativesCallback, NegativeRules, RavlmPreTrainer, mine_hard_negatives


logger = logging.getLogger("compare_negatives")

ARMS = ("in-batch", "mined")
SHIPPED = Path(__file__).parent / "flags" / "checkpoint"


@dataclass
class Options:
    """What can be chosen on the command line."""

    out: str = field(default="runs/negatives", metadata={"help": "folder for results.json"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of weights and questions"})
    steps: int = field(default=80, metadata={"help": "of each arm"})
    pairs: int = field(default=16, metadata={"help": "of query and passage per step, where negatives are mined"})
    negatives: int = field(default=2, metadata={"help": "mined for each pair"})
    questions: int = field(default=1200, metadata={"help": "to train on"})
    mine_every: int = field(default=40, metadata={"help": "steps between two minings"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of both arms"})
    choose: int = field(default=0, metadata={"help": "measure so many training countries, left out, instead of dev"})


class RowsWithNegatives(torch.utils.data.Dataset):
    """The rows of `AskedWorld`, each with the negatives that were mined for it last."""

    def __init__(self, rows: AskedWorld, knowledge_base: KnowledgeBase):
        self.rows, self.knowledge_base = rows, knowledge_base
        self.negatives: list[list[str]] = [[] for _ in range(len(rows))]

    def use(self, mined: Sequence[HardNegatives]) -> None:
        """Takes what was mined for all rows."""
        self.negatives = [negatives.ids for negatives in mined]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        passages = [self.knowledge_base[passage_id] for passage_id in self.negatives[row]]
        return {**self.rows[row], "negatives": [{"text": p.text, "image": p.image} for p in passages]}


def main(options: Options) -> None:
    """Trains and measures both arms for every seed, prints the table, writes `results.json`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    world, results = world_to_compare_in(options.choose), []
    for seed in options.seeds:
        results.append(run_seed(world, options, seed))
        write_results(Path(options.out) / "results.json", results, **vars(options))
    print(format_comparison(results, ARMS))


def run_seed(world: World, options: Options, seed: int) -> dict[str, dict[str, float]]:
    """Towers that know drawings, and each arm from there to its figures."""
    processor = AutoProcessor.from_pretrained(SHIPPED)
    towers = AutoModel.from_pretrained(SHIPPED)
    begin_towers(towers, processor, seed)
    rows = AskedWorld(world, world.train, options.questions, seed)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    start, results = copy.deepcopy(towers.state_dict()), {}
    for arm in ARMS:
        towers.load_state_dict(start)
        started = time.process_time()
        (train_with_mined if arm == "mined" else train_in_batch)(towers, processor, rows, options, seed)
        seconds = time.process_time() - started
        figures = retrieval_figures(whole_retriever(towers.eval(), processor, world), world)
        results[arm] = {**figures, "processor seconds of training": seconds}
        save_file(towers.state_dict(), Path(options.out) / f"{arm}-{seed}.safetensors")
        logger.warning("seed %d, %s: %s", seed, arm, results[arm])
    return results


def train_in_batch(towers, processor, rows: AskedWorld, options: Options, seed: int) -> None:
    """Pairs alone, as many as there are passages and queries in a step of the other arm."""
    set_seed(seed)
    pairs = options.pairs * (2 + options.negatives) // 2
    arguments = alignment_arguments(f"{options.out}-training", seed, options.steps, pairs, options.learning_rate)
    RavlmPreTrainer(towers, arguments, data_collator=alignment_collator(processor), train_dataset=rows).train()


def train_with_mined(towers, processor, rows: AskedWorld, options: Options, seed: int) -> None:
    """Pairs and their negatives, mined now and every so many steps."""
    set_seed(seed)
    knowledge_base, encoder = rows.knowledge_base(), RavlmEncoder(towers, processor)
    with_negatives = RowsWithNegatives(rows, knowledge_base)
    how = {
        "num_negatives": options.negatives,
        "kinds": ("nearest", "same_entity"),
        "entity": "metadata.entity",
        "rules": NegativeRules(positive_ratio=None, near_duplicate_bits=None),  # near copies are what is wanted
        "num_candidates": 10,
    }
    with_negatives.use(mine_hard_negatives(RavlmRetriever.build(knowledge_base, encoder), rows, **how))
    callback = MineNegativesCallback(knowledge_base, encoder, rows, options.mine_every, with_negatives.use, **how)
    arguments = alignment_arguments(
        f"{options.out}-training", seed, options.steps, options.pairs, options.learning_rate
    )
    RavlmPreTrainer(
        towers,
        arguments,
        data_collator=alignment_collator(processor, "negatives"),
        train_dataset=with_negatives,
        callbacks=[callback],
    ).train()


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
