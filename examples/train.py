"""Fine-tune a reader: it learns to answer from the passages that a retriever finds.

    accelerate launch examples/train.py  # the shipped model, on flags
    accelerate launch examples/train.py --model DIR --use_lora --dataset questions.jsonl \
        --eval_dataset more.jsonl --knowledge_base DIR --output_dir runs/reader --report_to tensorboard

    accelerate launch --num_processes 8 --mixed_precision bf16 examples/train.py --model Qwen/Qwen3-VL-2B-Instruct \
        --encoder google/siglip2-base-patch16-224 --knowledge_base my_folder --dataset questions.jsonl --use_lora \
        --activation_checkpointing --bf16  # not run here: it needs GPUs; at tiny size the tests run it on a CPU

`--model` is a folder or a name on the Hub: a saved system, with its knowledge base unless `--knowledge_base` names
another, or any reader of transformers beside `--encoder` and `--knowledge_base` (a folder of images and texts, a
table, or a stored one). Every option of `TrainingArguments` is one here. `training_rows.py` says which rows. The
output folder holds all that `pipeline("image-to-text", model=...)` needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments, set_seed

from hf_ravlm import EvidenceMix, RavlmTrainer
from hf_ravlm.pipelines.opening import open_pipeline
from training_rows import CHECKPOINT, DataOptions, evaluation_rows, training_rows


@dataclass
class Options:
    """What is trained, and what it reads."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of the reader to start from"})
    knowledge_base: str | None = field(default=None, metadata={"help": "what is searched; by default that of model"})
    encoder: str | None = field(default=None, metadata={"help": "what encodes it; by default the one that built it"})
    use_lora: bool = field(default=False, metadata={"help": "train adapters of the language model, not all of it"})
    lora_rank: int = field(default=16, metadata={"help": "of the adapters"})
    num_passages: int | None = field(default=None, metadata={"help": "K; by default as the model was trained"})
    gold: float = field(default=1.0, metadata={"help": "how often a gold passage is put in where none was found"})
    distractors: float = field(default=0.0, metadata={"help": "share of the other passages that mislead"})
    noise: float = field(default=0.1, metadata={"help": "how often one passage is a random one"})
    dropout: float = field(default=0.1, metadata={"help": "how often fewer passages are read, or none"})
    max_new_tokens: int = field(default=16, metadata={"help": "of the answers in evaluation"})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults."""

    output_dir: str = field(default="runs/reader", metadata={"help": "folder to write"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "rows in a batch of one process"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the rows"})
    learning_rate: float = field(default=1e-4, metadata={"help": "at its highest"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints to keep"})


def main(data: DataOptions, options: Options, arguments: Arguments) -> None:
    """Trains, saves, and prints the measures if there is something to measure with."""
    if data.negatives is not None and not options.distractors:
        raise SystemExit("--negatives: expected --distractors above 0, the share of passages that give way to them")
    set_seed(arguments.seed)
    system = open_pipeline(options.model, options.knowledge_base, options.encoder, str(arguments.device))
    model = system.model
    mix = EvidenceMix(
        model.config.num_passages if options.num_passages is None else options.num_passages,
        gold=options.gold,
        distractors=options.distractors,
        noise=options.noise,
        dropout=options.dropout,
    )
    held_out = evaluation_rows(data)
    trainer = RavlmTrainer(
        model,
        arguments,
        train_dataset=training_rows(data),
        eval_dataset=held_out,
        processing_class=system.processor,
        retriever=system.retriever,
        on_error=data.on_error,
        evidence=mix,
        peft_config=lora(options),
        generation=None if held_out is None else {"max_new_tokens": options.max_new_tokens, "do_sample": False},
    )
    resumed = arguments.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resumed == "true" else resumed)
    if held_out is not None:
        trainer.log_metrics("eval", trainer.evaluate())
    save(trainer, options)


def save(trainer: RavlmTrainer, options: Options) -> None:
    """Everything to one folder; adapters are merged into the model, and kept apart."""
    folder = Path(trainer.args.output_dir)
    trainer.save_model(str(folder / "adapters" if options.use_lora else folder))  # by all processes: it may be sharded
    if not trainer.is_world_process_zero():
        return
    if options.use_lora:
        from peft import PeftModel

        base = open_pipeline(options.model, options.knowledge_base, options.encoder, "cpu").model
        PeftModel.from_pretrained(base, folder / "adapters").merge_and_unload().save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    trainer.retriever.save_pretrained(folder)
    print(f"saved to {folder}")


def lora(options: Options):
    """Adapters in the attention of the language model, or `None`."""
    if not options.use_lora:
        return None
    from peft import LoraConfig

    return LoraConfig(r=options.lora_rank, lora_alpha=2 * options.lora_rank)


if __name__ == "__main__":
    main(*HfArgumentParser([DataOptions, Options, Arguments]).parse_args_into_dataclasses())
