"""mteb's evaluation of retrieval over our encoders: its figures are those of our own metrics."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hash_encoder import HashEncoder
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.metrics.ranking import (
    average_precision,
    hit_at_k,
    ndcg_at_k,
    recall_at_k,
    reciprocal_rank,
    relevance_from_ids,
)
from tiny import picture, tiny_model, tiny_processor


mteb = pytest.importorskip("mteb", reason='needs mteb: pip install "hf_ravlm[mteb]"')

NUM_QUERIES, NUM_PASSAGES = 12, 40
GOLD = {f"q{n}": {str(n): 1, str((7 * n + 3) % NUM_PASSAGES): 1} for n in range(NUM_QUERIES)}


def text_task_rows():
    """Queries that stand near one of their two passages."""
    passages = [{"id": str(n), "text": f"topic{n % 7} number {n}"} for n in range(NUM_PASSAGES)]
    return [{"id": f"q{n}", "text": f"topic{n % 7} asked {n}"} for n in range(NUM_QUERIES)], passages


def image_task_rows():
    """Images with words on both sides."""
    passages = [{"id": str(n), "text": f"red {n}", "image": picture(n)} for n in range(NUM_PASSAGES)]
    queries = [{"id": f"q{n}", "text": f"what is {n} ?", "image": picture(n, (20, 20))} for n in range(NUM_QUERIES)]
    return queries, passages


def local_task(queries, passages, modalities, category):
    """A retrieval task of mteb that is made here and asks nobody for data."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class LocalTask(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="HfRavlmLocal",
            description="Made by a test of hf_ravlm, of rows that mean nothing.",
            dataset={"path": "none/none", "revision": "none"},
            type="Any2AnyRetrieval" if "image" in modalities else "Retrieval",
            category=category,
            modalities=modalities,
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *args, **kwargs):
            split = {"queries": Dataset.from_list(queries), "corpus": Dataset.from_list(passages)}
            gold = {query: dict(wanted) for query, wanted in GOLD.items()}
            self.dataset = {"default": {"test": {**split, "relevant_docs": gold, "top_ranked": None}}}
            self.data_loaded = True

    return LocalTask()


def tiny_encoder():
    return RavlmEncoder(tiny_model().model, tiny_processor())


@pytest.mark.filterwarnings("ignore")  # of mteb and what it imports
@pytest.mark.parametrize(
    ("rows", "make_encoder", "modalities", "category"),
    [
        (text_task_rows, HashEncoder, ["text"], "t2t"),
        (image_task_rows, tiny_encoder, ["text", "image"], "it2it"),
    ],
)
def test_its_figures_are_ours(rows, make_encoder, modalities, category):
    from hf_ravlm.integrations.mteb import MtebEncoder

    queries, passages = rows()
    encoder = make_encoder()
    results = mteb.evaluate(
        MtebEncoder(encoder, "me/tiny"),
        local_task(queries, passages, modalities, category),
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": 5},
    )
    theirs = results.task_results[0].scores["test"][0]

    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(passages), encoder)
    images = [row["image"] for row in queries] if "image" in modalities else None
    found = retriever.retrieve(images, [row["text"] for row in queries], k=NUM_PASSAGES)
    relevant = relevance_from_ids(
        [[passage.id for passage in row] for row in found], [set(GOLD[q["id"]]) for q in queries]
    )
    num_gold = [len(GOLD[query["id"]]) for query in queries]
    for k in (1, 3, 5, 10):
        ours = {
            "ndcg": ndcg_at_k(relevant, num_gold, k),
            "recall": recall_at_k(relevant, num_gold, k),
            "hit_rate": hit_at_k(relevant, k),
            "mrr": reciprocal_rank(relevant, k),
            "map": average_precision(relevant, num_gold, k, divide_by="gold"),
        }
        for name, values in ours.items():
            assert theirs[f"{name}_at_{k}"] == pytest.approx(values.mean(), abs=6e-6), (name, k)  # rounded by mteb
    assert 0 < theirs["ndcg_at_10"] < 1
