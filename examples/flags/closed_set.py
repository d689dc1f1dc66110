"""Closed sets of answers on flags of countries that were never trained on: subregions, currencies, languages.

    python examples/flags/closed_set.py examples/flags/checkpoint --out runs/closed_set

The set is all subregions (currencies, languages) of all entries. Every answer is compared by the reader's likelihood;
nothing is trained. *New answers* are those that no training row has, and *added* those of countries that were made up:
a passage and an answer that nobody can know join the knowledge base and the set, and are asked for. Three seeds draw
which style of a flag is shown, and what is made up. Writes `closed_set.json` and `flags_closed_set.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import AutoModelForImageTextToText, AutoProcessor

from flags.invented import InventedNames
from flags.world import ENTRY_VIEW, VIEWS, World, load_world
from hf_ravlm import RavlmEncoder, RavlmRetriever
from hf_ravlm.metrics import exact_match, vqa_accuracy
from hf_ravlm.model.reader.candidates import AnswerSet
from hf_ravlm.pipelines.closed_answers import Choice, choose_answers


KINDS = {
    "subregion": "subregion",
    "currency": "currency",
    "language": "languages",
}  # of questions; columns of kb.jsonl
ARMS = ("closed-book", "retrieved", "gold")
MEASURES = {"exact match": exact_match, "VQA accuracy": lambda said, accepted: vqa_of_one(said, accepted)}
SEEDS = (0, 1, 2)
BATCH = 16
CARD = "flags_closed_set.md"
GOALS = {"retrieved": 0.93, "gold": 0.98, "added": 0.9}


@dataclass(frozen=True)
class Asked:
    """One question about a flag: the answers that are accepted, and the passage that has one."""

    image: Any
    question: str
    accepted: list[str]
    gold: Any


def vqa_of_one(said: str, accepted: list[str]) -> float:
    """VQA accuracy where all people say the same, any of the accepted answers.

    >>> vqa_of_one("the euro", ["Euro"]), vqa_of_one("Franc", ["Euro"])
    (1.0, 0.0)
    """
    return max(vqa_accuracy(said, [answer] * 10, official_quirks=False) for answer in accepted)


def all_answers(world: World, column: str) -> list[str]:
    """What any entry has in a column."""
    found = (row[column] for row in world.entities.values() if row[column])
    return sorted({one for value in found for one in (value if isinstance(value, list) else [value])})


def real_questions(world: World, retriever: RavlmRetriever, kind: str, seed: int, number: int | None) -> list[Asked]:
    """About flags in styles other than that of the entries, with all that is right."""
    rows = [row for row in world.questions if row["type"] == kind and row["entity"] in world.dev][:number]
    draw, asked = random.Random(seed), []
    row_of = {name: place for place, name in enumerate(retriever.knowledge_base.ids)}
    for row in rows:
        styles = [view for view in VIEWS if view != ENTRY_VIEW and (row["entity"], view) in world.images.encoded]
        image = world.images[row["entity"], draw.choice(styles)]
        (gold,) = retriever.knowledge_base.passages([row_of[f"{row['entity']}/{kind}"]])
        asked.append(Asked(image, row["question"], row["answer"], gold))
    return asked


def made_up(asked: list[Asked], seed: int) -> list[Asked]:
    """The same questions, where the passage tells of a country and an answer that nobody knows."""
    draw = random.Random(seed)
    invented = InventedNames(["lion", "river", "stone"], ["New Zealand", "Northern Ireland"], draw)
    changed, taken = [], set()
    for one in asked:
        country, answer = (unused(invented, taken) for _ in range(2))
        text = one.gold.text.split(" of ", 1)[0] + f" of {country}: {answer}."
        changed.append(replace(one, accepted=[answer], gold=replace(one.gold, text=text, title=None)))
    return changed


def unused(invented: InventedNames, taken: set[str]) -> str:
    """A name that was not made up before."""
    while (name := invented.phrase(2)) in taken or not name.isascii():
        pass
    taken.add(name)
    return name


def answered(parts: tuple, asked: list[Asked], answers: list[str], arm: str) -> list[str]:
    """The best of a closed set for each question, in one arm."""
    model, processor, retriever = parts
    candidates, said = AnswerSet.of(processor, answers), []
    for start in range(0, len(asked), BATCH):
        some = asked[start : start + BATCH]
        given = {"closed-book": {"k": 0}, "retrieved": {}, "gold": {"evidence": [[one.gold] for one in some]}}[arm]
        shown, words = [one.image for one in some], [one.question for one in some]
        told = choose_answers(
            model, processor, retriever, shown, words, Choice(answers), candidates=candidates, **given
        )
        said += [best[0]["answer"] for best in told]
    return said


def measure(parts: tuple, world: World, kind: str, seed: int, number: int | None) -> dict[str, Any]:
    """Of each arm the measures over all questions, and exact match where no training row has the answer."""
    asked = real_questions(world, parts[2], kind, seed, number)
    answers = all_answers(world, KINDS[kind])
    trained = {one for row in world.questions if row["entity"] in world.train for one in row["answer"]}
    new = [place for place, one in enumerate(asked) if not set(one.accepted) & trained]
    found: dict[str, Any] = {"questions": len(asked), "answers": len(answers), "new": len(new)}
    for arm in ARMS:
        said = answered(parts, asked, answers, arm)
        for name, judge in MEASURES.items():
            right = [judge(answer, one.accepted) for answer, one in zip(said, asked, strict=True)]
            found[f"{arm}, {name}"] = sum(right) / len(right)
            if name == "exact match" and new:
                found[f"{arm}, new answers"] = sum(right[place] for place in new) / len(new)
    invented = made_up(asked, seed)
    larger = [*answers, *(one.accepted[0] for one in invented)]
    said = answered(parts, invented, larger, "gold")
    found["added"] = sum(answer == one.accepted[0] for answer, one in zip(said, invented, strict=True)) / len(said)
    return found


def write_card(report: dict[str, Any], path: Path) -> None:
    """Writes what was measured as a card; nothing in it is typed by hand."""
    lines = [
        "# Flags: choosing among a closed set of answers",
        "",
        "The shipped reader ([`flags.md`](flags.md)) chooses among all subregions, currencies or languages of its "
        "knowledge base, of flags of countries that it never saw in training, in styles that its entries have not. "
        "Nothing was trained. "
        f"Mean over seeds {', '.join(map(str, report['seeds']))}, with lowest and highest; "
        "a seed draws the style of each flag and what is made up. *Closed-book* is without passages, *retrieved* with "
        "what is found, *gold* with the passage that has the answer. *Added*: a country and an answer that were made "
        "up stand in a new passage and join the set, without training. Written by `examples/flags/closed_set.py`.",
    ]
    for name in MEASURES:
        lines += ["", f"| {name} | in the set | questions | " + " | ".join(ARMS) + " |", "|---" * 6 + "|"]
        for kind, runs in report["kinds"].items():
            cells = [spread([run[f"{arm}, {name}"] for run in runs]) for arm in ARMS]
            lines.append(f"| {kind} | {runs[0]['answers']} | {runs[0]['questions']} | " + " | ".join(cells) + " |")
    lines += ["", "| answers without training | questions | " + " | ".join(ARMS) + " | added |", "|---" * 6 + "|"]
    for kind, runs in report["kinds"].items():
        cells = [spread([run[f"{arm}, new answers"] for run in runs]) if runs[0]["new"] else "" for arm in ARMS]
        lines.append(
            f"| {kind}, in no training row | {runs[0]['new']} | "
            + " | ".join([*cells, spread([run["added"] for run in runs])])
            + " |"
        )
    mean = {
        name: sum(run[key] for runs in report["kinds"].values() for run in runs)
        / sum(map(len, report["kinds"].values()))
        for name, key in {arm: f"{arm}, exact match" for arm in ARMS[1:]}.items() | {("added", "added")}
    }
    told = ", ".join(f"{name} {mean[name]:.3f} (goal {goal})" for name, goal in GOALS.items())
    lines += ["", f"Exact match, mean over the three kinds: {told}."]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def spread(values: list[float]) -> str:
    """Mean, lowest and highest.

    >>> spread([0.5, 1.0])
    '0.750 (0.500-1.000)'
    """
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}-{max(values):.3f})"


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
    parts, began = (model.eval(), processor, retriever), time.perf_counter()
    report: dict[str, Any] = {"seeds": SEEDS, "kinds": {}}
    for kind in KINDS:
        report["kinds"][kind] = [measure(parts, world, kind, seed, options.number) for seed in SEEDS]
        print(kind, report["kinds"][kind], round(time.perf_counter() - began), "s", flush=True)
        (options.out / "closed_set.json").write_text(json.dumps(report, indent=1) + "\n")
    write_card(report, options.out / CARD)


if __name__ == "__main__":
    main()
