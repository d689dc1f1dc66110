"""Knows what a reader learns that shall know some countries by heart and read about all: rows for `RavlmTrainer`.

Countries to know are asked about without evidence, in four drawing styles and the wordings of training. Of these, dev
countries never come with a passage, so that what happens to them with evidence was learned on others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from flags.questions import SHORT_KINDS, ask
from flags.shuffled import UNKNOWN, Shown, answers_from
from flags.world import World
from hf_ravlm import KnowledgeBase


LEARNED_STYLES, HELD_OUT_STYLES = ("flagicons", "flagpack", "svgcf", "mledoze"), ("coreui", "openmoji", "twemoji")
NUM_RIVALS = 8


def countries_of(world: World, num_known: int) -> dict[str, list[str]]:
    """`known` and `other` of training, `known dev` and `unknown dev`."""
    known = world.train[:: max(len(world.train) // max(num_known, 1), 1)][:num_known]
    others = [country for country in world.train if country not in known]
    return {"known": known, "other": others, "known dev": world.dev[::2], "unknown dev": world.dev[1::2]}


def rows_to_know(world: World, countries: dict, knowledge_base: KnowledgeBase, sizes: Sequence[int]) -> list[dict]:
    """Facts closed-book; every fifth batch copies from a passage about a country that is not to be known.

    Args:
        sizes: Rows of each batch.
    """
    rng = random.Random(0)
    rows = []
    for step, size in enumerate(sizes):
        for _ in range(size):
            if step % 5 == 4:
                row = _question(world, rng, countries["other"])
                rows.append({**row, "evidence": [knowledge_base[row["gold_ids"][0]].text]})
            else:
                row = _question(world, rng, countries["known"] + countries["known dev"])
                rows.append({**row, "gold_ids": [], "evidence": []})
    return rows


def rows_to_read(
    world: World, countries: dict, knowledge_base: KnowledgeBase, number: int, seed: int, closed_book: float = 0.2
) -> list[dict]:
    """Questions with evidence, half of them about known countries; a share is closed-book.

    Known countries are distracted from by passages of the same kind about other countries of training. About the
    others nobody could tell which of two such passages is right: any passage distracts.
    """
    rng = random.Random(seed)
    ids, rows = set(knowledge_base.ids), []
    for _ in range(number):
        if rng.random() < closed_book:
            row = _question(world, rng, countries["known"] + countries["known dev"])
            rows.append({**row, "gold_ids": [], "evidence": []})
            continue
        is_known = bool(countries["known"]) and rng.random() < 0.5
        row = _question(world, rng, countries["known" if is_known else "other"])
        gold = row["gold_ids"][0]
        rivals = [f"{country}/{gold.split('/')[1]}" for country in rng.sample(world.train, NUM_RIVALS)]
        rivals = [rival for rival in rivals if rival in ids and rival != gold]
        rows.append({**row, "negative_ids": rivals if is_known else [], "known": is_known})
    return rows


def _question(world: World, rng: random.Random, countries: Sequence[str]) -> dict:
    country = rng.choice(countries)
    answers = answers_from([Shown(kind, world.entities[country], "") for kind in SHORT_KINDS])
    kind = rng.choice([kind for kind in SHORT_KINDS if answers[kind] != UNKNOWN])
    style = rng.choice([style for style in LEARNED_STYLES if (country, style) in world.images])
    picture = world.images.encoded[country, style]
    return {"image": picture, "question": ask(kind, rng), "answer": answers[kind], "gold_ids": [f"{country}/{kind}"]}
