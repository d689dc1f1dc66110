"""Asks the same questions about flags while the knowledge base grows 1, 10 and 100 times, and draws the curve.

    python examples/growth.py                                         # among made-up countries with made-up flags
    python examples/growth.py --distractors /usr/share/wordnet        # among the glosses of WordNet

Made-up countries are the harder company: each has a flag, drawn as icon sets draw them, and the same kinds of passages
as a real one. The base holds the dev countries alone, which were kept out of training. A run that was stopped goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser
from transformers.utils import logging as transformers_logging

from flags.evaluation import short_questions, weights_digest
from flags.invented import InventedNames
from flags.synthetic_flags import procedural_flags
from flags.texts import passage_texts
from flags.world import World, load_world
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.corpora import from_wordnet
from hf_ravlm.evaluation import growing_arm, measure_growth, model_arms, without_answers


PIXELS = 160  # the side of a made-up flag, which is what the shipped model sees
FLAGS_AT_ONCE = 64


@dataclass
class Options:
    """What can be chosen on the command line."""

    model: str = field(default="examples/flags/checkpoint", metadata={"help": "folder of the trained model"})
    out: str = field(default="runs/growth", metadata={"help": "folder for replies, tables and the curve"})
    distractors: str = field(default="invented", metadata={"help": "'invented', or a folder of WordNet"})
    questions: int = field(default=200, metadata={"help": "asked at every size"})
    factors: list[int] = field(default_factory=lambda: [1, 10, 100], metadata={"help": "sizes, 1 is no distractor"})
    seed: int = field(default=0, metadata={"help": "of what is made up"})


def main(options: Options) -> None:
    """Builds the small knowledge base, asks at every size, writes `growth.md`, `growth.json` and `growth.png`."""
    transformers_logging.set_verbosity_warning()
    world = load_world()
    model = AutoModelForImageTextToText.from_pretrained(options.model).eval()
    processor = AutoProcessor.from_pretrained(options.model)
    passages = [row for entity in world.dev for row in world.passages(entity)]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(passages), RavlmEncoder(model.model, processor))
    questions = short_questions(world, options.questions)
    if options.distractors == "invented":
        distractors = invented_passages(world, options.seed)
    else:
        glosses = from_wordnet(options.distractors)
        distractors = ({"id": row.id, "text": row.text} for row in glosses)
    report = measure_growth(
        questions,
        model_arms(model, processor, arms=["closed_book"], max_new_tokens=32)["closed_book"],
        growing_arm(model, processor, retriever, without_answers(distractors, questions), max_new_tokens=32),
        num_passages=len(retriever),
        factors=options.factors,
        folder=options.out,
        settings={
            "distractors": options.distractors,
            "seed": options.seed,
            "weights": weights_digest(Path(options.model)),
        },
    )
    print(report.to_markdown())
    print("Written:", *report.save(options.out), sep="\n  ")


def invented_passages(world: World, seed: int) -> Iterator[dict]:
    """Passages of countries that do not exist, without end: name, capital, languages, currency, part of the world."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    rows = [world.entities[entity] for entity in world.train]
    words = sorted({word for row in rows for word in (row.get("flag_desc") or "").split() if word.isalpha()})
    names = InventedNames(words, [row["name"] for row in rows], rng)
    number = 0
    while True:
        for drawings in procedural_flags(FLAGS_AT_ONCE, PIXELS, generator):
            flag = _encoded(drawings[0])
            for kind, (title, text) in passage_texts(_invented_row(names)).items():
                yield {"id": f"invented-{number}/{kind}", "title": title, "text": text, "image": flag}
            number += 1


def _invented_row(names: InventedNames) -> dict:
    """What is known of a country that does not exist, with the fields that people ask for."""
    return {
        "name": names.phrase(),
        "capital": names.value("capital"),
        "languages": [names.value("language")],
        "currency": [names.value("currency")],
        "subregion": names.value("subregion"),
    }


def _encoded(pixels: np.ndarray) -> bytes:
    """A picture `(height, width, 3)`, `uint8`, as the bytes of a PNG."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
