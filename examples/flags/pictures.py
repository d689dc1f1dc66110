"""Knows the world's pictures as tensors, prepared exactly as the processor prepares what a user brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flags.world import World
from hf_ravlm import RavlmProcessor


def picture_tensor(processor: RavlmProcessor, world: World, keys: Sequence[tuple[str, str]]) -> torch.Tensor:
    """The pictures (entity, view), in the order of `keys`: `(N, 3, height, width)`."""
    return processor.for_retrieval(images=[world.images[key] for key in keys])["pixel_values"]
