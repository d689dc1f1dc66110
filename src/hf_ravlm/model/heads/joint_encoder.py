"""The joint encoder: reads the states of a query and a passage together, as no dot product of two towers can."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_ravlm import RavlmConfig
from ..fusions.null_attention import NullAttend, feed_forward


class SideStates(NamedTuple):
    """What the towers make of `n` queries or passages; no tokens or no patches is a width of 0."""

    embeds: torch.Tensor  # (n, D), unit length
    states: torch.Tensor  # (n, L, C), of the text
    mask: torch.Tensor  # (n, L)
    patches: torch.Tensor  # (n, P, Cv), of the image
    patch_mask: torch.Tensor  # (n, P)

    def rows(self, index: torch.Tensor) -> SideStates:
        """The rows that `index` names, one per pair."""
        return SideStates(*(tensor[index] for tensor in self))

    def joined(self, other: SideStates) -> SideStates:
        """These rows, then those of `other`."""
        return SideStates(*map(join_padded, self, other))


class JointEncoder(nn.Module):
    """Layers in which a passage's tokens, and one learned state before them for the pair, read query and images.

    `config.fusion_layers` layers with `config.fusion_heads` heads, at the width of the text encoder. A null key beside
    every source makes queries without an image and passages without a text legal.
    """

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.image_input = nn.Linear(config.vision_dim, width)
        self.source_embeddings = nn.Parameter(torch.zeros(3, width))  # query image, query text, passage image
        self.pair_state = nn.Parameter(torch.zeros(width))
        self.context_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(JointLayer(width, config.fusion_heads) for _ in range(config.fusion_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: SideStates, passages: SideStates) -> torch.Tensor:
        """States `(n, 1 + L, width)` of `n` pairs, of which the first of each row stands for the pair."""
        sources = (self.image_input(queries.patches), queries.states, self.image_input(passages.patches))
        context = torch.cat(
            [states + kind for states, kind in zip(sources, self.source_embeddings, strict=True)], dim=1
        )
        context = self.context_norm(context)  # (n, P + Lq + P, width)
        context_mask = torch.cat([queries.patch_mask, queries.mask, passages.patch_mask], dim=1).bool()
        pair = self.pair_state.to(passages.states.dtype).expand(len(passages.states), 1, -1)
        states = torch.cat([pair, passages.states], dim=1)
        mask = F.pad(passages.mask.bool(), (1, 0), value=True)
        for layer in self.layers:
            states = layer(states, mask, context, context_mask)
        return self.norm(states)


class JointLayer(GradientCheckpointingLayer):
    """States read themselves, then the context, then pass an MLP; each on top of what they were."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.own_norm = nn.LayerNorm(width)
        self.read_own = NullAttend(width, heads)
        self.context_query_norm = nn.LayerNorm(width)
        self.read_context = NullAttend(width, heads)
        self.feed_forward = feed_forward(width, 4 * width, width)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, context: torch.Tensor, context_mask: torch.Tensor
    ) -> torch.Tensor:
        """`states (n, T, width)` where `mask (n, T)` read themselves and `context (n, S, width)`."""
        normed = self.own_norm(states)
        states = states + read(self.read_own, normed, normed, mask)
        states = states + read(self.read_context, self.context_query_norm(states), context, context_mask)
        return states + self.feed_forward(states)


def read(attend: NullAttend, target: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`attend` for rows without an axis of passages: `(n, T, width)` reads `(n, S, width)` where `mask (n, S)`."""
    return attend(target.unsqueeze(1), source.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)


def init_joint_weights(module: nn.Module, std: float) -> None:
    """Initialises the parameters that [`JointEncoder`] itself holds; loaded ones stay."""
    if isinstance(module, JointEncoder):
        init.normal_(module.source_embeddings, std=std)
        init.normal_(module.pair_state, std=std)


def join_padded(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Rows of both; from the second axis on the shorter is padded with zeros.

    >>> join_padded(torch.ones(1, 1, dtype=torch.int), torch.ones(1, 2, dtype=torch.int)).tolist()
    [[1, 0], [1, 1]]
    """

    def widen(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        gap = max(other.shape[1] - tensor.shape[1], 0)
        return F.pad(tensor, (*(0, 0) * (tensor.dim() - 2), 0, gap)) if gap else tensor

    return torch.cat([widen(first, second), widen(second, first)])
