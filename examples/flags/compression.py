"""What smaller copies of the flags model keep: size, memory, speed and exact match, before and after training again.

    python examples/flags/compression.py examples/flags/checkpoint --out runs/compression

Every copy is what `hf-ravlm compress` writes. The questions are short ones about countries that were never trained on,
with what the retriever finds; `--recover` learns from those about the other countries. Writes `compression.json`,
which keeps ways that were measured before, and `flags_compressed.md`. int8 needs torchao, int4 bitsandbytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from flags.evaluation import short_questions
from flags.world import SHORT_KINDS, VIEWS, World, load_world
from hf_ravlm.evaluation import Question
from hf_ravlm.hub.compressing import compress, memory_of
from hf_ravlm.metrics import exact_match
from hf_ravlm.pipelines.opening import open_pipeline
from hf_ravlm.training.recovering import Recovery


WAYS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pruned 0.3": {"prune": 0.3},
    "pruned 0.3, recovered": {"prune": 0.3, "recover": True},
    "2:4": {"prune": "2:4"},
    "2:4, recovered": {"prune": "2:4", "recover": True},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}
BATCH = 16
CARD = "flags_compressed.md"


def write_rows(world: World, folder: Path, number: int) -> Path:
    """Questions about countries of the training, in a file beside their images."""
    draw = random.Random(0)
    asked = [row for row in world.questions if row["entity"] in world.train and row["type"] in SHORT_KINDS]
    lines = []
    for place, row in enumerate(draw.sample(asked, number)):
        view = draw.choice([view for view in VIEWS if (row["entity"], view) in world.images.encoded])
        (folder / f"{place}.png").write_bytes(world.images.encoded[row["entity"], view])
        gold = [f"{row['entity']}/{row['type']}"]
        told = {"id": str(place), "image": f"{place}.png", "question": row["question"], "answers": row["answer"]}
        lines.append(json.dumps({**told, "gold_ids": gold}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def measure(folder: Path, questions: list[Question]) -> dict[str, float]:
    """Exact match of a system with what it finds, and CPU time for an answer."""
    ask = open_pipeline(folder, device="cpu")
    rows = [{"image": question.image, "question": question.question} for question in questions]
    options: dict[str, Any] = {"batch_size": BATCH, "max_new_tokens": 16, "with_posterior": False}
    ask(rows[:BATCH], **options)
    began = time.process_time()
    said = [answers[0]["generated_text"] for answers in ask(rows, **options)]
    took = (time.process_time() - began) / len(rows)
    right = [exact_match(answer, list(question.answers)) for answer, question in zip(said, questions, strict=True)]
    return {"exact_match": sum(right) / len(right), "seconds": took, "memory": memory_of(ask.model)}


def measure_way(way: str, folder: Path, questions: list[Question], rows: Path, epochs: float) -> dict[str, float]:
    """Makes a smaller copy, and measures it in turn with the system as it was."""
    options = dict(WAYS[way])
    if options.pop("recover", False):
        options["recover"] = Recovery(rows, epochs=epochs)
    dense = measure(folder, questions)
    size, found, zeros = sum(path.stat().st_size for path in folder.rglob("*.safetensors")), dense, 0.0
    if options:
        with tempfile.TemporaryDirectory() as place:
            zeros = compress(folder, Path(place, "small"), **options).zeros
            found = measure(Path(place, "small"), questions)
            size = sum(path.stat().st_size for path in Path(place, "small").rglob("*.safetensors"))
    return {**found, "size": size, "zeros": zeros, "time": found["seconds"] / dense["seconds"]}


def write_card(report: dict[str, Any], path: Path) -> None:
    """Writes what was measured as a card; nothing in it is typed by hand."""
    lines = [
        "# Flags: smaller copies of the shipped model",
        "",
        f"The shipped system ([`flags.md`](flags.md)) through `hf-ravlm compress`, asked {report['questions']} short "
        "questions about flags of countries that it never saw in training, with what it finds. *Recovered*: the "
        f"weights that are left learned from {report['rows']} questions about other countries (epochs: "
        f"{report['epochs']:g}). One question is {1 / report['questions']:.3f} of exact match: differences smaller "
        "than about five of them are chance. "
        "*Written* is all that has numbers, vectors of the knowledge base among "
        "it; *memory* is of all weights, towers among them; *time* is CPU time for an answer against the dense model "
        "of "
        "the same run. Zeros take as much room as other numbers, and are quicker on GPUs with kernels for 2:4 "
        "sparsity alone. Written by `examples/flags/compression.py`.",
        "",
        "| copy | zeros in the reader | written, MB | memory of the weights, MB | time | exact match |",
        "|---|---|---|---|---|---|",
    ]
    for way, found in report["ways"].items():
        cells = [f"{found['zeros']:.0%}", *(f"{found[name] / 1e6:.1f}" for name in ("size", "memory"))]
        lines.append(f"| {way} | {' | '.join(cells)} | {found['time']:.2f} | {found['exact_match']:.3f} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the trained model with its knowledge base")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"), help="folder to write")
    parser.add_argument("--number", type=int, default=96, help="questions to ask")
    parser.add_argument("--rows", type=int, default=400, help="questions to learn from again")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to measure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    world, kept = load_world(), options.out / "compression.json"
    asked = {"questions": options.number, "rows": options.rows, "epochs": options.epochs}
    report: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {**asked, "ways": {}}
    if {name: report[name] for name in asked} != asked:
        raise SystemExit(f"{kept} is of {report['questions']} questions and {report['rows']} rows; name another --out")
    questions = short_questions(world, options.number)
    with tempfile.TemporaryDirectory() as place:
        rows = write_rows(world, Path(place), options.rows)
        for way in options.ways:
            report["ways"][way] = measure_way(way, options.folder, questions, rows, options.epochs)
            print(way, report["ways"][way], flush=True)
            report["ways"] = {name: report["ways"][name] for name in WAYS if name in report["ways"]}
            kept.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_card(report, options.out / CARD)


if __name__ == "__main__":
    main()
