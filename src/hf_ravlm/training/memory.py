"""Memory pretraining: a fusion with weights learns to keep what passages say before, or while, it answers questions.

Questions alone teach it slowly: one answer of a few tokens tells little about a whole passage. So a share of the rows
asks for a passage itself, to be repeated from its memory (as in ICAE, xRAG, COCOM), and the reader that sees the words
of the same passages, which is the same model, tells what the next token would be.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..errors import InvalidInputError
from ..model.processing_ravlm import RavlmProcessor
from ..model.prompts.evidence import EvidenceItem, read_evidence
from .batches.evidence_mixing import Share, check_share, share_at
from .batches.rows import TrainingRow
from .losses.memory import answer_logits, next_token_distillation_loss


REPEAT = "Repeat the passage."
MAX_REPEATED = 256  # characters of a passage
IN_WORDS = "in_words"  # in a batch: the same questions, with passages in words
ASKED = "asked"  # in a batch: the rows that are questions, bool (B,)


@dataclass(frozen=True)
class MemoryTraining:
    """How a memory is trained: mixed, by a share of rows; or staged, by a run with `reconstruction=1` and one without.

    Attributes:
        reconstruction: How often a row asks for one of its passages, chosen at random, to be repeated from memory, in
            the place of its question; from 0 to 1, or a pair that runs linearly from start to end of the training.
        distillation: Weight of the divergence from the reader that sees the words of the passages, the same model as
            it is now; beside the loss of the answers.
        focus: Weighs tokens by how hard they still are, see `hard_token_loss`; 0 weighs all alike.

    Raises:
        InvalidInputError: If a value is out of its range.

    >>> MemoryTraining(reconstruction=(1.0, 0.0)).reconstruction
    (1.0, 0.0)
    """

    reconstruction: Share = 0.5
    distillation: float = 0.0
    focus: float = 0.0

    def __post_init__(self) -> None:
        check_share("reconstruction", self.reconstruction)
        for name in ("distillation", "focus"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 <= value < float("inf")):
                raise InvalidInputError(f"{name}={value!r}: expected a number from 0 on.")

    def repeated(
        self,
        rows: Sequence[TrainingRow],
        evidence: Sequence[Sequence[Any]],
        progress: float,
        seed: Sequence[int],
    ) -> tuple[list[TrainingRow], list[list[Any]], list[bool]]:
        """Rows and their evidence, of which some now ask for a passage; and which are still the questions they were.

        Args:
            progress: From 0 at the start of the training to 1 at its end.
            seed: Of the draws, with the number of each row.
        """
        share, found = share_at(self.reconstruction, progress), []
        for at, (row, given) in enumerate(zip(rows, evidence, strict=True)):
            rng = np.random.default_rng([*seed, at if row.number is None else row.number])
            passages = [passage for passage in read_evidence([given], 1)[0] if passage.text.strip()]
            if rng.random() >= share or not passages:
                found.append((row, list(given), True))
                continue
            words = beginning(passages[int(rng.integers(len(passages)))].text)
            found.append((replace(row, question=REPEAT, answers=(words,)), [EvidenceItem(words)], False))
        asked = [list(part) for part in zip(*found, strict=True)]
        return asked[0], asked[1], asked[2]


def beginning(text: str) -> str:
    """The first words of a passage, of at most `MAX_REPEATED` characters."""
    text = text.strip()
    if len(text) <= MAX_REPEATED:
        return text
    return text[:MAX_REPEATED].rsplit(maxsplit=1)[0]


def word_processor(processor: RavlmProcessor) -> RavlmProcessor:
    """The processor that gives the same reader the words of passages instead of their memory."""
    words = copy.copy(processor)
    words.fusion = "in_context"
    return words


def distillation_loss(
    model: torch.nn.Module,
    logits: torch.Tensor,
    labels: torch.Tensor,
    asked: torch.Tensor,
    in_words: Mapping[str, Any],
    num_items_in_batch: torch.Tensor | int | None,
) -> torch.Tensor:
    """`next_token_distillation_loss` of the questions of a batch; 0 where it has none.

    Args:
        model: The reader, which reads `in_words` without gradients.
        logits (`(N, L, V)`), labels (`(N, L)`): of the batch, answers from memory.
        asked (`(N,)`): the rows that are in `in_words`, in the same order.
    """
    memory, _ = answer_logits(logits, labels.masked_fill(~asked.to(labels.device).unsqueeze(1), -100))
    if not len(memory):
        return logits.sum() * 0
    with torch.no_grad():
        words = {name: value for name, value in in_words.items() if name != "labels"}
        teacher, _ = answer_logits(model(**words).logits, in_words["labels"])
    return next_token_distillation_loss(memory, teacher, num_items_in_batch)
