"""Training: the Trainer of transformers, with what retrieval-augmented models need beside it."""

from __future__ import annotations

from ..retrieval.sources.image_files import undecoded
from .arguments import RavlmPreTrainingArguments
from .batches.classification import ClassificationCollator, ClosedAnswerCollator, RowsWithNeighbors
from .batches.collators import AnswerCollator, RetrievalCollator
from .batches.detection import DetectionCollator
from .batches.evidence_mixing import EvidenceMix
from .callbacks import MineNegativesCallback
from .joint_trainer import JointSettings, RavlmJointTrainer
from .memory import MemoryTraining
from .negatives.hard_negatives import HardNegatives, NegativeRules, mine_hard_negatives
from .own_questions import FittedPolicy, fit_policy
from .policy_fitting import JudgedQuestion, counterfactual_labels, fit_answer_policy, fit_decision_head
from .pretrainer import RavlmPreTrainer
from .trainers import RavlmTrainer, freeze


__all__ = [
    "AnswerCollator",
    "ClassificationCollator",
    "ClosedAnswerCollator",
    "DetectionCollator",
    "EvidenceMix",
    "FittedPolicy",
    "HardNegatives",
    "JointSettings",
    "JudgedQuestion",
    "MemoryTraining",
    "MineNegativesCallback",
    "NegativeRules",
    "RavlmJointTrainer",
    "RavlmPreTrainer",
    "RavlmPreTrainingArguments",
    "RavlmTrainer",
    "RetrievalCollator",
    "RowsWithNeighbors",
    "counterfactual_labels",
    "fit_answer_policy",
    "fit_decision_head",
    "fit_policy",
    "freeze",
    "mine_hard_negatives",
    "undecoded",
]
