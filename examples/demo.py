"""Answer questions about flags that the model never saw, show the evidence, and measure what retrieval is worth.

    python examples/demo.py

Loads the folder that `examples/train_flags.py` wrote (model, processor, knowledge base, vectors), asks about pictures
of countries that were kept out of training, in drawing styles that were kept out, too, some of them in words that
were kept out and one in Chinese, draws `demo.png`, and prints exact match closed-book, with retrieval, and with the
gold passage. Needs no network.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from PIL import Image
from transformers import pipeline
from transformers.utils import logging

import hf_ravlm  # noqa: F401  (registers the models and serves "image-to-text")
from flags.measure import answer_table, format_answers, format_retrieval, retrieval_table, tasks_of
from flags.questions import OFFICIAL, SHORT_KINDS
from flags.unseen_styles import unseen_pictures
from flags.world import load_world
from hf_ravlm.explain import answer_sheet


CHECKPOINT = Path(__file__).parent / "flags" / "checkpoint"
# What is asked, and for the sheet, whose letters are Latin, what it means.
ASKED = (
    (None, None),
    (OFFICIAL["capital"], None),
    ("With which currency do people pay here?", None),
    ("I need the official language of this country for my homework.", None),
    ("请问它处在哪个地区呢?", "(in Chinese) In which region does it lie?"),
    (OFFICIAL["name"], None),
)


def main() -> None:
    """Answers, draws, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder with model, processor and knowledge base")
    parser.add_argument("--sheet", default="demo.png", help="picture to write")
    parser.add_argument("--questions", type=int, default=6, help="how many pictures to ask about")
    parser.add_argument("--seed", type=int, default=0, help="which pictures")
    options = parser.parse_args()
    logging.disable_progress_bar()
    started = time.perf_counter()
    world = load_world()
    ask = pipeline("image-to-text", model=options.model)
    print(f"loaded {options.model}: {ask.retriever} in {time.perf_counter() - started:.1f} s\n")
    show_answers(ask, world, options)
    show_tables(ask, world)
    print(f"\nall in {time.perf_counter() - started:.0f} s")


def show_answers(ask, world, options) -> None:
    """Asks about a few unseen pictures, prints every passage used, and draws the sheet."""
    pictures = random.Random(options.seed).sample(unseen_pictures(), options.questions)
    images, questions, records, captions = [], [], [], []
    for place, (entity, style, path) in enumerate(pictures):
        with Image.open(path) as picture:
            images.append(picture.convert("RGB"))
        question, meaning = ASKED[place % len(ASKED)]
        records.append(ask(images[-1], question=question)[0])
        questions.append(meaning or question or ask.model.config.default_prompt)
        captions.append(f"{style}: {world.entities[entity]['name']}")
        print_answer(captions[-1], question or questions[-1], records[-1])
    answer_sheet(images, questions, records, captions).save(options.sheet)
    print(f"drew {options.sheet}\n")


def print_answer(caption: str, question: str, record: dict) -> None:
    """One answer with the passages behind it."""
    print(f"[{caption}]  {question}\n  -> {record['generated_text']}")
    for passage, posterior in zip(record["evidence"], record["posterior"], strict=True):
        text = passage["text"] if len(passage["text"]) <= 90 else passage["text"][:87] + "..."
        print(f"     {passage['score']:.2f} (posterior {posterior:.2f}) {passage['id']}: {text}")
        print(f"          {passage['source']}, {passage['licence']}")
    print()


def show_tables(ask, world) -> None:
    """Retrieval per drawing style, and the three arms on the short questions about the dev countries."""
    views = ["openmoji", "twemoji", "flagpack"]
    table = retrieval_table(ask.retriever, world, world.dev, views)
    print(f"The right country among {len(world.entities)}, by picture alone (countries absent from training)")
    print(f"{format_retrieval(table)}\n")
    tasks = tasks_of(world, world.dev, views[:1], SHORT_KINDS)
    print(f"{len(tasks)} questions about {views[0]} drawings of countries absent from training")
    print(format_answers(answer_table(ask.model, ask.processor, ask.retriever, world, tasks)))


if __name__ == "__main__":
    main()
