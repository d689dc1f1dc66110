"""Mine hard negatives for a data set: passages that look right to a retriever and are wrong.

    python examples/mine_hard_negatives.py  # for the shipped towers, on flags
    accelerate launch examples/mine_hard_negatives.py --model DIR --dataset questions.jsonl --output negatives.jsonl
    accelerate launch examples/train_retriever.py --model DIR --dataset questions.jsonl --negatives negatives.jsonl

Line `n` of the output belongs to row `n` of the data: `negative_ids`, of which `kinds` they are, and their `scores`.
Finished batches are kept beside it in `<output>.cache`: a killed run goes on where it was, and processes share work.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModel, AutoProcessor, HfArgumentParser

from hf_ravlm import RavlmEncoder, RavlmRetriever, mine_hard_negatives
from hf_ravlm.training import NegativeRules
from training_rows import CHECKPOINT, DataOptions, training_rows


@dataclass
class Options:
    """How negatives are found, and what is none."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of the towers that are to be trained"})
    knowledge_base: str | None = field(default=None, metadata={"help": "its folder or name; by default that of model"})
    output: str = field(default="runs/negatives.jsonl", metadata={"help": "file to write"})
    num_negatives: int = field(default=8, metadata={"help": "per row"})
    num_candidates: int = field(default=50, metadata={"help": "proposed by each kind"})
    kinds: list[str] = field(
        default_factory=lambda: ["nearest", "same_entity"],
        metadata={"help": "which of nearest, lexical, same_entity and other_modality take turns"},
    )
    entity: str | None = field(
        default=None,
        metadata={"help": "column or metadata.<key> of what a passage is about: metadata.entity of flags, else title"},
    )
    positive_ratio: float = field(default=0.95, metadata={"help": "leave out passages above this share of the gold's"})
    batch_size: int = field(default=256, metadata={"help": "queries encoded at once, and kept together"})
    seed: int = field(default=0, metadata={"help": "of the random passages that fill up"})


def main(data: DataOptions, options: Options) -> None:
    """Mines, writes one line per row, prints how many there are of each kind."""
    processor = AutoProcessor.from_pretrained(options.model)
    encoder = RavlmEncoder(AutoModel.from_pretrained(options.model), processor)
    retriever = RavlmRetriever.from_pretrained(options.knowledge_base or options.model, encoder=encoder)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mined = mine_hard_negatives(
        retriever,
        training_rows(data),
        options.num_negatives,
        kinds=options.kinds,
        rules=NegativeRules(positive_ratio=options.positive_ratio),
        num_candidates=options.num_candidates,
        entity=options.entity or ("metadata.entity" if data.dataset == "flags" else "title"),
        batch_size=options.batch_size,
        seed=options.seed,
        cache=f"{output}.cache",
        process=(rank, num_processes),
    )
    if rank != 0:
        return
    lines = [
        json.dumps({"negative_ids": row.ids, "kinds": row.kinds, "scores": [round(score, 4) for score in row.scores]})
        for row in mined
    ]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = {kind: sum(row.kinds.count(kind) for row in mined) for kind in (*options.kinds, "random")}
    print(f"{output}: negatives for {len(mined)} rows, {counts}")


if __name__ == "__main__":
    main(*HfArgumentParser([DataOptions, Options]).parse_args_into_dataclasses())
