"""How good answers and rankings are, and how a system fares with and without evidence.

The metrics of `hf_ravlm.metrics` come at once; `Evaluator`, reports and question readers when they are first used.
`evaluate.load(METRIC_SCRIPT, "vqa_accuracy")` gives a metric as a module of `evaluate`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import metrics
from ..metrics import *  # noqa: F403


if TYPE_CHECKING:
    from .arms import growing_arm, model_arms
    from .classifier_evaluation import evaluate_classifier
    from .detector_evaluation import evaluate_detector
    from .evaluator import Evaluator
    from .growth import measure_growth, without_answers
    from .model_evaluation import evaluate_model
    from .questions import Question, Reply, questions_from
    from .report import EvaluationReport, GrowthReport

METRIC_SCRIPT = str(Path(__file__).with_name("loadable_metrics.py"))
_LAZY = {
    "arms": "growing_arm model_arms",
    "classifier_evaluation": "evaluate_classifier",
    "detector_evaluation": "evaluate_detector",
    "evaluator": "Evaluator",
    "growth": "measure_growth without_answers",
    "model_evaluation": "evaluate_model",
    "questions": "Question Reply questions_from",
    "report": "EvaluationReport GrowthReport",
}
_FILE_OF = {name: file for file, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _FILE_OF:
        return getattr(import_module(f".{_FILE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "METRIC_SCRIPT",
    "EvaluationReport",
    "Evaluator",
    "GrowthReport",
    "Question",
    "Reply",
    "evaluate_classifier",
    "evaluate_detector",
    "evaluate_model",
    "growing_arm",
    "measure_growth",
    "model_arms",
    "questions_from",
    "without_answers",
    *metrics.__all__,
]
