"""Losses of memory pretraining, over the tokens of answers, in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def answer_logits(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(T, V)` and labels `(T,)` of all answer tokens of a batch, row by row.

    Args:
        logits (`(N, L, V)`), labels (`(N, L)`): aligned with the inputs; -100 is no answer.
    """
    targets = labels[:, 1:].to(logits.device)
    kept = targets != -100
    return logits[:, :-1][kept].float(), targets[kept]


def hard_token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None, *, focus: float
) -> torch.Tensor:
    """Cross-entropy of answer tokens, each weighed by how far the reader still is from it.

    In plain terms: what any language model guesses ("capital of") soon weighs nothing, what must be read (a name, a
    number) weighs. `L = 1/T sum_t (1 - p_t)^focus (-log p_t)`, the weight held fixed.

    Inputs: `outputs` with `logits (N, L, V)`, `labels (N, L)`; a `compute_loss_func` of the Trainer.

    Recommendations: 1 where passages are repeated word by word, whose words are mostly easy ones.

    Relations: `focus=0` is cross-entropy; the focal loss, but for the gradient of the weight.

    References: Lin et al. 2017 (arXiv 1708.02002).

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    >>> round(hard_token_loss({"logits": logits}, torch.tensor([[-100, 0]]), focus=1.0).item(), 4)  # log(2) / 2
    0.3466
    """
    logits, targets = answer_logits(outputs["logits"], labels)
    surprise = F.cross_entropy(logits, targets, reduction="none")  # (T,)
    weighed = ((1 - (-surprise.detach()).exp()) ** focus * surprise).sum()
    return weighed / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)


def next_token_distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Self-distillation: from memory the next token is what it would be from the words.

    In plain terms: the reader that sees the passages as text tells the one that sees their memory not only which
    token comes next, but also what else might. `L = 1/T sum_t KL(p_words(t) || p_memory(t))`.

    Inputs: `logits (T, V)` and `teacher_logits (T, V)` of the same answer tokens; the gradient reaches the first.

    Recommendations: beside the likelihood of the answers, with a reader that answers well from words.

    Relations: the mean over tokens, `batchmean` of torch.

    References: Cheng et al. 2024 (xRAG, arXiv 2405.13792); Rau et al. 2024 (COCOM, arXiv 2407.09252).

    >>> round(next_token_distillation_loss(torch.zeros(1, 2), torch.tensor([[9e9, 0.0]])).item(), 4)  # log(2)
    0.6931
    """
    teacher = teacher_logits.detach().float().log_softmax(dim=-1)
    total = F.kl_div(logits.float().log_softmax(dim=-1), teacher, reduction="sum", log_target=True)
    return total / (max(len(logits), 1) if num_items_in_batch is None else num_items_in_batch)
