"""Pooling: patch features to a raster of cells, token states to one mean. Knows shapes, no model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def patch_grid(features: torch.Tensor, grid: int) -> torch.Tensor:
    """Averages patch features over a square raster.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)` or `(B, T, C)`):
            A feature map, or tokens whose last square number are the patches (class and register tokens come first).
        grid (`int`): cells per side.

    Returns:
        `torch.Tensor` of shape `(B, grid * grid, C)`, row by row.

    Example:

    >>> tokens = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])  # a class token and 2 x 2 patches
    >>> patch_grid(tokens, 1).tolist(), patch_grid(tokens, 2).flatten().tolist()
    ([[[2.5]]], [1.0, 2.0, 3.0, 4.0])
    """
    if features.dim() == 3:
        side = math.isqrt(features.shape[1])
        features = features[:, -side * side :].mT.unflatten(-1, (side, side))  # (B, C, side, side)
    return F.adaptive_avg_pool2d(features, grid).flatten(2).mT  # (B, grid * grid, C)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the token states `(B, L, C)` that `mask` `(B, L)` keeps; zeros where it keeps none.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[True, True, False]])).item()
    2.0
    """
    kept = mask.to(states.dtype).unsqueeze(-1)
    return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
