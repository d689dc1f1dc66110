"""How labelled neighbours change class scores: one formula, its three numbers, and how they are chosen.

`logits = class_logits + α · Σ_k n_k^-γ · exp(-β (1 - s_k)) · onehot(label_k)`, with the cosines `s_k` of the `K`
entries nearest to an image (or to a box in it). A neighbour that is the image itself adds `α`; `β` says how fast that
falls off with distance. `n_k` is the number of entries that the label of neighbour `k` has: `γ = 0` lets every entry
count alike, as Tip-Adapter does (Zhang et al. 2022, arXiv 2207.09519), `γ = 1` every class, which lifts rare ones.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


logger = logging.getLogger(__name__)

WEIGHT, SHARPNESS = 1.0, 5.5  # α and β of Tip-Adapter before they are fitted
NO_NEIGHBOR = -100  # in the place of a label
_WEIGHTS = torch.logspace(-2, 2.5, 19).tolist()
_SHARPNESSES = torch.logspace(-0.5, 2.5, 13).tolist()
_BALANCES = (0.0, 0.5, 1.0)
_FEW = 10  # images, which many values of α and β satisfy, extreme ones among them


def neighbor_votes(
    neighbor_scores: torch.Tensor,
    neighbor_labels: torch.Tensor,
    num_labels: int,
    sharpness: torch.Tensor | float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """What neighbours say of each class: `Σ_k w_k · exp(-β (1 - s_k)) · onehot(label_k)`.

    Args:
        neighbor_scores (`torch.Tensor` of shape `(..., K)`): cosines, from -1 to 1.
        neighbor_labels (`torch.LongTensor` of shape `(..., K)`): classes from 0 on; -100 where there is no neighbour.
        num_labels (`int`): `C`.
        sharpness (`float`): `β`, at least 0.
        weights (`torch.Tensor` of shape `(..., K)`, *optional*): `w_k`; 1 by default.

    Returns:
        `torch.FloatTensor` of shape `(..., C)`.

    >>> scores, labels = torch.tensor([[1.0, 0.5, 0.5]]), torch.tensor([[0, 2, -100]])
    >>> neighbor_votes(scores, labels, 3, sharpness=2.0)  # 1 and exp(-1)
    tensor([[1.0000, 0.0000, 0.3679]])
    """
    there = neighbor_labels >= 0
    scores = neighbor_scores.float().masked_fill(~there, 0)  # before anything else: what stands there may be NaN
    votes = torch.exp(-sharpness * (1 - scores))
    votes = votes if weights is None else votes * weights
    classes = votes.new_zeros(*votes.shape[:-1], num_labels)
    return classes.scatter_add(-1, neighbor_labels.clamp(min=0), votes.masked_fill(~there, 0))


def join_neighbors(
    class_logits: torch.Tensor,
    neighbor_scores: torch.Tensor,
    neighbor_labels: torch.Tensor,
    weight: torch.Tensor | float = WEIGHT,
    sharpness: torch.Tensor | float = SHARPNESS,
    neighbor_counts: torch.Tensor | None = None,
    balance: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Class scores with what neighbours say: the formula at the head of this file.

    Args:
        class_logits (`torch.Tensor` of shape `(..., C)`): of a head that knows no neighbours.
        neighbor_scores, neighbor_labels (`(..., K)`): as of `neighbor_votes`.
        weight, sharpness, balance (`float`): `α`, `β` and `γ`.
        neighbor_counts (`torch.Tensor` of shape `(..., K)`, *optional*): entries that the label of each neighbour has.

    >>> logits, scores, labels = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), torch.tensor([[0, 1]])
    >>> join_neighbors(logits, scores, labels, weight=8.0, neighbor_counts=torch.tensor([[4, 1]]), balance=0.5)
    tensor([[4., 8.]])
    """
    weights = None if neighbor_counts is None else neighbor_counts.clamp(min=1).float() ** -balance
    votes = neighbor_votes(neighbor_scores, neighbor_labels, class_logits.shape[-1], sharpness, weights)
    return class_logits.float() + weight * votes


class JoinFit(NamedTuple):
    """`α`, `β` and `γ` that were best on a validation split, and the accuracy there."""

    weight: float
    sharpness: float
    balance: float
    accuracy: float


def fit_neighbors(
    class_logits: torch.Tensor,
    neighbor_scores: torch.Tensor,
    neighbor_labels: torch.Tensor,
    labels: torch.Tensor,
    neighbor_counts: torch.Tensor | None = None,
) -> JoinFit:
    """Looks for `α`, `β` and `γ` on images that are no entries of the index themselves.

    The highest accuracy counts, each class alike; among equals the lowest cross-entropy.

    Args:
        class_logits (`(n, C)`), neighbor_scores, neighbor_labels, neighbor_counts (`(n, K)`): as of `join_neighbors`.
        labels (`torch.LongTensor` of shape `(n,)`): the right classes.

    Example: the head takes the second image for the first class, its neighbour knows better.

    >>> logits, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    >>> found = fit_neighbors(logits, torch.ones(2, 1), labels[:, None], labels)
    >>> found.weight > 2, found.accuracy
    (True, 1.0)
    """
    if len(labels) == 0:
        raise ValueError("no labelled images to fit on: expected at least one")
    if len(labels) < _FEW:
        logger.warning("How much neighbours count was chosen by %d images: give a few of each class.", len(labels))
    weights = 1 / torch.bincount(labels, minlength=class_logits.shape[-1])[labels]  # of images: each class alike
    best, best_key = JoinFit(WEIGHT, SHARPNESS, 0.0, -1.0), (-1.0, 0.0)
    for balance in _BALANCES if neighbor_counts is not None else (0.0,):
        for sharpness in _SHARPNESSES:
            votes = join_neighbors(
                torch.zeros_like(class_logits), *(neighbor_scores, neighbor_labels, 1.0, sharpness),
                *(neighbor_counts, balance),
            )  # fmt: skip
            for weight in _WEIGHTS:
                logits = class_logits.float() + weight * votes
                right = (logits.argmax(dim=-1) == labels).float()
                accuracy = float((right * weights).sum() / weights.sum())
                key = (round(accuracy, 6), -float(F.cross_entropy(logits, labels)))
                if key > best_key:
                    best, best_key = JoinFit(weight, sharpness, balance, accuracy), key
    return best


class NeighborJoin(nn.Module):
    """`join_neighbors` with its numbers: `α` and `β` are learned or fitted, `γ` is fitted or set."""

    def __init__(self):
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(()))
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.register_buffer("balance", torch.zeros(()))

    def forward(
        self,
        class_logits: torch.Tensor,
        neighbor_scores: torch.Tensor,
        neighbor_labels: torch.Tensor,
        neighbor_counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `join_neighbors`."""
        numbers = (self.log_weight.float().exp(), self.log_sharpness.float().exp())
        return join_neighbors(
            class_logits, neighbor_scores, neighbor_labels, *numbers, neighbor_counts, self.balance.float()
        )

    @torch.no_grad()
    def set(self, weight: float, sharpness: float, balance: float = 0.0) -> None:
        """Sets `α`, `β` (above 0) and `γ` (from 0 to 1).

        Raises:
            `ValueError`: for a number outside of its range.
        """
        if not (weight > 0 and sharpness > 0 and 0 <= balance <= 1):
            raise ValueError(
                f"weight={weight}, sharpness={sharpness}, balance={balance}: expected numbers above 0, and a balance "
                "from 0 (every entry counts alike) to 1 (every class)"
            )
        self.log_weight.fill_(weight).log_()
        self.log_sharpness.fill_(sharpness).log_()
        self.balance.fill_(balance)

    def fit(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> JoinFit:
        """Sets what `fit_neighbors` finds."""
        found = fit_neighbors(*args, **kwargs)
        self.set(found.weight, found.sharpness, found.balance)
        return found


def init_neighbor_join(module: nn.Module) -> None:
    """Initialises [`NeighborJoin`]; loaded numbers stay."""
    if isinstance(module, NeighborJoin):
        init.copy_(module.log_weight, torch.tensor(WEIGHT).log())
        init.copy_(module.log_sharpness, torch.tensor(SHARPNESS).log())
        init.zeros_(module.balance)
