"""Train a reader to choose among a closed set of answers, and measure it: closed-book, retrieved, gold passage.

    accelerate launch examples/train_vqa.py  # the shipped model, on flags
    accelerate launch examples/train_vqa.py --model DIR --use_lora --dataset questions.jsonl \
        --eval_dataset more.jsonl --output_dir runs/vqa

A head over the last state of the prompt is trained to tell the answers that the rows have; with `--use_lora` the
attention of the language model, too. `--no_head` trains nothing: the reader chooses by what it holds of each answer,
so that an answer is added by naming it. The rows are those of `training_rows.py`; the output folder is what
`pipeline("visual-question-answering", model=...)` opens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_ravlm import ClosedAnswerCollator, RavlmEncoder, RavlmForVisualQuestionAnswering, RavlmRetriever
from hf_ravlm.metrics import exact_match, vqa_accuracy
from hf_ravlm.pipelines.closed_answers import Choice, choose_answers
from hf_ravlm.training import freeze
from hf_ravlm.training.batches.rows import TrainingRow
from training_rows import CHECKPOINT, DataOptions, evaluation_rows, training_rows


@dataclass
class Options:
    """What is trained, and what it reads."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name of the reader to start from"})
    knowledge_base: str | None = field(default=None, metadata={"help": "its folder or name; by default that of model"})
    head: bool = field(default=True, metadata={"help": "train a head over the answers; else the reader compares them"})
    use_lora: bool = field(default=False, metadata={"help": "adapt the language model, too"})
    lora_rank: int = field(default=16, metadata={"help": "of the adapters"})
    num_passages: int | None = field(default=None, metadata={"help": "K; by default as the model was trained"})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults."""

    output_dir: str = field(default="runs/vqa", metadata={"help": "folder to write"})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "rows in a batch of one process"})
    num_train_epochs: float = field(default=2.0, metadata={"help": "passes over the rows"})
    learning_rate: float = field(default=1e-3, metadata={"help": "at its highest"})
    save_strategy: str = field(default="no", metadata={"help": "when checkpoints are written"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows become tensors in the collator"})


def main(data: DataOptions, options: Options, arguments: Arguments) -> None:
    """Trains, saves, and prints the measures if there is something to measure with."""
    set_seed(arguments.seed)
    processor = AutoProcessor.from_pretrained(options.model)
    reader = AutoModelForImageTextToText.from_pretrained(options.model)
    encoder = None if reader.model is None else RavlmEncoder(reader.model, processor)
    retriever = RavlmRetriever.from_pretrained(options.knowledge_base or options.model, encoder=encoder)
    rows = training_rows(data)
    names = sorted({TrainingRow.parse(row).label for row in rows})
    model = RavlmForVisualQuestionAnswering.from_reader(reader, names, head=options.head)
    k = model.config.num_passages if options.num_passages is None else options.num_passages
    if options.head:
        model = trained(model, options, arguments, rows, processor, retriever, k)
        if model is None:  # another process saves
            return
    model.eval()
    held_out = evaluation_rows(data)
    if held_out is not None:
        for arm, found in measured(model, processor, retriever, held_out, names, k).items():
            print(arm, found)
    ask = pipeline("visual-question-answering", model=model, processor=processor, retriever=retriever)
    ask.save_pretrained(arguments.output_dir)
    print(f"saved to {arguments.output_dir}")


def trained(model, options: Options, arguments: Arguments, rows, processor, retriever, k: int):
    """The model with a trained head, its adapters merged; `None` in all processes but the first."""
    parts = [part for name, part in model.named_children() if name != "answer_head"]
    freeze(*parts)
    trained = model
    if options.use_lora:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=options.lora_rank, lora_alpha=2 * options.lora_rank, modules_to_save=["answer_head"])
        trained = get_peft_model(model, lora)
    collator = ClosedAnswerCollator(processor=processor, labels=list(model.config.label2id), retriever=retriever, k=k)
    trainer = Trainer(trained, arguments, data_collator=collator, train_dataset=rows)
    trainer.train()
    if not trainer.is_world_process_zero():
        return None
    return trained.merge_and_unload() if options.use_lora else model


def measured(model, processor, retriever, rows, names: list[str], k: int) -> dict[str, dict[str, float]]:
    """Exact match in three arms, over the answers that the model knows; VQA accuracy where many people answered."""
    parsed = [TrainingRow.parse(row) for row in rows]
    images = None if all(row.image is None for row in parsed) else [row.image for row in parsed]
    questions, choice = [row.question for row in parsed], Choice(names)
    row_of = {name: place for place, name in enumerate(retriever.knowledge_base.ids)}
    gold = [retriever.knowledge_base.passages([row_of[name] for name in row.gold_ids]) for row in parsed]
    arms = {"closed-book": {"k": 0}, "retrieved": {"k": k}, "gold": {"evidence": gold}}
    if not all(gold):
        arms.pop("gold")
    found = {}
    for name, options in arms.items():
        told = choose_answers(model, processor, retriever, images, questions, choice, **options)
        said = [answers[0]["answer"] for answers in told]
        right = [exact_match(answer, row.answers) for answer, row in zip(said, parsed, strict=True)]
        found[name] = {"exact_match": sum(right) / len(right)}
        given = [row["answers"] for row in rows]
        if all(isinstance(answers, list) and len(answers) > 3 for answers in given):
            right = [vqa_accuracy(answer, people) for answer, people in zip(said, given, strict=True)]
            found[name]["vqa_accuracy"] = sum(right) / len(right)
    return found


if __name__ == "__main__":
    main(*HfArgumentParser([DataOptions, Options, Arguments]).parse_args_into_dataclasses())
