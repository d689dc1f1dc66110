"""The card of the fusions, from the reports of `fusions.py`; those of the card that is there lie beside this program.

python benchmarks/fusions_card.py benchmarks/fusions.jsonl model_cards/flags_fusions.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean


TEXT = """# What each fusion makes of the same evidence

The shipped flag reader with another fusion, whose weights are new, learns on fictional countries to answer from two
passages in any order, and is asked about {tasks} facts of 40 countries that no training saw
(`python benchmarks/fusions.py`, batches of 16, one core; CPU minutes are those of training, on a machine shared with
others). At the start half of the rows, at the end none, ask for a passage to be repeated from memory
(`RavlmTrainer(memory=MemoryTraining(reconstruction=(0.5, 0.0)))`). `in_context` is the shipped reader as it is, which
had learned to read words for about three CPU hours: an earlier one, with a tokenizer of 2,048 tokens.

{figures}

{missing}What fusions have in common is `hf_ravlm.model.fusions.tokens`: beside the text encoder's states a fusion gets
the language model's own embedding of every token of a passage, at the place where it stands, so that a name can be
copied.
`attention` and `gated` point: each of their memory tokens chooses a token of the passage, or goes on behind the one
before; a new memory is one stretch of the passage, and learns where it is to begin. Eight tokens cannot hold a
passage, so these two learn from questions alone, at half the rate: asked to repeat passages, and at the rate of the
others, about every second seed stayed where it was (`attention` 0.333 with seed 0, 0.987 with seed 1; `gated` 0.974
and 0.752).
`product` has one token for a passage, a mean, which does not know in what order tokens stood: it tells what a
passage is about and cannot spell a name, and that is its ceiling.
What fusions add to embeddings is measured by these (`word_scale`), and by sixteen times as much where they point: with
once their size `attention` reached 0.431 of 500 steps and `gated` 0.732 of 400, seed 0. `concat` with sixteen times
their size reached 0.980 with each seed, and no more than 0.520 with the reader below.
"""

PRETRAINED = """
## A reader that others trained

SmolLM2-135M-Instruct with MiniLM as the text encoder of its memory, the parts of `examples/photographs` without
pictures, asked {tasks} of the same questions (`python benchmarks/fusions.py --reader smollm2 --fusions concat
--seeds 0 --batch_size {batch_size} --reconstruction 0 --questions {tasks} --steps ...`). The fusion and LoRA of rank
16 in the attention of the language model learn from fictional countries, at one rate of {lr}. `named` is the share of
replies that hold a right answer, whatever is said around it: untrained, SmolLM2 answers in sentences. A new memory is
its words and a little more. `in_context` learns from the same rows.

{figures}
"""

CURVE = """
## More passages

Trained with two, asked with more, seed 0: exact match, and CPU time to the first token where the states of passages
are kept. All times are of one machine; those of `concat` and `product`, trained once more on another since, stay.

![exact match and time]({picture})

{curve}
"""


FUSIONS = ("concat", "cross_attention", "attention", "gated", "product")


def missing_line(rows: Iterable[dict]) -> str:
    r"""Says which fusions have not been run.

    >>> missing_line([{"fusion": name} for name in ("concat", "product", "in_context")])
    'Not run yet: `cross_attention`, `attention`, `gated`.\n\n'
    """
    there = {row["fusion"] for row in rows}
    missing = [f"`{name}`" for name in FUSIONS if name not in there]
    return f"Not run yet: {', '.join(missing)}.\n\n" if missing else ""


def figure_lines(rows: Iterable[dict]) -> list[str]:
    """The table: a line per fusion, with the figures of its seeds and their mean."""
    lines = [
        "| fusion | its parameters | exact match | by seed | closed-book | steps | CPU minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["fusion"], []).append(row)
    for fusion, runs in groups.items():
        exact = [run["exact match"] for run in runs]
        lines.append(
            f"| `{fusion}` | {runs[0]['parameters']:,} | {mean(exact):.3f} | {', '.join(f'{x:.3f}' for x in exact)} "
            f"| {mean(run['closed-book'] for run in runs):.3f} | {runs[0]['steps']} "
            f"| {mean(run['minutes'] for run in runs):.1f} |"
        )
    return lines


def pretrained_lines(rows: Iterable[dict]) -> list[str]:
    """The table of a reader that others trained: a line per fusion and number of steps; `-` for what was not asked."""
    lines = ["| fusion | steps | exact match | named | closed-book | CPU minutes |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["fusion"], row["steps"])):
        asked = [row.get(name) for name in ("exact match", "named", "closed-book")]
        figures = " | ".join("-" if figure is None else f"{figure:.3f}" for figure in asked)
        lines.append(f"| `{row['fusion']}` | {row['steps']} | {figures} | {row['minutes']:.1f} |")
    return lines


def card_text(rows: Iterable[dict], picture: str) -> str:
    """The card, which shows a file of the name `picture` beside it where a report has a curve."""
    rows = list(rows)
    shipped = [row for row in rows if row.get("reader", "flags") == "flags"]
    others = [row for row in rows if row not in shipped]
    text = TEXT.format(
        tasks=shipped[0]["tasks"], figures="\n".join(figure_lines(shipped)), missing=missing_line(shipped)
    )
    if curve := curve_lines(shipped):
        text += CURVE.format(picture=picture, curve="\n".join(curve))
    if others:
        settings = {name: others[0]["settings"][name] for name in ("batch_size", "lr")}
        text += PRETRAINED.format(tasks=others[0]["tasks"], figures="\n".join(pretrained_lines(others)), **settings)
    return text


def curve_lines(rows: Iterable[dict]) -> list[str]:
    """Exact match and milliseconds to the first token by the number of passages, of the first seed."""
    first = {row["fusion"]: row["curve"] for row in reversed(list(rows)) if "curve" in row}
    if not first:
        return []
    numbers = list(next(iter(first.values())))
    lines = ["| passages | " + " | ".join(numbers) + " |", "|---|" + "---|" * len(numbers)]
    for fusion, curve in sorted(first.items()):
        cells = [f"{curve[number][0]:.3f}, {1000 * curve[number][1]:.0f} ms" for number in numbers]
        lines.append(f"| `{fusion}` | " + " | ".join(cells) + " |")
    return lines


def draw(rows: Iterable[dict], path: Path) -> None:
    """The same as a picture: exact match and time over the number of passages (`pip install matplotlib`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    right, late = figure.subplots(1, 2)
    for row in {row["fusion"]: row for row in reversed(list(rows)) if "curve" in row}.values():
        numbers = [int(number) for number in row["curve"]]
        right.plot(numbers, [value[0] for value in row["curve"].values()], "o-", label=row["fusion"])
        late.plot(numbers, [1000 * value[1] for value in row["curve"].values()], "o-", label=row["fusion"])
    for axes, name in ((right, "exact match"), (late, "first token, CPU ms")):
        axes.set(xlabel="passages", ylabel=name, ylim=(0, None))
        axes.grid(alpha=0.3)
    late.legend(fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reports", type=Path, help="what fusions.py wrote")
    parser.add_argument("card", type=Path, help="the card to write; a picture of its name comes beside it")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.reports.read_text(encoding="utf-8").splitlines()]
    picture = arguments.card.with_suffix(".png")
    if curve_lines(rows):
        draw(rows, picture)
    arguments.card.write_text(card_text(rows, picture.name), encoding="utf-8")


if __name__ == "__main__":
    main()
