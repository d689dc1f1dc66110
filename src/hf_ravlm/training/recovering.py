"""A pruned reader learns again with the weights that it kept; those that are gone stay zero."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from ..errors import InvalidInputError
from ..evaluation.model_evaluation import read_questions
from ..numbers_given import check_whole
from .trainers import RavlmTrainer


@dataclass(frozen=True)
class Recovery:
    """How a pruned reader is trained, as [`hf_ravlm.hub.compressing.compress`] takes it.

    Args:
        data: Questions with answers, and images if there are any, in a file, a folder or a data set: what
            `hf-ravlm evaluate` reads. Not those that it is measured by.
        epochs (`float`): Passes over them.
        learning_rate (`float`): At its highest.
        batch_size (`int`): Questions of a step.
        seed (`int`): Of their order and of what the passages are.

    Raises:
        InvalidInputError: For numbers that are no such.
    """

    data: str | os.PathLike[str]
    epochs: float = 1.0
    learning_rate: float = 5e-5
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, lowest=1)
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name}={getattr(self, name)}: expected a number above 0")

    def rows(self) -> list[dict[str, Any]]:
        """What there is to learn from.

        Raises:
            InvalidInputError: It cannot be read, or there is nothing.
        """
        rows = []
        for question in read_questions(self.data, split="train"):
            row = {"image": question.image, "question": question.question, "answers": list(question.answers)}
            rows.append({**row, "gold_ids": list(question.gold_ids), "id": question.id})
        if not rows:
            raise InvalidInputError(f"{os.fspath(self.data)}: there is no question to learn from")
        return rows

    def train(self, system: Any) -> None:
        """Trains the reader of a pipeline with the evidence that it finds; masks hold.

        Args:
            system: A [`RavlmImageToTextPipeline`], whose reader's weights are masked.
        """
        reader, rows = system.model, self.rows()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=self.epochs,
                learning_rate=self.learning_rate,
                per_device_train_batch_size=self.batch_size,
                warmup_steps=0.1,
                seed=self.seed,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                use_cpu=reader.device.type == "cpu",
            )
            parts = {"processing_class": system.processor, "retriever": system.retriever}
            RavlmTrainer(reader, arguments, train_dataset=rows, **parts).train()
        reader.eval()


__all__ = ["Recovery"]
