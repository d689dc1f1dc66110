"""Two things that an index can do, on the flags: a bit in the place of each number, and one hop further.

    python examples/flags/indexes.py examples/flags/checkpoint

*Binary*: of each vector only the signs are searched (1/32 of the memory), and what they find is ranked by whole
vectors; recall@10 is against exact search, for drawings in styles that no entry has. *One hop*: the answer stands in
the passage of a neighbouring country, which the passage of the flag's own country names as `related`; of as many
passages read, how often the neighbour's is one, with `expand=` and without.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor

from flags.world import ENTRY_VIEW, VIEWS, World, load_world
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.retrieval.indexes.vector_index import build_index


KIND = "currency"
QUESTION = "Which currency is used in the country with this flag?"
READ = 5  # passages
GOAL = 0.95


def asked_images(world: World, number: int | None = None) -> list[tuple[str, object]]:
    """Countries that were never trained on, with their flags in styles that no entry has."""
    styles = [view for view in VIEWS if view != ENTRY_VIEW]
    found = [(name, world.images[name, view]) for view in styles for name in world.dev
             if (name, view) in world.images.encoded]  # fmt: skip
    return found[:number]


def binary_recall(retriever: RavlmRetriever, queries: np.ndarray, k: int = 10) -> dict[str, float]:
    """Which share of the `k` nearest a binary index finds, and how much smaller what it searches is."""
    vectors = np.asarray(retriever.vectors, np.float32)
    rows = {kind: build_index(vectors, kind).search(queries, k)[1] for kind in ("flat", "binary")}
    exact = np.sort(np.take_along_axis(queries @ vectors.T, rows["flat"], axis=1), axis=1)
    found = np.sort(np.take_along_axis(queries @ vectors.T, rows["binary"], axis=1), axis=1)
    lowest = exact[:, :1] - 1e-6  # of passages with one vector it does not matter which
    return {"recall": float((found >= lowest).mean()), "bits": vectors.shape[1], "vectors": len(vectors)}


def with_neighbours(world: World, retriever: RavlmRetriever) -> tuple[RavlmRetriever, dict[str, list[str]]]:
    """The same passages, those about money naming those of the countries next door; and which name which."""
    ids = list(retriever.knowledge_base.ids)
    code = {row["name"]: name for name, row in world.entities.items()}
    near = {
        f"{name}/{KIND}": [f"{code[other]}/{KIND}" for other in row["borders"] if f"{code.get(other)}/{KIND}" in ids]
        for name, row in world.entities.items()
    }
    passages = retriever.knowledge_base.passages(range(len(ids)))
    rows = [{"id": one.id, "text": one.text, "related": near.get(one.id, [])} for one in passages]
    vectors = np.asarray(retriever.vectors, np.float32)
    named = KnowledgeBase.from_dicts(rows)
    return RavlmRetriever(named, retriever.encoder, vectors, retriever.encoder_fingerprint), near


def one_hop(world: World, retriever: RavlmRetriever, asked: list[tuple[str, object]]) -> dict[str, float]:
    """How often a neighbour's passage is among `READ`, with `expand=` and by searching for as many."""
    retriever, near = with_neighbours(world, retriever)
    asked = [(name, image) for name, image in asked if near.get(f"{name}/{KIND}")]
    images, words = [image for _, image in asked], [QUESTION] * len(asked)
    found = {
        "without": retriever.retrieve(images=images, texts=words, k=READ),
        "with expand": retriever.retrieve(images=images, texts=words, k=1, expand=READ - 1),
    }
    shares: dict[str, float] = {"questions": len(asked)}
    for way, rows in found.items():
        hits = [
            not {one.id for one in row}.isdisjoint(near[f"{name}/{KIND}"])
            for row, (name, _) in zip(rows, asked, strict=True)
        ]
        shares[way] = sum(hits) / len(hits)
    return shares


def open_retriever(folder: Path) -> RavlmRetriever:
    """The knowledge base beside a model, with the model's own towers."""
    model, processor = (auto.from_pretrained(folder) for auto in (AutoModelForImageTextToText, AutoProcessor))
    return RavlmRetriever.from_pretrained(folder, encoder=RavlmEncoder(model.model, processor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the trained model with its knowledge base")
    parser.add_argument("--number", type=int, help="show so many images only")
    options = parser.parse_args()
    world, retriever = load_world(), open_retriever(options.folder)
    asked = asked_images(world, options.number)
    queries = retriever.encoder.encode_queries([image for _, image in asked], [QUESTION] * len(asked))
    print("binary:", binary_recall(retriever, np.asarray(queries, np.float32)), "goal", GOAL)
    print("one hop:", one_hop(world, retriever, asked))


if __name__ == "__main__":
    main()
