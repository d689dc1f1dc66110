"""Reader and retriever as one module: DDP averages gradients only of what goes through one `forward`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..model.loading import without_adapters


@dataclass
class JointOutput(ModelOutput):
    """What [`JointReader`] returns.

    Args:
        loss: The reader's own.
        scores (`(B, K)`): Cosines of query and passages, with gradient.
        passage_log_likelihood (`(B, K)`): Of the answer under each passage.
        is_right (`(B, K)`, bool): Whether greedy decoding gives the answer under each passage.
        num_tokens (`(B,)`): Of each answer.
        logit_scale: `1 / temperature` of the retriever.
    """

    loss: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    passage_log_likelihood: torch.FloatTensor | None = None
    is_right: torch.BoolTensor | None = None
    num_tokens: torch.LongTensor | None = None
    logit_scale: torch.FloatTensor | None = None


class JointReader(nn.Module):
    """A `RavlmForConditionalGeneration` with latent passages, with or without adapters, that scores them itself."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.reader = reader

    def forward(
        self,
        query: Mapping[str, torch.Tensor],
        passages: Mapping[str, torch.Tensor] | None = None,
        passage_vectors: torch.Tensor | None = None,
        retriever_learns_from_answers: bool = True,
        reader_learns: bool = True,
        **inputs: Any,
    ) -> JointOutput:
        """Scores, and the likelihood of the answers.

        Args:
            query: Inputs of `get_query_features`, `B` rows.
            passages: Inputs of `get_passage_features`, `B * K` rows, encoded with gradient; or else
            passage_vectors (`(B, K, D)`): From the index.
            retriever_learns_from_answers: Whether the gradient of `loss` reaches the scores.
            reader_learns: Whether the reader keeps a graph.
            inputs: Of the reader, with labels; their `evidence_scores` are replaced.
        """
        towers = without_adapters(self.reader).model
        queries = towers.get_query_features(**query)  # (B, D)
        if passages is not None:
            passage_vectors = towers.get_passage_features(**passages).unflatten(0, (len(queries), -1))
        scores = (queries.unsqueeze(1) * passage_vectors.to(queries.dtype)).sum(dim=-1)  # (B, K)
        inputs["evidence_scores"] = scores if retriever_learns_from_answers and reader_learns else scores.detach()
        with torch.set_grad_enabled(reader_learns and torch.is_grad_enabled()):
            outputs = self.reader(**inputs)
        is_right, num_tokens = says_answer(outputs.logits.detach(), inputs["labels"], scores.shape[1])
        return JointOutput(
            loss=outputs.loss,
            scores=scores,
            passage_log_likelihood=outputs.passage_log_likelihood,
            is_right=is_right,
            num_tokens=num_tokens,
            logit_scale=towers.get_logit_scale(),
        )


def says_answer(logits: torch.Tensor, labels: torch.Tensor, num_passages: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether greedy decoding gives the labelled answer, bool `(B, K)`, and the number of its tokens, `(B,)`.

    Args:
        logits (`torch.Tensor` of shape `(B * K, T, V)`): of the last `T` positions.
        labels (`torch.LongTensor` of shape `(B * K, L)`): -100 is ignored.
        num_passages: `K`.

    >>> logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    >>> says_answer(logits, torch.tensor([[-100, 1], [-100, 1]]), num_passages=2)
    (tensor([[ True, False]]), tensor([1]))
    """
    targets = labels[:, -logits.shape[1] :][:, 1:]
    keep = targets != -100
    likeliest = logits[:, :-1].argmax(dim=-1)
    is_right = ((likeliest == targets) | ~keep).all(dim=-1).unflatten(0, (-1, num_passages))
    return is_right, keep.sum(dim=-1)[::num_passages]
