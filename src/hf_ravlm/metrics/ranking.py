"""How well a ranking puts what is wanted on top: hit, recall and precision at k, MRR, mAP, nDCG, ranks.

All metrics start from one boolean matrix `relevant (Q, K)`: is the result of query `q` at rank `j + 1` a wanted one?
`relevance_from_ids`, `relevance_from_scores` and `relevance_from_answers` make it. `num_gold` says how many wanted
things exist per query, found or not: an `int` or `(Q,)`, at least 1; no id may be listed twice in a row. `k` is at
least 1; `None`, and more than `K`, count all results. Metrics return one value per query, `(Q,)` in float64; only
`mean_rank` and `median_rank` are one number. Other shapes, and a `num_gold` that is too small, are an
`InvalidInputError`.

Two different things are called "Recall@K" in papers. Image-text retrieval and most knowledge-based VQA mean *hit* rate
(anything wanted among the first K: `hit_at_k`); information retrieval means the found *fraction* (`recall_at_k`). With
one wanted passage per query they agree. Definitions: Manning, Raghavan, Schütze, "Introduction to Information
Retrieval" (2008), chapter 8; reciprocal rank: Voorhees, "The TREC-8 question answering track report" (1999); nDCG:
Järvelin, Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def relevance_from_ids(
    ranked_ids: Sequence[Sequence[Hashable]], gold_ids: Sequence[Collection[Hashable]]
) -> BoolArray:
    """Mark which ranked results are wanted.

    Args:
        ranked_ids (`Q` sequences of ids): Best first. Rows may differ in length; short ones are filled with `False`.
        gold_ids (`Q` sets of ids): What each query wants. For entities with several passages, pass entity ids in both.

    Returns:
        `np.ndarray` of shape `(Q, K)` and type bool, `K` the length of the longest ranking.

    Raises:
        InvalidInputError: The two have different lengths, or a string stands where a collection of ids belongs.

    Example:

    >>> relevance_from_ids([["fr", "nl"], ["nl", "fr"]], [{"fr"}, {"fr", "mf"}])
    array([[ True, False],
           [False,  True]])
    """
    if len(ranked_ids) != len(gold_ids):
        raise InvalidInputError(f"{len(ranked_ids)} rankings came with {len(gold_ids)} sets of gold ids.")
    for name, rows in {"ranked_ids": ranked_ids, "gold_ids": gold_ids}.items():
        if strings := [row for row in rows if isinstance(row, str)]:
            raise InvalidInputError(f"{name} holds {strings[0]!r}; each query needs a collection of ids.")
    relevant = np.zeros((len(ranked_ids), max(map(len, ranked_ids), default=0)), dtype=np.bool_)  # (Q, K)
    for marks, ranked, gold in zip(relevant, ranked_ids, gold_ids, strict=True):
        marks[: len(ranked)] = [candidate in gold for candidate in ranked]
    return relevant


def relevance_from_scores(scores: npt.ArrayLike, gold: npt.ArrayLike) -> BoolArray:
    """Rank all candidates by score, highest first, and mark the wanted ones in that order.

    Candidates with equal scores keep the order of their columns, so the result does not depend on the sorting method.

    Args:
        scores (`np.ndarray` of shape `(Q, N)`): Higher is better; finite.
        gold (`np.ndarray` of shape `(Q, N)`, bool): Which candidates each query wants.

    Returns:
        `np.ndarray` of shape `(Q, N)` and type bool.

    Raises:
        InvalidInputError: The shapes differ or are not two-dimensional, or a score is NaN.

    Example:

    >>> relevance_from_scores([[0.1, 0.9, 0.5]], [[True, False, False]])
    array([[False, False,  True]])
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(gold, dtype=np.bool_)
    if values.ndim != 2 or values.shape != wanted.shape:
        raise InvalidInputError(
            f"scores {values.shape} and gold {wanted.shape} must have one shape (queries, candidates)."
        )
    if np.isnan(values).any():
        raise InvalidInputError("scores contain NaN, which has no place in a ranking; check the embeddings.")
    order = np.argsort(-values, axis=1, kind="stable")  # (Q, N)
    return np.take_along_axis(wanted, order, axis=1)


def hit_at_k(relevant: npt.ArrayLike, k: int) -> FloatArray:
    """1.0 for every query with anything wanted among its first `k` results, else 0.0: `(Q, K)` to `(Q,)`.

    >>> hit_at_k([[False, True, True], [False, False, True]], k=2)
    array([1., 0.])
    """
    return np.asarray(_checked(relevant, k)[:, :k].any(axis=1), dtype=np.float64)


def recall_at_k(relevant: npt.ArrayLike, num_gold: npt.ArrayLike, k: int) -> FloatArray:
    """The fraction of all wanted things among the first `k` results, `|gold ∩ top k| / |gold|`: `(Q, K)` to `(Q,)`.

    Example: one of two wanted things stands among the first two.

    >>> recall_at_k([[True, False, True]], num_gold=2, k=2)
    array([0.5])
    """
    marks = _checked(relevant, k)
    return np.asarray(marks[:, :k].sum(axis=1) / _checked_totals(num_gold, marks), dtype=np.float64)


def precision_at_k(relevant: npt.ArrayLike, k: int) -> FloatArray:
    """The fraction of the first `k` places that hold something wanted; a ranking shorter than `k` is not excused.

    >>> precision_at_k([[True, False, True]], k=2), precision_at_k([[True, False, True]], k=4)
    (array([0.5]), array([0.5]))
    """
    return np.asarray(_checked(relevant, k)[:, :k].sum(axis=1) / k, dtype=np.float64)


def average_precision(
    relevant: npt.ArrayLike,
    num_gold: npt.ArrayLike,
    k: int | None = None,
    divide_by: Literal["reachable", "gold"] = "reachable",
) -> FloatArray:
    """The precision at each rank with a wanted result, summed and divided by how many there could be; mean: mAP@k.

    Args:
        relevant, num_gold, k: See above.
        divide_by (`str`): `"reachable"` divides by `min(k, num_gold)`, so that 1.0 can be reached (ranx, meerqat);
            `"gold"` by `num_gold` (trec_eval). The same without `k`.

    Raises:
        InvalidInputError: `divide_by` is neither.

    Example: found at ranks 1 and 3, of two: `(1/1 + 2/3) / 2`.

    >>> average_precision([[True, False, True]], num_gold=2).round(4)
    array([0.8333])
    """
    marks = _checked(relevant, k)
    totals = _checked_totals(num_gold, marks)
    if divide_by not in ("reachable", "gold"):
        raise InvalidInputError(f'divide_by={divide_by!r} is not known. Choose "reachable" or "gold".')
    if divide_by == "reachable" and k is not None:
        totals = np.minimum(totals, k)
    marks = marks[:, :k]
    precisions = marks.cumsum(axis=1) / np.arange(1, marks.shape[1] + 1)  # (Q, k)
    return np.asarray((precisions * marks).sum(axis=1) / totals, dtype=np.float64)


def ndcg_at_k(relevant: npt.ArrayLike, num_gold: npt.ArrayLike, k: int | None = None) -> FloatArray:
    """Normalised discounted cumulative gain: `sum(1 / log2(rank + 1))` of what was found, over that of the best order.

    What is wanted is wanted to one degree here; then the gains `rel` and `2 ** rel - 1` are the same.

    Example: one wanted thing, at rank 3: `1 / log2(4)`.

    >>> ndcg_at_k([[False, False, True]], num_gold=1, k=5)
    array([0.5])
    """
    marks = _checked(relevant, k)
    totals = np.broadcast_to(_checked_totals(num_gold, marks), marks.shape[:1])
    depth = int(totals.max(initial=0)) if k is None else k
    discounts = 1 / np.log2(np.arange(2, max(depth, marks.shape[1]) + 2))
    gains = (marks[:, :k] * discounts[: marks[:, :k].shape[1]]).sum(axis=1)
    return np.asarray(gains / discounts.cumsum()[np.minimum(totals, depth) - 1], dtype=np.float64)


def first_relevant_rank(relevant: npt.ArrayLike) -> FloatArray:
    """The 1-based rank of the first wanted result per query; `inf` where none is listed.

    >>> first_relevant_rank([[False, True, True], [False, False, False]])
    array([ 2., inf])
    """
    marks = _checked(relevant)
    if marks.shape[1] == 0:
        return np.full(marks.shape[0], np.inf)
    return np.where(marks.any(axis=1), marks.argmax(axis=1) + 1.0, np.inf)


def mean_rank(relevant: npt.ArrayLike, official_quirks: bool = False) -> float:
    """Mean over the queries of the 1-based rank of the first wanted result; 1.0 is perfect.

    Rank *all* candidates before calling this: a query whose wanted result is not listed has an unknown rank, and the
    mean is then `inf` rather than flattering. There must be a query.

    Args:
        relevant (`np.ndarray` of shape `(Q, N)`, bool): See `relevance_from_scores`.
        official_quirks (`bool`): Count from 0, as the "average rank" of DPR does: one less. (DPR also ranks against
            the passages of its validation batches only, so its figures do not compare with ranks in a knowledge base.)

    Example: ranks 2 and 1.

    >>> mean_rank([[False, True, False], [True, False, False]])
    1.5
    """
    return float(_ranks(relevant, "mean").mean()) - official_quirks


def median_rank(relevant: npt.ArrayLike, official_quirks: bool = False) -> float:
    """Median over the queries of the 1-based rank of the first wanted result; see `mean_rank`.

    Unlike the mean it stays finite while less than half of the queries have an unknown rank.

    Example: ranks 2, 1 and unknown.

    >>> median_rank([[False, True], [True, False], [False, False]])
    2.0
    """
    return float(np.median(_ranks(relevant, "median"))) - official_quirks


def reciprocal_rank(relevant: npt.ArrayLike, k: int | None = None) -> FloatArray:
    """`1 / rank` of the first wanted result per query, 0.0 where none stands among the first `k`; its mean is MRR@k.

    >>> reciprocal_rank([[False, True, True], [True, False, False], [False, False, False]])
    array([0.5, 1. , 0. ])
    """
    marks = _checked(relevant, k)
    return np.reciprocal(first_relevant_rank(marks[:, :k]))


def _ranks(relevant: npt.ArrayLike, name: str) -> FloatArray:
    ranks = first_relevant_rank(relevant)
    if ranks.size == 0:
        raise InvalidInputError(f"The {name} rank of no queries is undefined; relevant has no rows.")
    return ranks


def _checked_totals(num_gold: npt.ArrayLike, marks: BoolArray) -> npt.NDArray[np.int64]:
    totals = np.asarray(num_gold)
    if totals.ndim > 1 or (totals.ndim == 1 and totals.shape != marks.shape[:1]):
        raise InvalidInputError(f"num_gold has the shape {totals.shape}; expected a number or {marks.shape[:1]}.")
    if (totals < 1).any() or (marks.sum(axis=1) > totals).any():
        raise InvalidInputError("num_gold must be at least 1 and at least the number of wanted results in each row.")
    return totals


def _checked(relevant: npt.ArrayLike, k: int | None = None) -> BoolArray:
    marks = np.asarray(relevant)
    if marks.ndim != 2 or (marks.dtype != np.bool_ and marks.size > 0):
        raise InvalidInputError(
            f"relevant must be a bool array of shape (queries, results); came: {marks.dtype} {marks.shape}."
        )
    if k is not None and k < 1:
        raise InvalidInputError(f"k must be at least 1; came: {k}.")
    return marks.astype(np.bool_)
