"""Attention that always has something to read: a learned null key and value stand beside every source.

So an empty source (no image, no question, a masked passage) is legal and gives finite numbers and gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class NullAttend(nn.Module):
    """Multi-head attention of targets over sources, per passage, with a learned null key and value.

    Target and source each have an axis of passages, of length `K`, or 1 where all passages share them.

    >>> attend = NullAttend(width=8, heads=2)
    >>> question, passages = torch.randn(2, 1, 5, 8), torch.randn(2, 3, 7, 8)
    >>> nothing = torch.zeros(2, 3, 7, dtype=torch.bool)
    >>> read = attend(question, passages, nothing)  # everything masked: the null alone is read
    >>> read.shape, bool(torch.isfinite(read).all())
    (torch.Size([2, 3, 5, 8]), True)
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.null_key_value = nn.Parameter(torch.zeros(2 * width))
        self.output = nn.Linear(width, width)

    def forward(self, target: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Targets `(B, K or 1, T, width)` after reading `source (B, K or 1, S, width)` where `mask (B, K or 1, S)`."""
        batch, _, length, width = target.shape
        passages = torch.broadcast_shapes(target.shape[1:2], source.shape[1:2])[0]
        key_value = self.key_value(source).flatten(0, 1)
        null = self.null_key_value.to(key_value.dtype).expand(len(key_value), 1, -1)
        key, value = torch.cat([null, key_value], dim=1).chunk(2, dim=-1)  # (N, 1 + S, width), N = B * K or B
        query = self.query(target)
        if source.shape[1] == 1:  # one source for all passages: they are just more targets of it
            query = query.flatten(1, 2)
        else:
            query = query.expand(-1, passages, -1, -1).flatten(0, 1)
        keep = F.pad(mask.bool().expand(source.shape[:3]).flatten(0, 1), (1, 0), value=True)  # the null always
        read = F.scaled_dot_product_attention(
            *(split_heads(states, self.heads) for states in (query, key, value)), attn_mask=keep[:, None, None, :]
        )  # (N, heads, T or K * T, width / heads)
        return self.output(read.transpose(1, 2).reshape(batch, passages, length, width))


def feed_forward(width: int, inner: int, out: int) -> nn.Sequential:
    """`LayerNorm` and two linear layers with a GELU between them."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out))


def split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """`(N, T, heads * d)` as `(N, heads, T, d)`."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)
