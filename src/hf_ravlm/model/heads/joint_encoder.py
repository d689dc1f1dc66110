"""The joint encoder: reads a query and a passage together, which the dot product of two towers cannot.

The states of the towers are the input. The passage's tokens, and one learned state before them that stands for the
pair, read the query and the image of the passage.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_ravlm import RavlmConfig
from ..fusions.null_attention import NullAttend, feed_forward


class JointEncoder(nn.Module):
    """Layers in which a passage reads itself, then its query and its own image.

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

    def forward(
        self,
        passage_states: torch.Tensor,
        passage_mask: torch.Tensor,
        query_patches: torch.Tensor,
        query_patch_mask: torch.Tensor,
        query_states: torch.Tensor,
        query_mask: torch.Tensor,
        passage_patches: torch.Tensor,
        passage_patch_mask: torch.Tensor,
    ) -> torch.Tensor:
        """States of `n` pairs.

        Args:
            passage_states (`torch.Tensor` of shape `(n, L, width)`), passage_mask (`(n, L)`): with `L = 0` for none.
            query_patches (`(n, P, C)`), query_patch_mask (`(n, P)`): with `P = 0` for none.
            query_states (`(n, Lq, width)`), query_mask (`(n, Lq)`).
            passage_patches (`(n, P, C)`), passage_patch_mask (`(n, P)`).

        Returns:
            `torch.Tensor` of shape `(n, 1 + L, width)`; the first state of each row stands for the pair.
        """
        sources = (self.image_input(query_patches), query_states, self.image_input(passage_patches))
        context = torch.cat(
            [states + kind for states, kind in zip(sources, self.source_embeddings, strict=True)], dim=1
        )
        context = self.context_norm(context)  # (n, P + Lq + P, width)
        context_mask = torch.cat([query_patch_mask, query_mask, passage_patch_mask], dim=1).bool()
        pair = self.pair_state.to(passage_states.dtype).expand(len(passage_states), 1, -1)
        states = torch.cat([pair, passage_states], dim=1)
        mask = nn.functional.pad(passage_mask.bool(), (1, 0), value=True)
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
