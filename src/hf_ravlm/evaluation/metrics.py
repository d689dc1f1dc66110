"""Knows our metrics as `evaluate` loads them: one class per metric, each a thin coat over our functions.

    >>> metric = VqaAccuracy()
    >>> metric.compute(predictions=["Grey."], references=[["grey"] * 3 + ["blue"] * 7])
    {'vqa_accuracy': 0.9}

The classes need no network. `evaluate` itself is being replaced by other tools, so everything here works without it
too: see the functions that are named in each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import datasets
import evaluate

from ..errors import InvalidInputError
from ..metrics.pseudo_relevance import relevance_from_answers
from ..metrics.ranking import (
    average_precision,
    hit_at_k,
    mean_rank,
    median_rank,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    relevance_from_ids,
)
from .questions import Question
from .scoring import score_answers


TEXT = datasets.Value("string")
TEXTS = datasets.Sequence(TEXT)

_CITATION = "See the functions of hf_ravlm.evaluation for the definitions and their sources."


def check_rows(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Refuses rows in which something is missing, and no rows at all.

    >>> check_rows(["grey"], [["grey", None]])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hf_ravlm.errors.InvalidInputError: 1 of 1 references are missing or hold a None, first that of row 0: ...
    """
    if not len(predictions):
        raise InvalidInputError("There are no predictions to score.")
    for name, rows in (("predictions", predictions), ("references", references)):
        missing = [
            row for row, value in enumerate(rows) if value is None or (type(value) is not str and None in value)
        ]
        if missing:
            raise InvalidInputError(
                f"{len(missing)} of {len(rows)} {name} are missing or hold a None, first that of row {missing[0]}: "
                "leave these rows out of both lists, or give an empty text, which counts as wrong."
            )


class _AnswerMetric(evaluate.Metric):
    """An answer and its accepted answers, judged by a metric of `ANSWER_METRICS`."""

    metric_name = ""
    extra_columns: Mapping[str, Any] = {}

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": TEXT, "references": TEXTS, **self.extra_columns}
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation=_CITATION,
            inputs_description="predictions: list of str; references: list of lists of str",
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        kinds: Sequence[str] | None = None,
        questions: Sequence[str] | None = None,
    ) -> dict[str, float]:
        check_rows(predictions, references)
        asked = [
            Question(
                str(row),
                "" if questions is None else questions[row],
                tuple(answers),
                kind="" if kinds is None else kinds[row],
            )
            for row, answers in enumerate(references)
        ]
        return {self.metric_name: score_answers(self.metric_name, list(predictions), asked).value}


class ExactMatch(_AnswerMetric):
    """SQuAD exact match with the best accepted answer; `exact_match`."""

    metric_name = "exact_match"


class TokenF1(_AnswerMetric):
    """SQuAD token F1 with the best accepted answer; `token_f1`."""

    metric_name = "token_f1"


class VqaAccuracy(_AnswerMetric):
    """Accuracy of VQAv2, OK-VQA and A-OKVQA; references are what each person said; `vqa_accuracy`."""

    metric_name = "vqa_accuracy"


class InfoSeekAccuracy(_AnswerMetric):
    """InfoSeek accuracy of one split; `kinds` are the types, ranges of numbers two strings; `infoseek_score`."""

    metric_name = "infoseek"
    extra_columns = {"kinds": TEXT}


class EncyclopedicVqaMatch(_AnswerMetric):
    """Encyclopedic-VQA by exact match, without a judge; `kinds` are the question types; `encyclopedic_match`."""

    metric_name = "encyclopedic_vqa"
    extra_columns = {"kinds": TEXT}


class Bleu4(_AnswerMetric):
    """BLEU-4 over the corpus, closest reference length, tokens of `caption_tokens`; `bleu`."""

    metric_name = "bleu_4"


class RougeL(_AnswerMetric):
    """ROUGE-L with beta 1.2, tokens of `caption_tokens`; `rouge_l`."""

    metric_name = "rouge_l"


class CiderD(_AnswerMetric):
    """CIDEr-D, 0..10, document frequencies from the references, tokens of `caption_tokens`; `cider_d`."""

    metric_name = "cider_d"


class Retrieval(evaluate.Metric):
    """Hit rate, recall, precision, MRR, mAP, nDCG at k, mean and median rank, of lists of ids, best first.

    `compute(predictions=[["a", "b"]], references=[["b"]], ks=(1, 5))`; "hit" is what most papers call recall.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation=_CITATION,
            inputs_description="predictions, references: lists of lists of ids",
            features=datasets.Features({"predictions": TEXTS, "references": TEXTS}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], ks: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        check_rows(predictions, references)
        ranked = [list(dict.fromkeys(ids)) for ids in predictions]  # an id counts where it stands first
        relevant = relevance_from_ids(ranked, [set(gold) for gold in references])
        num_gold = [len(set(gold)) for gold in references]
        found: dict[str, float] = {}
        for k in ks:
            found[f"hit@{k}"] = float(hit_at_k(relevant, k).mean())
            found[f"recall@{k}"] = float(recall_at_k(relevant, num_gold, k).mean())
            found[f"precision@{k}"] = float(precision_at_k(relevant, k).mean())
            found[f"mrr@{k}"] = float(reciprocal_rank(relevant, k).mean())
            found[f"map@{k}"] = float(average_precision(relevant, num_gold, k).mean())
            found[f"ndcg@{k}"] = float(ndcg_at_k(relevant, num_gold, k).mean())
        return {**found, "mean_rank": mean_rank(relevant), "median_rank": median_rank(relevant)}


class PseudoRecall(evaluate.Metric):
    """Whether any of the first k passages holds an accepted answer: PRRecall@k; `relevance_from_answers`.

    `compute(predictions=passages, references=answers, ks=(5,), match="substring")`, lists of lists of strings.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation=_CITATION,
            inputs_description="predictions: lists of texts of passages; references: lists of answers",
            features=datasets.Features({"predictions": TEXTS, "references": TEXTS}),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[Sequence[str]],
        ks: Sequence[int] = (5,),
        match: Literal["substring", "word", "numeric"] = "substring",
    ) -> dict[str, float]:
        check_rows(predictions, references)
        relevant = relevance_from_answers(predictions, references, match)
        found = {f"pseudo_recall@{k}": float(hit_at_k(relevant, k).mean()) for k in ks}
        return {**found, **{f"pseudo_precision@{k}": float(precision_at_k(relevant, k).mean()) for k in ks}}


METRIC_CLASSES = {
    "bleu_4": Bleu4,
    "cider_d": CiderD,
    "encyclopedic_vqa": EncyclopedicVqaMatch,
    "exact_match": ExactMatch,
    "infoseek": InfoSeekAccuracy,
    "pseudo_recall": PseudoRecall,
    "retrieval": Retrieval,
    "rouge_l": RougeL,
    "token_f1": TokenF1,
    "vqa_accuracy": VqaAccuracy,
}


def load_metric(name: str) -> evaluate.Metric:
    """The metric of this name, as `evaluate.load` would give it, with no download.

    Raises:
        InvalidInputError: There is none.

    Example:

    ```python
    >>> load_metric("retrieval").compute(predictions=[["a", "b"]], references=[["b"]], ks=(2,))["mrr@2"]
    0.5

    ```
    """
    if name not in METRIC_CLASSES:
        raise InvalidInputError(f"The metric {name!r} is not known. Choose of {', '.join(METRIC_CLASSES)}.")
    return METRIC_CLASSES[name]()
