"""Training: the Trainer of transformers, with what retrieval-augmented models need beside it."""

from __future__ import annotations

from .trainers import RavlmTrainer, freeze


__all__ = ["RavlmTrainer", "freeze"]
