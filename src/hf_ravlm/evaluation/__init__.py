"""Knows how good answers and rankings are, and how a system fares with and without evidence.

Metrics are functions and come at once. `Evaluator`, reports and question readers come when they are first used;
`hf_ravlm.evaluation.metrics` has the metrics as classes of `evaluate`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..metrics.answers import normalize_answer, normalize_encyclopedic_answer, normalize_vqa_answer
from ..metrics.benchmarks import encyclopedic_match, infoseek_final, infoseek_score, vqa_accuracy
from ..metrics.calibration import (
    accuracy_by_coverage,
    area_under_risk_coverage,
    auroc,
    expected_calibration_error,
    reliability_bins,
)
from ..metrics.calibrators import IsotonicCalibrator, TemperatureCalibrator, fit_isotonic, fit_temperature
from ..metrics.caption_tokens import caption_tokens
from ..metrics.captions import CaptionScore, bleu, cider_d, rouge_l
from ..metrics.decisions import Abstention, Threshold, abstention, best_threshold
from ..metrics.intervals import Interval, bootstrap_interval
from ..metrics.pseudo_relevance import relevance_from_answers
from ..metrics.ranking import (
    average_precision,
    first_relevant_rank,
    hit_at_k,
    mean_rank,
    median_rank,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    relevance_from_ids,
    relevance_from_scores,
)
from ..metrics.retrieval_effect import RetrievalEffect, reader_given_retrieval, retrieval_effect
from ..metrics.text_metrics import exact_match, token_f1


if TYPE_CHECKING:
    from .arms import growing_arm, model_arms
    from .evaluator import Evaluator
    from .growth import GrowthReport, measure_growth, without_answers
    from .model_evaluation import evaluate_model
    from .questions import Question, Reply, questions_from
    from .report import EvaluationReport

_LAZY = {
    "EvaluationReport": "report",
    "Evaluator": "evaluator",
    "GrowthReport": "growth",
    "Question": "questions",
    "Reply": "questions",
    "evaluate_model": "model_evaluation",
    "growing_arm": "arms",
    "measure_growth": "growth",
    "model_arms": "arms",
    "questions_from": "questions",
    "without_answers": "growth",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Abstention",
    "CaptionScore",
    "EvaluationReport",
    "Evaluator",
    "GrowthReport",
    "Interval",
    "IsotonicCalibrator",
    "Question",
    "Reply",
    "RetrievalEffect",
    "TemperatureCalibrator",
    "Threshold",
    "abstention",
    "accuracy_by_coverage",
    "area_under_risk_coverage",
    "auroc",
    "average_precision",
    "best_threshold",
    "bleu",
    "bootstrap_interval",
    "caption_tokens",
    "cider_d",
    "encyclopedic_match",
    "evaluate_model",
    "exact_match",
    "expected_calibration_error",
    "first_relevant_rank",
    "fit_isotonic",
    "fit_temperature",
    "growing_arm",
    "hit_at_k",
    "infoseek_final",
    "infoseek_score",
    "mean_rank",
    "measure_growth",
    "median_rank",
    "model_arms",
    "ndcg_at_k",
    "normalize_answer",
    "normalize_encyclopedic_answer",
    "normalize_vqa_answer",
    "precision_at_k",
    "questions_from",
    "reader_given_retrieval",
    "recall_at_k",
    "reciprocal_rank",
    "relevance_from_answers",
    "relevance_from_ids",
    "relevance_from_scores",
    "reliability_bins",
    "retrieval_effect",
    "rouge_l",
    "token_f1",
    "vqa_accuracy",
    "without_answers",
]
