"""Metrics as pure functions of arrays and texts: answers, rankings, captions, calibration, decisions, intervals."""

from __future__ import annotations

from .answers import (
    NO_ANSWERS,
    exact_match,
    is_no_answer,
    normalize_answer,
    normalize_encyclopedic_answer,
    normalize_vqa_answer,
    token_f1,
)
from .benchmarks import anls, aokvqa_accuracy, encyclopedic_match, infoseek_final, infoseek_score, vqa_accuracy
from .calibration import (
    IsotonicCalibrator,
    TemperatureCalibrator,
    accuracy_by_coverage,
    area_under_risk_coverage,
    auroc,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
    reliability_bins,
)
from .caption_tokens import caption_tokens
from .captions import CaptionScore, bleu, cider_d, rouge_l
from .classification import macro_recall, top_k_accuracy
from .decisions import Abstention, Threshold, abstention, best_threshold, withholding_threshold
from .intervals import Interval, bootstrap_interval
from .multilingual import normalize_unicode_answer, unicode_tokens
from .pseudo_relevance import relevance_from_answers
from .ranking import (
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
from .retrieval_effect import RetrievalEffect, reader_given_retrieval, retrieval_effect


__all__ = [
    "NO_ANSWERS",
    "Abstention",
    "CaptionScore",
    "Interval",
    "IsotonicCalibrator",
    "RetrievalEffect",
    "TemperatureCalibrator",
    "Threshold",
    "abstention",
    "accuracy_by_coverage",
    "anls",
    "aokvqa_accuracy",
    "area_under_risk_coverage",
    "auroc",
    "average_precision",
    "best_threshold",
    "bleu",
    "bootstrap_interval",
    "caption_tokens",
    "cider_d",
    "encyclopedic_match",
    "exact_match",
    "expected_calibration_error",
    "first_relevant_rank",
    "fit_isotonic",
    "fit_temperature",
    "hit_at_k",
    "infoseek_final",
    "infoseek_score",
    "is_no_answer",
    "macro_recall",
    "mean_rank",
    "median_rank",
    "ndcg_at_k",
    "normalize_answer",
    "normalize_encyclopedic_answer",
    "normalize_unicode_answer",
    "normalize_vqa_answer",
    "precision_at_k",
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
    "top_k_accuracy",
    "unicode_tokens",
    "vqa_accuracy",
    "withholding_threshold",
]
