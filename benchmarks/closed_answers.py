"""Choosing among many answers against writing one: time of one question, by the reader that is shipped.

    python benchmarks/closed_answers.py --output closed_answers.json

The answers are names out of the knowledge base, alone and in pairs. Both sides ask the same question about the same
flag with the same passage, in turns; what counts is the ratio of their least CPU times.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch
from transformers import pipeline

from hf_ravlm.model.reader.candidates import AnswerSet
from measuring import Finding, interleaved, markdown, write_json


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUESTION = "What is the capital of the country with this flag?"
GOAL = 3.0  # times one written answer
SIZES = (10, 64, 1_000, 10_000)


def answers_of(names: list[str], number: int) -> list[str]:
    """So many different answers: names, and pairs of names where those do not suffice."""
    pairs = (f"{one} and {other}" for one, other in itertools.permutations(names, 2))
    return list(itertools.islice(itertools.chain(names, pairs), number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EXAMPLES / "flags" / "checkpoint"), help="folder of a saved system")
    parser.add_argument("--rounds", type=int, default=7, help="in which the sides take turns")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    from flags.world import ENTRY_VIEW, VIEWS, load_world

    world = load_world()
    ask = pipeline("visual-question-answering", model=options.model)
    country = sorted(world.dev)[0]
    view = next(view for view in VIEWS if view != ENTRY_VIEW and (country, view) in world.images.encoded)
    asked = {"image": world.images[country, view], "question": QUESTION}
    names = sorted({answer for row in world.questions for answer in row["answer"] if len(answer.split()) < 4})
    sides = {"written": lambda: ask(asked, with_posterior=False)}
    length = {}
    for size in SIZES:
        answers = answers_of(names, size)
        length[size] = max(map(len, AnswerSet.of(ask.processor, answers).ids))
        chosen = pipeline(
            "visual-question-answering",
            model=ask.model,
            processor=ask.processor,
            retriever=ask.retriever,
            allowed_answers=answers,
        )
        sides[f"{size:,}"] = lambda chosen=chosen: chosen(asked)
    for call in sides.values():
        print(call()[0]["answer"], flush=True)
    times, findings = interleaved(sides, options.rounds), []
    for size in SIZES:
        ratio = times[f"{size:,}"].cpu / times["written"].cpu
        findings.append(
            Finding(
                section="closed set",
                what=f"{size:,} answers against one that is written",
                goal=f"<= {GOAL}",
                seen=f"{ratio:.2f}",
                met=ratio <= GOAL,
                details={"ratio": ratio, "longest": length[size], "seconds": times[f"{size:,}"]._asdict()},
            )
        )
    print(markdown(findings))
    if options.output:
        write_json(options.output, {"model": options.model, "written": times["written"]._asdict()}, findings)


if __name__ == "__main__":
    main()
