"""Reader and retriever as one module: DDP averages gradients only of what goes through one `forward`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from ..model.loading import without_adapters
from ..model.reader.latent_passages import answers_under_passages, columns_of_answers, marginal_log_likelihood
from ..model.reader.likelihoods import passage_log_prior


# Of one prompt per passage; what is hidden does not stand in it, and nothing else is read of them.
_BESIDE = ("labels", "evidence_scores", "evidence_mask", "evidence_image_mask", "token_passages", "prior_scale")


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
    """A `RavlmForConditionalGeneration` that reads each passage by itself, with or without adapters, and scores them.

    Args:
        reader: With latent passages, or one that sees images by itself.
        marginalization: `"sequence"` or `"token"`: what the loss of a reader that sees images by itself is.
    """

    def __init__(self, reader: nn.Module, marginalization: str = "sequence") -> None:
        super().__init__()
        self.reader, self.marginalization = reader, marginalization

    def forward(
        self,
        query: Mapping[str, torch.Tensor],
        passages: Mapping[str, torch.Tensor] | None = None,
        passage_vectors: torch.Tensor | None = None,
        parts: Sequence[Mapping[str, torch.Tensor]] | None = None,
        retriever_learns_from_answers: bool = True,
        reader_learns: bool = True,
        num_answer_tokens: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> JointOutput:
        """Scores, and the likelihood of the answers.

        Args:
            query: Inputs of `get_query_features`, `B` rows.
            passages: Inputs of `get_passage_features`, `B * K` rows, encoded with gradient; or else
            passage_vectors (`(B, K, D)`): From the index.
            parts: In the place of `inputs` those of some questions each, in order, of which one alone is in memory:
                the activations of the others are computed again in the backward pass.
            retriever_learns_from_answers: Whether the gradient of `loss` reaches the scores.
            reader_learns: Whether the reader keeps a graph.
            num_answer_tokens: What the loss is divided by; those of this batch by default.
            inputs: Of the reader, with labels; their `evidence_scores` are replaced.
        """
        towers = without_adapters(self.reader).model
        queries = towers.get_query_features(**query)  # (B, D)
        if passages is not None:
            passage_vectors = towers.get_passage_features(**passages).unflatten(0, (len(queries), -1))
        scores = (queries.unsqueeze(1) * passage_vectors.to(queries.dtype)).sum(dim=-1)  # (B, K)
        given = scores if retriever_learns_from_answers and reader_learns else scores.detach()
        whole = [inputs] if parts is None else parts
        if num_answer_tokens is None:
            num_answer_tokens = sum(
                (part["labels"][:: part["evidence_scores"].shape[1]] != -100).sum() for part in whole
            )
        keeps_graph = reader_learns and torch.is_grad_enabled()
        read, start = [], 0
        with torch.set_grad_enabled(keeps_graph):
            for part in whole:
                number, width = part["evidence_scores"].shape
                some = (part, given[start : start + number, :width], num_answer_tokens)
                again = parts is not None and keeps_graph
                read.append(checkpoint(self._read, *some, use_reentrant=False) if again else self._read(*some))
                start += number
        losses, likelihoods, is_right, num_tokens = zip(*read, strict=True)
        return JointOutput(
            loss=torch.stack(losses).sum(),
            scores=scores,
            passage_log_likelihood=_joined(likelihoods, scores.shape[1]),
            is_right=_joined(is_right, scores.shape[1]),
            num_tokens=torch.cat(num_tokens),
            logit_scale=towers.get_logit_scale(),
        )

    def _read(
        self, part: Mapping[str, torch.Tensor], scores: torch.Tensor, count: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, likelihoods `(b, K)`, whether each is right `(b, K)`, and answer tokens `(b,)` of some questions."""
        width, labels = scores.shape[1], part["labels"]
        if without_adapters(self.reader).reads_images:
            logits, loss, likelihood = self._read_alone(part, scores, count)
        else:
            outputs = self.reader(**{**part, "evidence_scores": scores}, num_items_in_batch=count * width)
            logits, loss, likelihood = outputs.logits, outputs.loss, outputs.passage_log_likelihood
        return loss, likelihood, *says_answer(logits.detach(), labels, width)

    def _read_alone(
        self, part: Mapping[str, torch.Tensor], scores: torch.Tensor, count: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As a reader over latent passages does: logits, loss and likelihoods of one that sees images by itself."""
        labels, towers = part["labels"], without_adapters(self.reader).model
        given = {name: tensor for name, tensor in part.items() if name not in _BESIDE}
        logits = self.reader(**given, logits_to_keep=columns_of_answers(labels), use_cache=False).logits
        token_log_probs, token_mask = answers_under_passages(logits, labels, scores.shape[1])
        prior = passage_log_prior(scores, part.get("evidence_mask"), towers.get_logit_scale())
        likelihood = marginal_log_likelihood(self.marginalization, token_log_probs, token_mask, prior)
        return logits, -likelihood.sum() / count, token_log_probs.sum(dim=-1)


def _joined(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Rows `(b, k)` of parts as one `(B, K)`."""
    return torch.cat([nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in rows])


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
