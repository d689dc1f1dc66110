"""Measures while training: the recall of towers, and a reader's answers with and without evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.accelerator import Accelerator
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import gather_object
from transformers import EvalPrediction

from ..metrics.answers import exact_match, token_f1
from ..metrics.ranking import hit_at_k, reciprocal_rank, relevance_from_ids, relevance_from_scores
from ..model.reader.reader import RavlmForConditionalGeneration
from .batches.reader_batches import ROW_NAMES, ReaderBatches
from .batches.rows import TrainingRow, is_stream


_CUTOFFS = (1, 5, 10)
_BLOCK = 1024  # queries that are ranked at once


def corpus_recall(prediction: EvalPrediction) -> dict[str, float]:
    """Share of queries whose passage is among the first k, the mean reciprocal rank, and among how many passages.

    Args:
        prediction (`EvalPrediction`):
            `predictions` are query and passage vectors `(n, D)`, `label_ids` their labels `(n,)`, or `(n, R)` where a
            passage belongs to a query if one of `R` labels is equal; passages with one (first) label count as one, by
            the first of them. Both may come as a list of batches.

    >>> vectors, labels = np.eye(2), np.arange(2)
    >>> found = corpus_recall(EvalPrediction((vectors, vectors), (labels, labels)))
    >>> found["recall@1"], found["num_passages"]
    (1.0, 2)
    """
    queries, passages = _joined(prediction.predictions)
    query_labels, passage_labels = (side.reshape(len(side), -1) for side in _joined(prediction.label_ids))
    first = np.unique(passage_labels[:, 0], return_index=True)[1]
    labels = passage_labels[first]
    sums = {f"recall@{k}": 0.0 for k in _CUTOFFS} | {"mrr": 0.0}
    for start in range(0, len(queries), _BLOCK):
        block = slice(start, start + _BLOCK)
        belong = (query_labels[block, None] == labels).any(axis=-1)
        relevant = relevance_from_scores(queries[block] @ passages[first].T, belong)
        for k in _CUTOFFS:
            sums[f"recall@{k}"] += float(hit_at_k(relevant, k).sum())
        sums["mrr"] += float(reciprocal_rank(relevant).sum())
    return {name: value / len(queries) for name, value in sums.items()} | {"num_passages": len(first)}


def _joined(sides: Any) -> Sequence[np.ndarray]:
    """Queries and passages of all batches, which the Trainer keeps apart with `eval_do_concat_batches=False`."""
    return [np.concatenate(batches) for batches in zip(*sides, strict=True)] if isinstance(sides, list) else sides


@torch.no_grad()
def reader_sums(
    reader: RavlmForConditionalGeneration,
    batches: ReaderBatches,
    rows: Sequence[Mapping[str, Any]],
    **generation: Any,
) -> dict[str, float]:
    """Measures of one batch of rows as sums, so that processes can add theirs up; `means_of` makes them shares."""
    opened = batches.opened(rows)
    accepted = [list(row.answers) for row in opened]
    sums: dict[str, float] = {"num_rows": float(len(opened))}
    evidence: list[Any] = [row.evidence or () for row in opened]
    if batches.view is not None:
        num_passages = batches.mix.num_passages
        found, queries = batches.find(opened, max(num_passages, 10))  # 10 for the mean reciprocal rank
        evidence = batches.evidence_of([places[:num_passages] for places in found], queries)
        sums |= _ranking_sums(batches, opened, found)
    read = answer(reader, batches, opened, evidence, **generation)
    alone = answer(reader, batches, opened, [[] for _ in opened], **generation)
    right, known = (np.array(list(map(exact_match, texts, accepted))) for texts in (read, alone))
    sums |= {
        "exact_match": right.sum(),
        "token_f1": sum(map(token_f1, read, accepted)),
        "closed_book_exact_match": known.sum(),
        "rescued": (right * (1 - known)).sum(),
        "harmed": (known * (1 - right)).sum(),
    }
    return {name: float(value) for name, value in sums.items()}


def measure_answers(
    reader: RavlmForConditionalGeneration,
    batches: ReaderBatches,
    rows: Any,
    batch_size: int,
    accelerator: Accelerator,
    generation: Mapping[str, Any],
) -> dict[str, float]:
    """The measures of a whole evaluation set; each process reads every n-th row of it."""
    reader.eval()
    own = own_rows(rows, accelerator.process_index, accelerator.num_processes)
    totals: defaultdict[str, float] = defaultdict(float)
    while batch := list(islice(own, batch_size)):
        for name, value in reader_sums(reader, batches, batch, **generation).items():
            totals[name] += value
    if accelerator.num_processes > 1:
        names = sorted(set(gather_object(sorted(totals))))
        values = torch.tensor([totals[name] for name in names], device=accelerator.device)
        return means_of(dict(zip(names, accelerator.reduce(values, "sum").tolist(), strict=True)))
    return means_of(totals)


def own_rows(rows: Any, process: int, num_processes: int) -> Iterator[Mapping[str, Any]]:
    """Every n-th row of a data set or stream, which may be cut for several processes already.

    >>> list(own_rows([{"id": 1}, {"id": 2}, {"id": 3}], process=0, num_processes=2))
    [{'id': 1}, {'id': 3}]
    """
    rows = rows.dataset if isinstance(rows, IterableDatasetShard) else rows
    if is_stream(rows):
        return islice(iter(rows), process, None, num_processes)
    return (rows[number] for number in range(process, len(rows), num_processes))


def means_of(sums: Mapping[str, float]) -> dict[str, float]:
    """Shares of rows out of added sums; rankings count the rows that name gold passages.

    >>> means_of({"num_rows": 4.0, "exact_match": 3.0, "num_ranked": 2.0, "hit@1": 1.0})
    {'exact_match': 0.75, 'hit@1': 0.5}
    """
    ranked = {name for name in sums if name.startswith("hit@") or name == "mrr"}
    counts = {name: sums["num_ranked" if name in ranked else "num_rows"] for name in sums}
    return {name: sums[name] / counts[name] for name in sums if not name.startswith("num_") and counts[name]}


def answer(
    reader: RavlmForConditionalGeneration,
    batches: ReaderBatches,
    rows: Sequence[TrainingRow],
    evidence: Sequence[Sequence[Mapping[str, Any]]],
    **generation: Any,
) -> list[str]:
    """The reader's answers to opened rows with given evidence; greedy, unless `generation` says otherwise."""
    inputs = batches.inputs(rows, evidence, with_answers=False)
    inputs.pop(ROW_NAMES)
    inputs = {name: value.to(reader.device) for name, value in inputs.items()}
    sequences = reader.generate(**inputs, **{"do_sample": False, "num_beams": 1, **generation})
    texts = batches.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _ranking_sums(
    batches: ReaderBatches, rows: Sequence[TrainingRow], found: Sequence[Sequence[int]]
) -> dict[str, float]:
    view = batches.require_view()
    marked = [at for at, row in enumerate(rows) if row.gold_ids]
    ranked = [view.ids(found[at]) for at in marked]
    relevant = relevance_from_ids(ranked, [set(rows[at].gold_ids) for at in marked])
    cutoffs = sorted({1, max(batches.mix.num_passages, 1)})
    hits = {f"hit@{k}": float(hit_at_k(relevant, k).sum()) if marked else 0.0 for k in cutoffs}
    return {"num_ranked": float(len(marked)), **hits, "mrr": float(reciprocal_rank(relevant).sum()) if marked else 0.0}
