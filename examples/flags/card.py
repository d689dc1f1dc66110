"""Writes the model card of a trained folder: what it is, how it was made, every figure, what it cannot do.

    python examples/flags/card.py runs/flags --command "accelerate launch examples/train_flags.py --seed 0"

Reads `figures.json` (written by `examples/train_flags.py`), `evaluation.json` (by `examples/flags/evaluation.py`) and
the knowledge base of the folder and, if there are any, the figures of runs that left one drawing style out
(`--leave_one_out FOLDER ...`; else the table of the card that is there stays). Writes `README.md` into the folder and,
with `--copy_to`, a copy elsewhere. Figures are never typed in by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from huggingface_hub import EvalResult, ModelCardData

from flags.measure import format_answers, format_retrieval, format_table
from hf_ravlm import KnowledgeBase
from hf_ravlm.hub.card import CardFacts, card_metadata, check_card, eval_results, figures, knowledge_section


FACTS = CardFacts(
    "flags",
    licence="apache-2.0",
    language=("en", "zh"),
    questions="questions about flags of 40 countries kept apart",
)
TEXT = """# Flags: a small retrieval-augmented vision-language model

Shown the drawing of a flag, it finds the country's entry in its knowledge base (250 countries and territories,
{passages} passages with sources and licences) and answers or describes with what stands there. It has {millions:.1f}
million parameters, was trained from scratch on two CPU cores, and answers in fractions of a second; it knows nothing
but flags.

```python
import hf_ravlm
from transformers import pipeline

ask = pipeline("image-to-text", model="examples/flags/checkpoint")
ask("flag.png", question="What is the capital of the country that uses this flag?")
```

## How it was made

`{command}`,
in one run of {minutes:.0f} minutes on two CPU cores with AMX.

Four stages (`examples/flags/recipe.py`): a ResNet of three stages learns which drawings show the same flag, from the
drawings of 150 countries in seven styles, altered and invented flags, all redrawn at random, on pictures of 64 pixels
and then of 128, and used at 160; a two-layer BERT learns which passage answers which question, asked in thousands of
wordings, English and Chinese, with idle talk around some of them (`flags/wordings.py`); a Llama, started as a copier,
learns to copy the answer out of passages about countries that do not exist; and, several layers deeper, what is asked
for in any words, and which of many passages tells it. It reads the one passage that the search puts first. Why from
scratch: features of pretrained image models did not carry over to drawing styles that they never saw, a pretrained
language model of useful size would take minutes where this one takes seconds, and what answers is the knowledge, not
the model's memory.

## Figures

Forty countries were set aside by a fixed seed: no drawing, no fact of theirs was trained on. They are looked for among
all 250 entries, whose pictures are the `mledoze` drawings. Entries with the same drawing count as one.

### The right country by picture alone, drawing styles seen in training

{retrieval}

Some drawings show another entry's flag (the French flag for Saint-Barthélemy, say). Without them:

{fair}

### One drawing style left out of training entirely

By picture alone; each run with 450 steps of stage 1 instead of 1,300, on 64-pixel pictures. For `mledoze`, the style
of the entries, no query exists: the row is the mean of all other styles.

{leave_one_out}

With 150 steps more, on pictures of 128 pixels, `flagpack` stays at 0.775 where it is left out, and 0.795 without wrong
pictures (mean of all styles 0.946). Looked at, the six that it misses beyond those three have larger emblems
or lighter blues than the entries.

### Answers: closed-book, with retrieval, with the gold passage

All styles but `mledoze`; exact match after the SQuAD normaliser for short answers (of several languages one is
enough), token F1 for long ones.

{answers}

{wordings}### What evidence rescues and harms

The short questions once more, by the evaluator of `hf_ravlm`; questions about one country stand together in the
intervals.

{effect}

## What it cannot do

It reads flags and nothing else. Flags that differ in an emblem of a few pixels are confused (Qatar and Bahrain, the
blue ensigns), simplified drawings most of all; of forty in the style flagpack three show no emblem at all, or another
flag, so that more than 0.925 cannot be had there. Long answers may go round in a circle or break off: of 40
descriptions 9 lose what the flag means so. It answers from its passages even where they are about another country;
with the policy of `examples/flags/policy` it weighs them and may say nothing (`model_cards/flags_do_no_harm.md`);
without passages it answers what the question itself tells, and else says "unknown". Search by words alone follows the
kind of question, not yet the country's name. Mere keywords are understood less well than sentences (`search` and
`form` among the wordings above): words of a description ("picture", "complete") drown what is asked for. Where an
answer begins like the country's name it may tell the country instead ("Kyrgyzstan" for "Kyrgyzstani som"). Asked for
what none of its passages is about (how many people live there), it says something else, sure of it even with the
policy. The facts are as old as their sources.

## Knowledge, drawings and licences

{knowledge}

Weights: Apache-2.0. Country facts: world-countries by Mohammed Le Doze, ODbL-1.0; almanac texts: CIA World Factbook,
public domain; entry pictures: flag drawings of world-countries. Drawings seen in training: Flag Icons (MIT), Flagpack
(MIT), CoreUI (CC0-1.0), svg-country-flags (public domain), Twemoji (CC-BY-4.0, rasterised), OpenMoji (CC-BY-SA-4.0).
`examples/flags/data/README.md` has authors, versions and notices; every passage carries its own source and licence.
"""


WORDINGS = """### Other wordings, other places

Families of wordings that nothing was trained on (`flags.wordings.KEPT_OUT`), {num_per_family} short questions each
about the dev countries, the same for all families. `retrieved` reads the passage that the search puts first, `reads
on` the next one where the answer is "unknown", up to three (`AnswerPolicy(num_readings=3)`), and `gold` only the one
that answers, so that what lies between was lost by the search:

{wordings}

With all passages of the right country in a random order, usual wording, {num_placed} questions: exact match by the
place of the passage that answers, from the best:

{places}

The same questions without that passage, and with it: how many of the answers "unknown" were right (precision), how
many were given where they were (recall), and how many answerable questions were answered (coverage).

{unknown}

`python examples/flags/rewording.py FOLDER --per_family {num_per_family} --num_placed {num_placed}`

"""


def write_card(folder: Path, command: str, left_out: list[Path]) -> str:
    """The card as text; also written to `README.md` of the folder."""
    found, report = (json.loads((folder / name).read_text("utf-8")) for name in ("figures.json", "evaluation.json"))
    path = folder / "README.md"
    card = TEXT.format(
        passages=found["passages"],
        millions=found["parameters"] / 1e6,
        command=command,
        minutes=found["minutes"],
        retrieval=format_retrieval(found["retrieval"]),
        fair=format_retrieval(found["retrieval without pictures that show another entry's flag"]),
        leave_one_out=leave_one_out_table(left_out) if left_out else earlier_table(path),
        answers=format_answers(found["answers"]),
        wordings=wordings_section(folder / "wordings.json"),
        effect=figures(report["all"], FACTS.questions),
        knowledge=knowledge_section(KnowledgeBase.from_pretrained(folder).table),
    )
    text = f"---\n{metadata(found, report['all']).to_yaml()}\n---\n\n{card}"
    check_card(text)
    path.write_text(text, encoding="utf-8")
    return text


def metadata(found: dict, report: dict) -> ModelCardData:
    """The card's header: what the evaluator says of the three arms, and hit@1 by picture alone."""
    hit = found["retrieval"]["mean"]["hit@1"]
    about = {"task_type": "image-text-to-text", "dataset_type": "flags", "dataset_name": "Flags (40 countries)"}
    results = eval_results(report, FACTS)
    results.append(EvalResult(metric_type="hit@1", metric_name="hit@1, mean of styles", metric_value=hit, **about))
    return card_metadata(
        tags=["flags"], language=list(FACTS.language), license=FACTS.licence, model_name="flags", eval_results=results
    )


def wordings_section(path: Path) -> str:
    """What `examples/flags/rewording.py` found, if it was run."""
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    return WORDINGS.format(
        **{f"num_{name.replace(' ', '_')}": number for name, number in found["questions"].items()},
        **{name: format_table(found[name]) for name in ("wordings", "places", "unknown")},
    )


def leave_one_out_table(folders: list[Path]) -> str:
    """hit@1 of the style that each run never saw, with and without pictures that show another entry's flag."""
    lines = [
        "| style left out | hit@1 of that style | without wrong pictures | mean of all styles |",
        "|---|---|---|---|",
    ]
    raw, fair = [], []
    for folder in folders:
        figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        style, tables = figures["left out"], list(figures.values())
        raw_table, fair_table = (table for table in tables if isinstance(table, dict) and "worst" in table)
        one = style if style in raw_table else "mean"  # the entry pictures' own style is asked for by no query
        raw.append(raw_table[one]["hit@1"])
        fair.append(fair_table[one]["hit@1"])
        lines.append(f"| {style} | {raw[-1]:.3f} | {fair[-1]:.3f} | {raw_table['mean']['hit@1']:.3f} |")
    lines.append(f"| mean | {sum(raw) / len(raw):.3f} | {sum(fair) / len(fair):.3f} | |")
    lines.append(f"| worst | {min(raw):.3f} | {min(fair):.3f} | |")
    return "\n".join(lines)


def earlier_table(path: Path) -> str:
    """The table of left-out styles of the card that is there: its runs took hours, and their folders are gone."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = text.partition("| style left out |")[2].partition("\n\n")[0]
    return f"| style left out |{rows}" if rows else "Not measured for this checkpoint."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what examples/train_flags.py wrote")
    parser.add_argument("--command", required=True, help="the command that made it, for the card")
    parser.add_argument("--leave_one_out", type=Path, nargs="*", default=[], help="folders of runs with --leave_out")
    parser.add_argument("--copy_to", type=Path, help="write the card here, too")
    options = parser.parse_args()
    written = write_card(options.folder, options.command, options.leave_one_out)
    if options.copy_to:
        options.copy_to.write_text(written, encoding="utf-8")
