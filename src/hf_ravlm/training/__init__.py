"""Training: the Trainer of transformers, with what retrieval-augmented models need beside it."""

from __future__ import annotations

from .arguments import RavlmPreTrainingArguments
from .collators import AnswerCollator, ClassificationCollator, RetrievalCollator, undecoded
from .lengths import with_lengths
from .pretrainer import RavlmPreTrainer
from .trainers import RavlmTrainer, freeze


__all__ = [
    "AnswerCollator",
    "ClassificationCollator",
    "RavlmPreTrainer",
    "RavlmPreTrainingArguments",
    "RavlmTrainer",
    "RetrievalCollator",
    "freeze",
    "undecoded",
    "with_lengths",
]
