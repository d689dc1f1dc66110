"""What retrieval is worth on an evaluation set: every query against all of its passages, not against a batch."""

from __future__ import annotations

import numpy as np
from transformers import EvalPrediction

from ..metrics.ranking import hit_at_k, reciprocal_rank, relevance_from_scores


CUTOFFS = (1, 5, 10)
BLOCK = 1024  # queries that are ranked at once


def corpus_recall(prediction: EvalPrediction) -> dict[str, float]:
    """Share of queries whose passage is among the first k, and the mean reciprocal rank, as `compute_metrics`.

    Args:
        prediction (`EvalPrediction`):
            `predictions` are query and passage vectors `(n, D)`, `label_ids` their labels `(n,)`; passages with one
            label count as one, by the first of them.

    Example:

    >>> vectors, labels = np.eye(2), np.arange(2)
    >>> corpus_recall(EvalPrediction((vectors, vectors), (labels, labels)))["recall@1"]
    1.0
    """
    (queries, passages), (query_labels, passage_labels) = prediction.predictions, prediction.label_ids
    labels, first = np.unique(passage_labels, return_index=True)
    sums = {f"recall@{k}": 0.0 for k in CUTOFFS} | {"mrr": 0.0}
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        relevant = relevance_from_scores(queries[block] @ passages[first].T, query_labels[block, None] == labels)
        for k in CUTOFFS:
            sums[f"recall@{k}"] += float(hit_at_k(relevant, k).sum())
        sums["mrr"] += float(reciprocal_rank(relevant).sum())
    return {name: value / len(queries) for name, value in sums.items()}
