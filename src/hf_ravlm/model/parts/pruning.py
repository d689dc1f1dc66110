"""Weights of linear layers set to zero by `torch.nn.utils.prune`: the smallest of each layer, or two of every four."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from ...errors import InvalidInputError


PATTERN = "2:4"


def prunable(language_model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a language model but the last, which often shares its weights with the embeddings."""
    last = getattr(language_model, "get_output_embeddings", lambda: None)()
    for name, module in language_model.named_modules():
        if isinstance(module, nn.Linear) and module is not last:
            yield name, module


def check_amount(amount: float | str) -> None:
    """Refuses what is no amount of `prune_layers`.

    Raises:
        `InvalidInputError`: with what is expected.
    """
    if amount != PATTERN and not (isinstance(amount, float) and 0 < amount < 1):
        raise InvalidInputError(f"prune={amount!r}: expected a share above 0 and below 1, such as 0.3, or '2:4'")


def prune_layers(language_model: nn.Module, amount: float | str) -> None:
    """Masks weights; they stay masked in training, until `keep_zeros`.

    Args:
        language_model (`nn.Module`): whose linear layers are pruned, each by itself.
        amount (`float` or `"2:4"`): the share of the smallest weights of a layer, above 0 and below 1; or two of every
            four in a row, which NVIDIA's sparse kernels can use.

    Raises:
        `InvalidInputError`: for another amount, quantized weights, or layers that no four divide.

    >>> layer = nn.Sequential(nn.Linear(4, 1, bias=False))
    >>> _ = layer[0].weight.data.copy_(torch.tensor([[0.1, -3.0, 2.0, 0.5]]))
    >>> prune_layers(layer, "2:4"); keep_zeros(layer); layer[0].weight.tolist()
    [[0.0, -3.0, 2.0, 0.0]]
    """
    check_amount(amount)
    layers = list(prunable(language_model))
    if not layers:
        raise InvalidInputError("there is no linear layer to prune in the language model")
    for name, layer in layers:
        if not layer.weight.is_floating_point() or hasattr(layer.weight, "__tensor_flatten__"):
            raise InvalidInputError(f"{name} is quantized: prune first, then quantize")
        if amount != PATTERN:
            prune.l1_unstructured(layer, "weight", amount=amount)
        elif layer.in_features % 4:
            raise InvalidInputError(f"{name} has {layer.in_features} inputs, which no four divide; give a share")
        else:
            prune.custom_from_mask(layer, "weight", two_of_four(layer.weight))


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """A mask `(out, in)` that keeps the two largest of every four weights in a row."""
    fours = weight.detach().abs().unflatten(-1, (-1, 4))
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter(-1, fours.topk(2, dim=-1).indices, True)
    return kept.flatten(-2)


def keep_zeros(language_model: nn.Module) -> None:
    """Makes the masked weights zeros for good, under their usual names."""
    for _, layer in prunable(language_model):
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")


def share_of_zeros(language_model: nn.Module) -> float:
    """Of the weights of the linear layers."""
    layers = [layer.weight for _, layer in prunable(language_model)]
    total = sum(weight.numel() for weight in layers)
    return sum(int((weight == 0).sum()) for weight in layers) / max(total, 1)


def bytes_of(tensor: Any) -> int:
    """What a tensor takes in memory, also a quantized one, which is several.

    >>> bytes_of(torch.zeros(3, dtype=torch.bfloat16))
    6
    """
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(bytes_of(getattr(tensor, name)) for name in names)
    scales = getattr(getattr(tensor, "quant_state", None), "absmax", None)  # of bitsandbytes
    return int(tensor.numel() * tensor.element_size()) + (0 if scales is None else bytes_of(scales))
