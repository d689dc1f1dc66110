"""Train a reader together with the retriever that finds its passages: the answers teach what is worth finding.

    accelerate launch examples/train_joint.py  # the shipped model, on flags
    accelerate launch examples/train_joint.py --model DIR --dataset questions.jsonl --objective emdr2 --side passage \
        --refresh_every 200 --num_passages 8 --report_to tensorboard

Each passage has a prompt of its own, and the answer's likelihood is that over the passages. `JointSettings` says what
the objectives are. The output folder holds model, processor and the index that fits them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, TrainingArguments, set_seed

from hf_ravlm import EvidenceMix, JointSettings, RavlmEncoder, RavlmJointTrainer, RavlmRetriever
from training_rows import CHECKPOINT, DataOptions, evaluation_rows, training_rows


@dataclass
class Options:
    """What is trained, and what it reads."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of the reader, with its towers"})
    knowledge_base: str | None = field(default=None, metadata={"help": "its folder or name; by default that of model"})
    num_passages: int = field(default=4, metadata={"help": "K: prompts per question"})
    objective: Literal["rag_sequence", "rag_token", "perplexity_distillation", "emdr2"] = field(
        default="rag_sequence", metadata={"help": "what the retriever learns from answers"}
    )
    side: Literal["query", "passage"] = field(default="query", metadata={"help": "'passage' learns on both sides"})
    refresh_every: int | None = field(default=None, metadata={"help": "steps between two indexes; one comes last"})
    reader_learns: bool = field(default=True, metadata={"help": "train the reader, too"})
    retriever_warmup: int = field(default=0, metadata={"help": "steps that the retriever waits for the reader"})
    pseudo_relevance_weight: float = field(default=0.0, metadata={"help": "of the loss on passages with the answer"})
    max_new_tokens: int = field(default=16, metadata={"help": "of the answers in evaluation"})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults."""

    output_dir: str = field(default="runs/joint", metadata={"help": "folder to write"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "questions in a batch of one process"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the rows"})
    learning_rate: float = field(default=5e-5, metadata={"help": "at its highest"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints to keep"})


def main(data: DataOptions, options: Options, arguments: Arguments) -> None:
    """Trains, saves, and prints the measures if there is something to measure with."""
    if data.negatives is not None:
        raise SystemExit("--negatives: joint training reads what the retriever finds; they are for the other programs")
    set_seed(arguments.seed)
    settings = JointSettings(
        objective=options.objective,
        side=options.side,
        refresh_every=options.refresh_every,
        warmup_steps=options.retriever_warmup,
        reader_learns=options.reader_learns,
        pseudo_relevance_weight=options.pseudo_relevance_weight,
    )
    marginalization = "token" if options.objective == "rag_token" else "sequence"
    processor = AutoProcessor.from_pretrained(options.model, passage_prompts=True)
    model = AutoModelForImageTextToText.from_pretrained(options.model, marginalization=marginalization)
    retriever = RavlmRetriever.from_pretrained(
        options.knowledge_base or options.model, encoder=RavlmEncoder(model.model, processor)
    )
    trainer = RavlmJointTrainer(
        model,
        arguments,
        train_dataset=training_rows(data),
        eval_dataset=evaluation_rows(data),
        processing_class=processor,
        retriever=retriever,
        on_error=data.on_error,
        evidence=EvidenceMix(options.num_passages),
        generation={"max_new_tokens": options.max_new_tokens, "do_sample": False},
        settings=settings,
    )
    resumed = arguments.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resumed == "true" else resumed)
    if trainer.eval_dataset is not None:
        trainer.log_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        for part in (model, processor, trainer.retriever):  # the retriever that serves now
            part.save_pretrained(arguments.output_dir)
        print(f"saved to {arguments.output_dir}, with version {trainer.index_version} of the index")


if __name__ == "__main__":
    main(*HfArgumentParser([DataOptions, Options, Arguments]).parse_args_into_dataclasses())
