"""Answer questions about flags that the model never saw, show the evidence, and measure what retrieval is worth.

    python examples/demo.py

Loads the folder that `examples/train_flags.py` wrote (model, processor, knowledge base, vectors) and asks about
pictures of the 40 countries that were kept out of training, in drawing styles that were kept out, too: each country
one of six questions in turn, some in words that were kept out and one in Chinese. One picture of every fifth country
is shown, in the next style each time, with the passage behind the answer and whether it is right (by chance, if the
passage is about another country); right ones come first, and how many are right of all stands below. Then the same
where every passage about the country is taken away: how many answers a policy withholds, and the first of them. Draws
`demo.png`, and prints exact match closed-book, with retrieval, and with the gold passage. Needs no network.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import pipeline
from transformers.utils import logging

import hf_ravlm  # noqa: F401  (registers the models and serves "image-to-text")
from flags.measure import Task, answer_table, format_answers, format_retrieval, retrieval_table, score, tasks_of
from flags.questions import OFFICIAL, SHORT_KINDS
from flags.redrawn import short_answers
from flags.unseen_styles import unseen_pictures
from flags.world import World, drawing_group, load_world
from hf_ravlm.explain import answer_sheet
from hf_ravlm.pipelines import AnswerPolicy


CHECKPOINT = Path(__file__).parent / "flags" / "checkpoint"
POLICY = Path(__file__).parent / "flags" / "policy"
# What each country is asked in turn: kind, words, and for the sheet, whose letters are Latin, what they mean.
ASKED = (
    ("capital", OFFICIAL["capital"], None),
    ("currency", "With which currency do people pay here?", None),
    ("subregion", "请问它处在哪个地区呢?", "(in Chinese) In which region does it lie?"),
    ("language", "I need the official language of this country for my homework.", None),
    ("describe", OFFICIAL["describe"], None),
    ("name", OFFICIAL["name"], None),
)
EVERY, STYLES, BATCH = 5, 3, 16
MARKS = {"right": "✓", "right by chance": "≈", "withheld": "–", "wrong": "✗"}


class Asked(NamedTuple):
    """One question about one picture, and what came of it."""

    task: Task
    image: Image.Image
    record: dict[str, Any]
    came_out: str  # one of `MARKS`


def main() -> None:
    """Answers, draws, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder with model, processor and knowledge base")
    parser.add_argument("--policy", default=str(POLICY), help="folder of the policy that may say nothing")
    parser.add_argument("--sheet", default="demo.png", help="picture to write")
    options = parser.parse_args()
    logging.disable_progress_bar()
    started = time.perf_counter()
    world = load_world()
    ask = pipeline("image-to-text", model=options.model)
    print(f"loaded {options.model}: {ask.retriever} in {time.perf_counter() - started:.1f} s\n")
    shown = [*show_answers(ask, world), show_gap(ask, world, AnswerPolicy.from_pretrained(options.policy))]
    meanings = {question: meaning for _, question, meaning in ASKED if meaning}
    questions = [meanings.get(one.task.question, one.task.question) for one in shown]
    captions = [caption(world, one) for one in shown]
    records = [one.record | {"generated_text": said(one.record)} for one in shown]
    answer_sheet([one.image for one in shown], questions, records, captions).save(options.sheet)
    print(f"drew {options.sheet}\n")
    show_tables(ask, world)
    print(f"\nall in {time.perf_counter() - started:.0f} s")


def show_answers(ask, world: World) -> list[Asked]:
    """Asks about all pictures; prints those to be shown with every passage used, the right ones first."""
    answered = ask_all(ask, world, asked_in_turn(world))
    shown = [one for one in answered if is_shown(world, one.task)]
    shown.sort(key=lambda one: list(MARKS).index(one.came_out))
    for one in shown:
        print_answer(world, one)
    counts = Counter(one.came_out for one in answered)
    told = ", ".join(f"{counts[name]} {name}" for name in MARKS if counts[name])
    print(
        f"Shown is one picture of every {EVERY}th country. Of all {len(answered)} pictures asked about so: {told}.\n"
    )
    return shown


def show_gap(ask, world: World, policy: AnswerPolicy) -> Asked:
    """Asks again with a policy that may say nothing: as it is, and where nothing is known of the country."""
    tasks = asked_in_turn(world)[::STYLES]
    known = ask_all(ask, world, tasks, policy=policy)
    gaps = [ask_all(ask, world, [t], policy=policy, where={"entity": {"not": t.entity}})[0] for t in tasks]
    withheld, needlessly = ([one for one in rows if one.came_out == "withheld"] for rows in (gaps, known))
    print("With a policy that may say nothing, where every passage about the country is taken away:\n")
    shown = [*withheld, *gaps][0]
    print_answer(world, shown)
    print(
        f"It withholds {len(withheld)} of {len(gaps)} such answers, and {len(needlessly)} where nothing is missing.\n"
    )
    return shown


def asked_in_turn(world: World) -> list[Task]:
    """A question about every picture in a style that nobody trained on, in turn the next of `ASKED` for a country."""
    tasks = []
    for entity, style, _ in unseen_pictures():
        kind, question, _ = ASKED[world.dev.index(entity) % len(ASKED)]
        truth = short_answers(world.entities[entity]).get(kind, [])
        tasks.append(Task(entity, style, kind, question, truth))
    return tasks


def is_shown(world: World, task: Task) -> bool:
    """Whether a picture is of those shown: of every fifth country one, in the next style each time."""
    turn, rest = divmod(world.dev.index(task.entity), EVERY)
    styles = [style for _, style, _ in unseen_pictures()[:STYLES]]
    return rest == 0 and task.view == styles[turn % STYLES]


def ask_all(ask, world: World, tasks: list[Task], **options) -> list[Asked]:
    """What the pipeline says to each question, and what came of it."""
    paths = {(entity, style): path for entity, style, path in unseen_pictures()}
    images = []
    for task in tasks:
        with Image.open(paths[task.entity, task.view]) as picture:
            images.append(picture.convert("RGB"))
    inputs = [{"image": image, "question": task.question} for image, task in zip(images, tasks, strict=True)]
    records = [row[0] for row in ask(inputs, batch_size=BATCH, **options)]
    rows = zip(tasks, images, records, strict=True)
    return [Asked(task, image, record, came_out(world, task, record)) for task, image, record in rows]


def came_out(world: World, task: Task, record: dict[str, Any]) -> str:
    """One of `MARKS`; a description is right that names its country."""
    if record.get("abstained"):
        return "withheld"
    if next(iter(score(world, task, record["generated_text"]).values())) < 1:
        return "wrong"
    about = {drawing_group(passage["id"].split("/")[0]) for passage in record["evidence"]}
    return "right" if about == {drawing_group(task.entity)} else "right by chance"


def caption(world: World, one: Asked) -> str:
    """Style and country, and what came of it."""
    name = world.entities[one.task.entity]["name"]
    notes = {
        "wrong": f" ({one.task.answers[0] if one.task.answers else name})",
        "withheld": " (nothing is known of it)",
    }
    return f"{one.task.view}: {name}: {one.came_out}{notes.get(one.came_out, '')}"


def print_answer(world: World, one: Asked) -> None:
    """One answer with the passages behind it, and the truth where it is wrong."""
    record = one.record
    print(f"[{caption(world, one)}]  {one.task.question}\n  {MARKS[one.came_out]} {said(record)}")
    for passage, posterior in zip(record["evidence"], record["posterior"], strict=True):
        text = passage["text"] if len(passage["text"]) <= 90 else passage["text"][:87] + "..."
        print(f"     {passage['score']:.2f} (posterior {posterior:.2f}) {passage['id']}: {text}")
        print(f"          {passage['source']}, {passage['licence']}")
    print()


def said(record: dict[str, Any]) -> str:
    """The answer, or that there is none."""
    if not record.get("abstained"):
        return record["generated_text"]
    withheld = textwrap.shorten(record["withheld"], width=40, placeholder=" ...")
    return f'(says nothing; sure by {record["confidence"]:.2f} only of "{withheld}")'


def show_tables(ask, world: World) -> None:
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
