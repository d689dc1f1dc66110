"""Writes the model card of the captioner: what it is, how it was made, every figure, what it cannot do.

    python examples/photographs/card.py --captioner runs/photographs/captioner --alone runs/photographs/alone \
        --out model_cards/photographs.md

Reads `figures.json` of both runs, the one with retrieval and the one that was trained without (`--passages 0`). No
figure is typed in by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import HfArgumentParser


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands in, not beside, the rest
from photographs.measure import KINDS


TEMPLATE = Path(__file__).resolve().parent / "card.md"
KIND_NAMES = {
    "unseen": "**all unseen things**",
    "class": "unseen, found by its class",
    "kinds": "unseen, found by the classes of its kinds",
    "words": "unseen, found by its words only",
    "seen": "another picture of a thing trained on",
}
CONFIDENCES = {"retrieved": "retrieved", "gold": "gold", "wrong": "distractors_only"}
NUM_SAMPLES = 8


@dataclass
class Options:
    """What can be chosen on the command line."""

    captioner: str = field(default="runs/photographs/captioner", metadata={"help": "the run with retrieval"})
    alone: str | None = field(default=None, metadata={"help": "the run with --passages 0, if there was one"})
    out: str = field(default="model_cards/photographs.md", metadata={"help": "file to write"})


def main(options: Options) -> str:
    """The card as text; also written to `out`."""
    figures = read_figures(options.captioner)
    alone = read_figures(options.alone) if options.alone else None
    wall, processor = figures["minutes (wall, processor)"]["all"]
    training = figures["minutes (wall, processor)"]["training"]
    loading = figures["minutes (wall, processor)"]["loading and indexing"]
    card = TEMPLATE.read_text(encoding="utf-8").format(
        passages=f"{figures['passages']:,}",
        millions=figures["parameters"] / 1e6,
        trained=figures["trained parameters"] / 1e6,
        train=figures["pictures"]["train"],
        dev=figures["pictures"]["dev"],
        steps=figures["options"]["steps"],
        seed=figures["options"]["seed"],
        wall=wall,
        processor=processor,
        training_wall=training[0] - loading[0],
        training_processor=training[1] - loading[1],
        alone=about_alone(alone),
        memory=figures["peak memory in GB"],
        named=named_table(figures["by kind"], alone and alone["by kind"]),
        metrics=metrics_table(figures, alone),
        effect=effect_table(figures["report"]),
        **{f"confidence_{name}": confidence(figures, arm) for name, arm in CONFIDENCES.items()},
        good=samples(figures["captions"], right=True),
        bad=samples(figures["captions"], right=False),
    )
    text = f"---\n{metadata(figures, alone).to_yaml()}\n---\n\n{card}"
    Path(options.out).write_text(text, encoding="utf-8")
    return text


def confidence(figures: dict, arm: str) -> float:
    """The mean confidence of an arm; 0 where it has none."""
    return (figures["report"]["arms"][arm]["calibration"] or {"mean_confidence": 0.0})["mean_confidence"]


def read_figures(folder: str) -> dict:
    return json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))


def about_alone(alone: dict | None) -> str:
    """What the run without retrieval is, and what it cost."""
    if alone is None:
        return ""
    wall, processor = alone["minutes (wall, processor)"]["all"]
    return (
        '"Trained without" is the same model trained on the same pictures without any entry '
        f"({wall:.0f} minutes by\nthe clock, {processor:.1f} of the processor). The captioner's own closed-book arm "
        "is asked without the entries that it is\nused to.\n\n"
    )


def named_table(by_kind: dict, alone: dict | None) -> str:
    """Which share of captions names the thing, per way of finding it."""
    head = ["trained without"] * (alone is not None)
    head += ["closed-book", "retrieved", "gold", "gold and a distractor", "distractors only"]
    lines = ["| things | pictures | hit@1 | hit@2 | " + " | ".join(head) + " |", "|---" * (4 + len(head)) + "|"]
    for kind, row in by_kind.items():
        cells = [f"{row['hit@1']:.3f}", f"{row['hit@2']:.3f}"]
        cells += [f"{alone[kind]['named']['closed_book']:.3f}"] if alone else []
        cells += [f"{value:.3f}" for value in row["named"].values()]
        lines.append(f"| {KIND_NAMES[kind]} | {row['pictures']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def all_arms(figures: dict, alone: dict | None) -> dict[str, dict]:
    """The arms of both runs."""
    first = {"trained without retrieval": alone["report"]["arms"]["closed_book"]} if alone else {}
    return {**first, **figures["report"]["arms"]}


def metrics_table(figures: dict, alone: dict | None) -> str:
    """All metrics of all dev pictures, with bootstrap intervals."""
    arms = all_arms(figures, alone)
    lines = ["| arm | names the thing | CIDEr-D | BLEU-4 | ROUGE-L |", "|---|---|---|---|---|"]
    for name, arm in arms.items():
        metrics = arm["metrics"]
        cells = [interval(metrics[metric]) for metric in ("names the thing", "cider_d", "bleu_4", "rouge_l")]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def effect_table(report: dict) -> str:
    """How often entries turned a wrong caption into a right one, and the other way round."""
    lines = ["| arm | rescued | harmed | net gain |", "|---|---|---|---|"]
    for name, arm in report["arms"].items():
        if arm["effect"] is not None:
            cells = [interval(arm["effect"][part]) for part in ("rescue_rate", "harm_rate", "net_gain")]
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(value: dict) -> str:
    """A mean with its interval, if it has one."""
    if value["lower"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} ({value['lower']:.3f} to {value['upper']:.3f})"


def samples(captions: Sequence[dict], right: bool) -> str:
    """Some captions with their entries: things of every kind in turn, the first ones in the order of the data."""
    lines = ["| picture (Tux Paint) | a person wrote | closed-book | retrieved |", "|---|---|---|---|"]
    groups = [
        [row for row in captions if row["kind"] == kind and row["named"]["retrieved"] is right] for kind in KINDS
    ]
    for row in list(in_turn(groups))[:NUM_SAMPLES]:
        said = row["said"]
        lines.append(f"| `{row['id']}` | {row['caption']} | {said['closed_book']} | {said['retrieved']} |")
    return "\n".join(lines)


def in_turn(groups: Sequence[Sequence[dict]]) -> Iterator[dict]:
    """One of each group, then the next of each, until all are through."""
    for place in range(max(map(len, groups))):
        yield from (group[place] for group in groups if place < len(group))


def metadata(figures: dict, alone: dict | None) -> ModelCardData:
    """The card's header, with names and CIDEr-D as results."""
    about = {"task_type": "image-to-text", "dataset_type": "tuxpaint-stamps", "dataset_name": "Tux Paint stamps (dev)"}
    results = []
    for name, arm in all_arms(figures, alone).items():
        for metric in ("names the thing", "cider_d"):
            value = round(arm["metrics"][metric]["mean"], 4)
            label = f"{metric}, {name.replace('_', ' ')}"
            results.append(
                EvalResult(metric_type=metric.replace(" ", "_"), metric_name=label, metric_value=value, **about)
            )
    unseen = {**about, "dataset_config": "things of ImageNet that training never showed"}
    for name, value in figures["by kind"].get("class", {"named": {}})["named"].items():
        label = f"names the thing, {name.replace('_', ' ')}"
        results.append(
            EvalResult(metric_type="names_the_thing", metric_name=label, metric_value=round(value, 4), **unseen)
        )
    return ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="hf_ravlm",
        pipeline_tag="image-to-text",
        base_model=["HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"],
        tags=["retrieval-augmented", "vision-language", "image-captioning", "lora", "wordnet"],
        model_name="photographs",
        eval_results=results,
    )


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
