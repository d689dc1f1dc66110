"""Train the two towers of a retriever: queries are drawn to their passages and away from all others.

    accelerate launch examples/train_retriever.py  # the shipped towers, on flags
    accelerate launch examples/train_retriever.py --model DIR --dataset captions.parquet --passage_column caption
    accelerate launch examples/train_retriever.py --encoder google/siglip2-base-patch16-224 \
        --dataset captions.parquet --passage_column caption
    accelerate launch examples/train_retriever.py --model DIR --dataset questions.jsonl --knowledge_base DIR \
        --negatives negatives.jsonl --triplet_weight 0.3 --grad_cache_chunk_size 64 --report_to tensorboard

A query is the image and the question of a row. Its passage is the text of `--passage_column`, or the first of its
gold passages in the knowledge base; `--negatives` (see `mine_hard_negatives.py`) adds passages that look right. The
objectives are options of `RavlmPreTrainingArguments`. A knowledge base is encoded anew by what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, set_seed

from hf_ravlm import (
    KnowledgeBase,
    RavlmEncoder,
    RavlmForPreTraining,
    RavlmPreTrainer,
    RavlmPreTrainingArguments,
    RavlmRetriever,
    RetrievalCollator,
    from_encoder,
)
from hf_ravlm.training.batches.rows import ROW_NUMBER, check_gold_ids, gold_ids_of
from training_rows import CHECKPOINT, DataOptions, evaluation_rows, training_rows


@dataclass
class Options:
    """What is trained, and on which passages."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of a reader or of its towers alone"})
    encoder: str | None = field(
        default=None, metadata={"help": "a pretrained dual encoder instead, such as CLIP or SigLIP, kept whole"}
    )
    knowledge_base: str | None = field(
        default=None, metadata={"help": "folder of the gold passages; by default that of model"}
    )
    passage_column: str | None = field(default=None, metadata={"help": "texts that belong to the images"})
    num_negatives: int = field(default=1, metadata={"help": "mined passages per query"})


@dataclass
class Arguments(RavlmPreTrainingArguments):
    """`RavlmPreTrainingArguments` with other defaults."""

    output_dir: str = field(default="runs/retriever", metadata={"help": "folder to write"})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "queries in a batch of one process"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the rows"})
    learning_rate: float = field(default=5e-5, metadata={"help": "at its highest"})
    logging_steps: float = field(default=5, metadata={"help": "steps between two lines"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints to keep"})


class WithPassages:
    """Rows whose gold and mined passages are looked up in a knowledge base when they are needed."""

    def __init__(self, rows: Dataset, knowledge_base: KnowledgeBase, num_negatives: int):
        self.gold_ids = gold_ids_of(rows) or [()]
        check_gold_ids(self.gold_ids, knowledge_base)
        if () in self.gold_ids:
            raise SystemExit(f"row {self.gold_ids.index(())} has no gold passage: expected an id in --gold_column")
        self.rows, self.knowledge_base, self.num_negatives = rows, knowledge_base, num_negatives
        mined = (
            {name for ids in rows["negative_ids"] for name in ids} if "negative_ids" in rows.column_names else set()
        )
        if unknown := sorted(name for name in mined if name not in knowledge_base):
            raise SystemExit(f"--negatives: {len(unknown)} ids, such as {unknown[:3]}, are not in the knowledge base")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        names = [self.gold_ids[number][0], *(row.get("negative_ids") or [])[: self.num_negatives]]
        passages = [self.knowledge_base[name] for name in names]
        negatives = [{"text": passage.text, "image": passage.image} for passage in passages[1:]]
        return {
            **row,
            "text": passages[0].text,
            "passage_image": passages[0].image,
            "entity": names[0],
            "hard": negatives,
        }


def main(data: DataOptions, options: Options, arguments: Arguments) -> None:
    """Trains, encodes the knowledge base anew, saves."""
    set_seed(arguments.seed)
    if options.encoder is not None:
        model, processor = from_encoder(options.encoder)
        towers = model.train()
    else:
        processor = AutoProcessor.from_pretrained(options.model)
        is_reader = "RavlmForConditionalGeneration" in (AutoConfig.from_pretrained(options.model).architectures or [])
        model = (AutoModelForImageTextToText if is_reader else AutoModel).from_pretrained(options.model)
        towers = model.model if is_reader else model
    # Matching and hidden words need heads, which go with the training.
    needs_heads = arguments.itm_weight or arguments.mlm_weight
    trained = RavlmForPreTraining.from_dual_encoder(towers) if needs_heads else towers

    train, held_out = training_rows(data), evaluation_rows(data)
    query = {f"query_{kind}": name for kind, name in (("image", "image"), ("text", "question"))}
    query = {kind: name for kind, name in query.items() if name in train.column_names}
    knowledge_base = None
    if options.passage_column is None:
        folder = options.knowledge_base or options.model
        if options.encoder is not None:  # it has not seen these passages yet
            knowledge_base = KnowledgeBase.load(folder)
        else:
            encoder = RavlmEncoder(towers, processor)
            knowledge_base = RavlmRetriever.from_pretrained(folder, encoder=encoder).knowledge_base
        train = WithPassages(train, knowledge_base, options.num_negatives)
        held_out = held_out and WithPassages(held_out, knowledge_base, 0)
        passage = {"passage_text": "text", "passage_image": "passage_image", "negatives": "hard", "label": "entity"}
    else:
        passage = {"passage_text": "answers"}
    trainer = RavlmPreTrainer(
        model=trained,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        data_collator=RetrievalCollator(
            processor=processor, **query, **passage, id=ROW_NUMBER, on_error=data.on_error
        ),
    )
    resumed = arguments.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resumed == "true" else resumed)
    if held_out is not None:
        trainer.log_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        model.save_pretrained(arguments.output_dir)
        processor.save_pretrained(arguments.output_dir)
        if knowledge_base is not None:
            RavlmRetriever.build(knowledge_base, RavlmEncoder(towers, processor)).save_pretrained(arguments.output_dir)
        print(f"saved to {arguments.output_dir}")


if __name__ == "__main__":
    parsed = HfArgumentParser([DataOptions, Options, Arguments]).parse_args_into_dataclasses()
    if parsed[1].passage_column is not None:
        parsed[0].answer_column = parsed[1].passage_column
    main(*parsed)
