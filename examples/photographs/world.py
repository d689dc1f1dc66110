"""Knows the photographs world: pictures, captions, entries, who may be trained on, and what a right caption names.

Things, not pictures, are set aside: no picture of a dev thing is trained on. Of things to train on that have several
photographs, one photograph is set aside, too: "seen" things. Drawings are trained on and never measured.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from photographs.parts import QUESTION, placed_by


@dataclass(frozen=True)
class World:
    """Everything, loaded once.

    Attributes:
        entries (`dict[str, dict]`): Synset → row of `knowledge.jsonl`.
        train, dev (`list[dict]`): Rows with `id`, `image`, `question`, `answer`, `gold_ids` as training takes them;
            those of `dev` also have `kind`: how their thing is found, or "seen".
    """

    entries: dict[str, dict]
    train: list[dict]
    dev: list[dict]


def load_world(folder: str | Path, dev_share: float = 0.5, seed: int = 0) -> World:
    """Reads what `prepare_data.py` wrote and sets things aside, the same ones for the same `seed`."""
    folder = Path(folder)
    lines = (folder / "knowledge.jsonl").read_text(encoding="utf-8").splitlines()
    entries = {entry["id"]: entry for entry in map(json.loads, lines)}
    stamps = pq.read_table(folder / "stamps.parquet").to_pylist()
    return World(entries, *split_stamps(stamps, entries, dev_share, seed))


def split_stamps(
    stamps: Sequence[dict], entries: dict[str, dict], dev_share: float, seed: int
) -> tuple[list[dict], list[dict]]:
    """Rows to train on and rows to measure; things of each way of being found are set aside in the same share."""
    photographs: dict[str, list[dict]] = {}
    for stamp in stamps:
        if not stamp["drawn"]:
            photographs.setdefault(stamp["synset"], []).append(stamp)
    rng = random.Random(seed)
    aside: set[str] = set()
    for way in ("class", "kinds", "words"):
        things = sorted(synset for synset in photographs if placed_by(entries[synset]) == way)
        aside.update(rng.sample(things, round(dev_share * len(things))))
    second = {
        rng.choice(photographs[synset])["id"]
        for synset in sorted(photographs)
        if synset not in aside and len(photographs[synset]) > 1
    }
    train, dev = [], []
    for stamp in stamps:
        if stamp["id"] in second:
            dev.append(row_of(stamp, "seen"))
        elif stamp["synset"] not in aside:
            train.append(row_of(stamp, ""))
        elif not stamp["drawn"]:
            dev.append(row_of(stamp, placed_by(entries[stamp["synset"]])))
    return train, dev


def row_of(stamp: dict, kind: str) -> dict:
    """A stamp as training and evaluation take it."""
    return {
        "id": stamp["id"],
        "image": stamp["image"],
        "question": QUESTION,
        "answer": stamp["caption"],
        "answers": [stamp["caption"]],
        "gold_ids": [stamp["synset"]],
        "kind": kind,
        "cluster": stamp["synset"],
    }


def training_rows(rows: Sequence[dict], retriever, num_passages: int, closed_book: float, seed: int) -> list[dict]:
    """Rows with the evidence to learn from, and copies without evidence.

    Where the retriever does not find the right entry, it stands in the best place all the same, before the best of
    what was found: a reader that saw wrong entries only would learn not to read them.

    Args:
        rows (`list[dict]`): Of `load_world`.
        retriever (`RavlmRetriever`): Finds the entries.
        num_passages (`int`): `K`; 0 trains without any evidence.
        closed_book (`float`): How many copies without evidence there are, as a share of the rows.
        seed (`int`): Chooses the rows that have a copy.
    """
    if num_passages == 0:
        return [{**row, "evidence": []} for row in rows]
    found = retriever.retrieve([row["image"] for row in rows], k=num_passages)
    ready = []
    for row, passages in zip(rows, found, strict=True):
        gold = row["gold_ids"][0]
        if gold not in [passage.id for passage in passages]:
            passages = [retriever.knowledge_base[gold], *passages[: num_passages - 1]]
        evidence = [{"text": passage.text, "score": float(-place)} for place, passage in enumerate(passages)]
        ready.append({**row, "evidence": evidence})
    copies = random.Random(seed).sample(rows, round(closed_book * len(rows)))
    return ready + [{**row, "evidence": []} for row in copies]


def names_it(caption: str, words: Iterable[str]) -> bool:
    """Whether a caption names a thing by one of its words, in the singular or a plural by rule.

    Example:

    ```python
    >>> names_it("Two koalas.", ["koala", "Phascolarctos cinereus"]), names_it("A koalaish bear.", ["koala"])
    (True, False)

    ```
    """
    caption = caption.lower().replace("’", "'")
    for word in words:
        stem = re.escape(word.lower())
        if re.search(rf"(?<!\w){stem}(s|es)?(?!\w)", caption):
            return True
        if word.endswith("y") and re.search(rf"(?<!\w){re.escape(word.lower()[:-1])}ies(?!\w)", caption):
            return True
    return False
