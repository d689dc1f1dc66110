"""Closed sets of answers on flags of countries that were never trained on: subregions, currencies, languages.

    python examples/flags/closed_set.py examples/flags/checkpoint --out runs/closed_set

The set is all subregions (currencies, languages) of all entries. Every answer is compared by the reader's likelihood;
nothing is trained. *new* leaves out of the set the answers that the countries trained on have, and adds them again:
what a question gets whose answer was not in any training row. Three seeds draw which style of the flag is shown.
Writes `report.json` and `closed_set.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import AutoModelForImageTextToText, AutoProcessor

from flags.world import ENTRY_VIEW, VIEWS, World, load_world
from hf_ravlm import RavlmEncoder, RavlmRetriever
from hf_ravlm.metrics import exact_match
from hf_ravlm.pipelines.closed_answers import Choice, choose_answers


KINDS = {
    "subregion": "subregion",
    "currency": "currency",
    "language": "languages",
}  # of questions; columns of kb.jsonl
SEEDS = (0, 1, 2)
BATCH = 16


def all_answers(world: World, column: str) -> list[str]:
    """What any entry has in a column."""
    found = (row[column] for row in world.entities.values() if row[column])
    return sorted({one for value in found for one in (value if isinstance(value, list) else [value])})


def measure(parts: tuple, world: World, kind: str, seed: int, number: int | None) -> dict[str, float]:
    """The share of right answers in each arm, and of those whose answer no training row has."""
    model, processor, retriever = parts
    asked = [row for row in world.questions if row["type"] == kind and row["entity"] in world.dev][:number]
    answers = all_answers(world, KINDS[kind])
    trained = {one for row in world.questions if row["entity"] in world.train for one in row["answer"]}
    draw = random.Random(seed)
    views = [
        draw.choice([view for view in VIEWS if view != ENTRY_VIEW and (row["entity"], view) in world.images.encoded])
        for row in asked
    ]
    images = [world.images[row["entity"], view] for row, view in zip(asked, views, strict=True)]
    row_of = {name: place for place, name in enumerate(retriever.knowledge_base.ids)}
    gold = [retriever.knowledge_base.passages([row_of[f"{row['entity']}/{kind}"]]) for row in asked]
    found: dict[str, float] = {"questions": len(asked), "answers": len(answers)}
    for arm, given in {"closed-book": {"k": 0}, "retrieved": {}, "gold": {"evidence": gold}}.items():
        right, new = [], []
        for start in range(0, len(asked), BATCH):
            part = slice(start, start + BATCH)
            options = {"evidence": gold[part]} if "evidence" in given else given
            questions = [row["question"] for row in asked[part]]
            told = choose_answers(model, processor, retriever, images[part], questions, Choice(answers), **options)
            for row, best in zip(asked[part], told, strict=True):
                hit = exact_match(best[0]["answer"], row["answer"])
                right.append(hit)
                if not set(row["answer"]) & trained:
                    new.append(hit)
        found[arm] = sum(right) / len(right)
        found[f"{arm}, new answers"] = sum(new) / len(new) if new else float("nan")
        found["new answers"] = len(new)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the trained model with its knowledge base")
    parser.add_argument("--out", type=Path, default=Path("runs/closed_set"), help="folder to write")
    parser.add_argument("--number", type=int, help="ask so many questions of each kind only")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    world = load_world()
    model, processor = (auto.from_pretrained(options.folder) for auto in (AutoModelForImageTextToText, AutoProcessor))
    retriever = RavlmRetriever.from_pretrained(options.folder, encoder=RavlmEncoder(model.model, processor))
    parts, report, began = (model.eval(), processor, retriever), {}, time.perf_counter()
    for kind in KINDS:
        report[kind] = [measure(parts, world, kind, seed, options.number) for seed in SEEDS]
        print(kind, report[kind], round(time.perf_counter() - began), "s", flush=True)
        (options.out / "report.json").write_text(json.dumps(report, indent=1))
    arms = ["closed-book", "retrieved", "gold"]
    lines = ["# Closed sets of answers, flags of unseen countries", "", "Mean over three seeds (lowest-highest).", ""]
    lines += ["| answers | in the set | questions | " + " | ".join(arms) + " |", "|---" * 6 + "|"]
    for kind, runs in report.items():
        for of_new in ("", ", new answers"):
            cells = [[run[arm + of_new] for run in runs] for arm in arms]
            number = runs[0]["new answers" if of_new else "questions"]
            told = [f"{sum(cell) / len(cell):.3f} ({min(cell):.3f}-{max(cell):.3f})" for cell in cells]
            lines.append(f"| {kind}{of_new} | {runs[0]['answers']} | {number} | " + " | ".join(told) + " |")
    (options.out / "closed_set.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
