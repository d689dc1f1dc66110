"""Train a reader together with the retriever that finds its passages: the answers teach what is worth finding.

    accelerate launch examples/train_joint.py  # the shipped model, on flags
    accelerate launch examples/train_joint.py --model DIR --dataset questions.jsonl --objective emdr2 --side passage \
        --refresh_every 200 --num_passages 8 --report_to tensorboard

    accelerate launch --num_processes 8 --mixed_precision bf16 examples/train_joint.py \
        --model Qwen/Qwen3-VL-2B-Instruct --encoder google/siglip2-base-patch16-224 --knowledge_base my_folder \
        --dataset questions.jsonl --use_lora --activation_checkpointing --tokens_at_once 16384 --bf16
        # not run here: it needs GPUs; at tiny size the tests run it on a CPU

`--model` is a saved system with its towers, or any reader of transformers beside `--encoder`, a dual encoder, both by
folder or name on the Hub; `--knowledge_base` is then a folder of images and texts, a table, or a stored one of these
towers. Each passage has a prompt of its own, and the answer's likelihood is that over the passages; `JointSettings`
says what the objectives are. With `--use_lora` reader and towers learn through adapters, which are kept apart and
merged. The output folder holds model, processor and the index that fits them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from hf_ravlm import EvidenceMix, JointSettings, RavlmEncoder, RavlmJointTrainer, RavlmRetriever, from_backbones
from hf_ravlm.hub.lora_targets import LORA_TARGETS
from hf_ravlm.model.backbones import reader_kind
from hf_ravlm.pipelines.knowledge import open_knowledge
from training_rows import CHECKPOINT, DataOptions, evaluation_rows, training_rows


@dataclass
class Options:
    """What is trained, and what it reads."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of the reader, with its towers"})
    encoder: str | None = field(default=None, metadata={"help": "dual encoder for a model that has no towers"})
    knowledge_base: str | None = field(default=None, metadata={"help": "what is searched; by default that of model"})
    use_lora: bool = field(default=False, metadata={"help": "train adapters of reader and towers, not all of them"})
    lora_rank: int = field(default=16, metadata={"help": "of the adapters"})
    tokens_at_once: int | None = field(default=None, metadata={"help": "of prompts, which bounds the memory"})
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
        tokens_at_once=options.tokens_at_once,
    )
    model, processor = load_reader(options)
    retriever = open_knowledge(options.knowledge_base or options.model, RavlmEncoder(model.model, processor))
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
        peft_config=lora(options),
    )
    resumed = arguments.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resumed == "true" else resumed)
    if trainer.eval_dataset is not None:
        trainer.log_metrics("eval", trainer.evaluate())
    save(trainer, options)


def load_reader(options: Options) -> tuple[Any, Any]:
    """A reader with its towers, and its processor; a causal one reads each passage by itself from now on."""
    config = AutoConfig.from_pretrained(options.model)
    generator = getattr(config, "generator_config", config)
    own = {}
    if reader_kind(generator) != "image_text":  # that one does so while it is trained
        own = {"marginalization": "token" if options.objective == "rag_token" else "sequence"}
    if options.encoder is not None:
        return from_backbones(encoder=options.encoder, generator=options.model, **own)
    processor = AutoProcessor.from_pretrained(options.model, **({"passage_prompts": True} if own else {}))
    return AutoModelForImageTextToText.from_pretrained(options.model, **own), processor


def lora(options: Options):
    """Adapters in the attention of the language model and of the towers, or `None`."""
    if not options.use_lora:
        return None
    from peft import LoraConfig

    towers = r"model\..*\.(q_proj|v_proj|query|value)"
    return LoraConfig(
        r=options.lora_rank, lora_alpha=2 * options.lora_rank, target_modules=rf"{LORA_TARGETS}|{towers}"
    )


def save(trainer: RavlmJointTrainer, options: Options) -> None:
    """Model, processor, and the index that serves now; adapters are kept apart and merged, and the index follows."""
    folder, retriever = Path(trainer.args.output_dir), trainer.retriever
    if options.use_lora:
        trainer.save_model(str(folder / "adapters"))
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if options.use_lora:
        model = model.merge_and_unload()
        encoder = RavlmEncoder(model.model, trainer.processing_class)
        retriever = RavlmRetriever.build(retriever.knowledge_base, encoder, index=retriever.index.spec["kind"])
    for part in (model, trainer.processing_class, retriever):
        part.save_pretrained(folder)
    print(f"saved to {folder}, with version {trainer.index_version} of the index")


if __name__ == "__main__":
    main(*HfArgumentParser([DataOptions, Options, Arguments]).parse_args_into_dataclasses())
