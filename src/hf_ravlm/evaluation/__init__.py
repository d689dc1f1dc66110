"""Knows how good an answer and a ranking are."""

from __future__ import annotations

from .ranking_metrics import (
    first_relevant_rank,
    hit_at_k,
    mean_rank,
    recall_at_k,
    reciprocal_rank,
    relevance_from_ids,
    relevance_from_scores,
)
from .text_metrics import exact_match, normalize_answer, token_f1


__all__ = [
    "exact_match",
    "first_relevant_rank",
    "hit_at_k",
    "mean_rank",
    "normalize_answer",
    "recall_at_k",
    "reciprocal_rank",
    "relevance_from_ids",
    "relevance_from_scores",
    "token_f1",
]
