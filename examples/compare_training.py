"""What each way of training on adds in the flags world, at equal processor time: one command, one table.

    python examples/compare_training.py --seeds 0 1 2 --seconds 60 --out runs/training

Every arm goes on from the same pair for the same seconds of processor time, with questions about training countries,
and is then asked about the dev countries, with all passages of all 250 entries as the knowledge:

- *ITC*, *ITC + ITM*, *ITC + MLM*, *all three*: the retriever alone, by `RavlmPreTrainer` with these objectives.
- *mined*: ITC with mined negatives behind its pairs.
- *separate*: half of the time ITC, half of it the reader by `RavlmTrainer` on what this retriever finds.
- *rag_sequence*, *emdr2*, *perplexity_distillation*: retriever and reader together, by `RavlmJointTrainer`.

The pair is the shipped one; with `--first_steps N` its text tower begins with random weights instead and is aligned
for so many steps, as a pair that has much to learn.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from compare_joint import SHIPPED, learn_to_read
from compare_negatives import RowsWithNegatives
from flags.asked_world import AskedWorld
from flags.comparing import (
    QUERY_VIEWS,
    alignment_arguments,
    alignment_collator,
    arguments_for,
    begin_towers,
    learn_words,
    retrieval_figures,
    whole_retriever,
    world_to_compare_in,
)
from flags.comparison import write_results
from flags.measure import answer_table, tasks_of
from flags.questions import SHORT_KINDS
from flags.world import World
from hf_ravlm import RavlmEncoder, RavlmForPreTraining, RavlmRetriever
from hf_ravlm.evaluation.report import markdown_table
from hf_ravlm.retrieval import ItmReranker
from hf_ravlm.training import (
    EvidenceMix,
    JointSettings,
    NegativeRules,
    RavlmJointTrainer,
    RavlmPreTrainer,
    RavlmTrainer,
    mine_hard_negatives,
)


logger = logging.getLogger("compare_training")

OBJECTIVES = {
    "ITC": {},
    "ITC + ITM": {"itm_weight": 0.5},
    "ITC + MLM": {"mlm_weight": 0.5},
    "all three": {"itm_weight": 0.5, "mlm_weight": 0.5},
}
TOGETHER = ("rag_sequence", "emdr2", "perplexity_distillation")
ARMS = ("before", *OBJECTIVES, "mined", "separate", *TOGETHER)
MANY_STEPS = 100_000  # the clock ends a training


@dataclass
class Options:
    """What can be chosen on the command line."""

    out: str = field(default="runs/training", metadata={"help": "folder for results.json and table.md"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of weights and questions"})
    seconds: float = field(default=60.0, metadata={"help": "of processor time for each arm"})
    first_steps: int = field(default=0, metadata={"help": "of alignment from random words; 0 takes the shipped pair"})
    pairs: int = field(default=32, metadata={"help": "of query and passage per step; half as many with mined ones"})
    questions: int = field(default=8, metadata={"help": "per step of the reader's and the joint trainer"})
    passages: int = field(default=4, metadata={"help": "that the joint trainer scores and reads per question"})
    learning_rate: float = field(default=3e-4, metadata={"help": "of the towers, in all arms"})
    reader_learning_rate: float = field(default=2e-5, metadata={"help": "in all arms"})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "to run"})
    views: list[str] = field(default_factory=lambda: list(QUERY_VIEWS), metadata={"help": "drawing styles to measure"})
    keep: bool = field(default=False, metadata={"help": "keep the model of each arm, in a folder ARM-SEED of --out"})
    choose: int = field(default=0, metadata={"help": "measure so many training countries, left out, instead of dev"})


class Clock(TrainerCallback):
    """Ends a training after so many seconds of processor time, and counts its steps."""

    def __init__(self, seconds: float):
        self.seconds, self.steps = seconds, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.end = time.process_time() + self.seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.steps = state.global_step
        control.should_training_stop = time.process_time() >= self.end


class Pair:
    """Retriever and reader of one seed, and the questions to train on."""

    def __init__(self, world: World, options: Options, seed: int):
        self.options, self.seed = options, seed
        self.processor = AutoProcessor.from_pretrained(SHIPPED)
        self.processor.text_tokenizer.mask_token = "<evidence>"  # a word that no text has
        self.model = AutoModelForImageTextToText.from_pretrained(SHIPPED)
        self.rows = AskedWorld(world, world.train, MANY_STEPS, seed)
        if options.first_steps:
            begin_towers(self.model.model, self.processor, seed)
            self.align("ITC", Clock(float("inf")), self.rows, options.pairs, options.first_steps, 1e-3)
        self.start = copy.deepcopy(self.model.state_dict())

    def train(self, arm: str) -> tuple[int, RavlmForPreTraining | None]:
        """Trains one arm from the start; its steps, and the head for matching where there is one."""
        self.model.load_state_dict(self.start)
        set_seed(self.seed)
        learn_words(self.model.model)
        clock, head = Clock(self.options.seconds), None
        if arm in OBJECTIVES:
            head = self.align(arm, clock, self.rows, self.options.pairs)
        elif arm == "mined":
            self.align("ITC", clock, self.with_negatives(), self.options.pairs // 2)
        elif arm == "separate":
            clock.seconds /= 2
            self.align("ITC", clock, self.rows, self.options.pairs)
            self.read(RavlmTrainer, clock, EvidenceMix(self.model.config.num_passages))
        elif arm in TOGETHER:
            self.read_together(arm, clock)
        return clock.steps, head

    def save(self, folder: Path) -> None:
        """Writes the reader and its processor as they are now."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def align(self, arm: str, clock: Clock, rows, pairs: int, steps: int = MANY_STEPS, rate: float | None = None):
        """The retriever alone; the model that was trained, with its heads."""
        arguments = alignment_arguments(
            *(f"{self.options.out}-training", self.seed, steps, pairs, rate or self.options.learning_rate),
            **OBJECTIVES[arm],
            warmup_steps=2,
        )
        head = RavlmForPreTraining.from_dual_encoder(self.model.model)
        collator = alignment_collator(self.processor, "negatives" if isinstance(rows, RowsWithNegatives) else None)
        parts = {"data_collator": collator, "train_dataset": rows, "processing_class": self.processor}
        RavlmPreTrainer(head, arguments, callbacks=[clock], **parts).train()
        return head

    def with_negatives(self) -> RowsWithNegatives:
        """A few questions, each with two negatives that the retriever takes for the right passage."""
        rows, base = self.rows.with_length(16 * self.options.pairs), self.rows.knowledge_base()
        found = mine_hard_negatives(
            RavlmRetriever.build(base, RavlmEncoder(self.model.model, self.processor)),
            rows,
            num_negatives=2,
            kinds=("nearest", "same_entity"),
            entity="metadata.entity",
            rules=NegativeRules(positive_ratio=None, near_duplicate_bits=None),
            num_candidates=10,
        )
        mined = RowsWithNegatives(rows, base)
        mined.use(found)
        return mined

    def read(self, trainer: type[RavlmTrainer], clock: Clock, evidence: EvidenceMix, **parts) -> None:
        """The reader, alone or with the retriever, from what is found."""
        learn_to_read(self.model)
        towers = {id(parameter) for parameter in self.model.model.parameters()}
        groups = [
            {
                "params": [p for p in self.model.parameters() if p.requires_grad and (id(p) in towers) == own],
                "lr": rate,
            }
            for own, rate in ((True, self.options.learning_rate), (False, self.options.reader_learning_rate))
        ]
        size = {"per_device_train_batch_size": self.options.questions, "warmup_steps": 2}
        trainer(
            self.model,
            arguments_for(f"{self.options.out}-training", self.seed, MANY_STEPS, **size),
            train_dataset=self.rows,
            processing_class=self.processor,
            retriever=RavlmRetriever.build(self.rows.knowledge_base(), RavlmEncoder(self.model.model, self.processor)),
            evidence=evidence,
            callbacks=[clock],
            optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
            **parts,
        ).train()

    def read_together(self, objective: str, clock: Clock) -> None:
        """Retriever and reader from answers, over latent passages."""
        usual = self.model.config.marginalization
        self.model.config.marginalization, self.processor.passage_prompts = "sequence", True
        settings = JointSettings(objective, side="passage", refresh_every=20)
        self.read(RavlmJointTrainer, clock, EvidenceMix(self.options.passages), settings=settings)
        self.model.config.marginalization, self.processor.passage_prompts = usual, False


def main(options: Options) -> None:
    """Trains and measures every arm for every seed; writes `results.json` and `table.md` after each."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    world, results, folder = world_to_compare_in(options.choose), [], Path(options.out)
    for seed in options.seeds:
        pair = Pair(world, options, seed)
        results.append({})
        for arm in options.arms:
            steps, head = pair.train(arm)
            matches = "itm_weight" in OBJECTIVES.get(arm, {})
            if options.keep:
                pair.save(folder / f"{arm}-{seed}")
            results[-1][arm] = {**measure(pair, head if matches else None, world), "steps": steps}
            logger.warning("seed %d, %s: %s", seed, arm, results[-1][arm])
            write_results(folder / "results.json", results, **vars(options))
            (folder / "table.md").write_text(table_of(results, options) + "\n", encoding="utf-8")
    print(table_of(results, options))


def measure(pair: Pair, head: RavlmForPreTraining | None, world: World) -> dict[str, float]:
    """How often the passage that answers comes first, also after reranking, and how often the answer is right."""
    retriever = whole_retriever(pair.model.model.eval(), pair.processor, world)
    figures = retrieval_figures(retriever, world, pair.options.views)
    tasks = tasks_of(world, world.dev, pair.options.views, SHORT_KINDS)
    if head is not None:
        found = retriever.retrieve(
            [world.images[task.entity, task.view] for task in tasks],
            [task.question for task in tasks],
            k=1,
            num_candidates=5,
            reranker=ItmReranker(matcher(head.eval(), pair.processor)),
        )
        hits = [row[0].id == f"{task.entity}/{task.kind}" for task, row in zip(tasks, found, strict=True)]
        figures["hit@1, reranked"] = sum(hits) / len(hits)
    table = answer_table(pair.model.eval(), pair.processor, retriever, world, tasks, arms=("retrieved",))
    figures["exact match"] = table["short answers"]["retrieved"]["exact match"]
    return figures


def matcher(head: RavlmForPreTraining, processor):
    """What scores pairs of query and passage by the head: `(B,)` logits."""

    @torch.no_grad()
    def match(queries, passages):
        inputs = processor.for_retrieval(images=[one.image for one in queries], texts=[one.text for one in queries])
        other = processor.for_retrieval(images=[one.image for one in passages], texts=[one.text for one in passages])
        return head(**inputs, **{f"passage_{name}": tensor for name, tensor in other.items()}).match_logits

    return match


def table_of(results: list[dict], options: Options) -> str:
    """A row for each arm: mean over the seeds, and the range where there are several."""
    names = list(dict.fromkeys(name for result in results for row in result.values() for name in row))
    lines = []
    for arm in options.arms:
        rows = [result[arm] for result in results if arm in result]
        if rows:
            lines.append([arm, *(spread([row[name] for row in rows if name in row]) for name in names)])
    return "\n".join(markdown_table([f"{options.seconds:g} s an arm, {len(results)} seeds", *names], lines))


def spread(values: list[float]) -> str:
    """Mean, and smallest to largest.

    >>> spread([0.5, 0.7]), spread([12]), spread([])
    ('0.600 (0.500 to 0.700)', '12', '–')
    """
    if not values:
        return "–"
    form = ".3f" if max(values) <= 1 else ".0f"
    told = f"{sum(values) / len(values):{form}}"
    return told if len(values) == 1 else f"{told} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
