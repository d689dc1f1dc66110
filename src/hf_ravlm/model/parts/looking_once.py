"""Each image is prepared and looked at once, however often one answer needs it.

A reader that searches with its own towers needs an image to search with, to read, and to attribute its answer. What
was made of it is kept while [`looking_once`] is open: in its thread alone, of networks in evaluation mode, and without
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput


# What was made of an item in some way, by both; the item is kept along, so that its `id` remains its own.
_KEPT: ContextVar[dict[Hashable, tuple[Any, Any]] | None] = ContextVar("kept", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Opens the time in which images are kept; within another such time it changes nothing.

    >>> make = lambda words: print("made of", words) or torch.tensor([[len(word)] for word in words])
    >>> kite, wren, owl = "kite", "wren", "owl"
    >>> with looking_once():
    ...     for words in ([kite, wren], [owl, kite]):
    ...         print(rows_once("length", words, make).tolist())
    made of ['kite', 'wren']
    [[4], [4]]
    made of ['owl']
    [[3], [4]]
    """
    kept = _KEPT.get()
    token = _KEPT.set({} if kept is None else kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def once(way: Hashable, item: Any, make: Callable[[Any], Any]) -> Any:
    """`make(item)`, or what it gave before of the same object in the same way."""
    kept = _KEPT.get()
    if kept is None:
        return make(item)
    place = (way, id(item))
    if place not in kept:
        kept[place] = item, make(item)
    return kept[place][1]


def rows_once(
    way: Hashable,
    items: Sequence[Any],
    make: Callable[[list[Any]], torch.Tensor],
    key: Callable[[Any], Hashable] = id,
) -> torch.Tensor:
    """`make(items)`, a row for each; of items with the same `key`, the row that was made before in the same way."""
    kept = _KEPT.get()
    if kept is None:
        return make(list(items))
    places = [(way, key(item)) for item in items]
    new = {place: item for place, item in zip(places, items, strict=True) if place not in kept}
    if new:
        kept.update(zip(new, zip(new.values(), make(list(new.values())), strict=True), strict=True))
    return torch.stack([kept[place][1] for place in places])


def look(tower: nn.Module, pixel_values: torch.Tensor, **wanted: Any) -> Any:
    """What a vision tower returns for images `(B, 3, height, width)`; of what it saw before, the states alone."""
    if wanted or _kept_of(tower) is None:
        return tower(pixel_values, **wanted)
    states = rows_once(id(tower), list(pixel_values), lambda rows: tower(torch.stack(rows)).last_hidden_state, _pixels)
    return BaseModelOutput(last_hidden_state=states)


def keep_look(model: nn.Module, pixel_values: torch.Tensor, states: torch.Tensor) -> None:
    """Keeps what the vision tower of a dual encoder made of images inside of it, for [`look`]."""
    tower = getattr(model, "vision_tower", None)  # not all have one that can be run alone
    kept = None if tower is None else _kept_of(tower)
    if kept is not None:
        kept |= {(id(tower), _pixels(row)): (row, seen) for row, seen in zip(pixel_values, states, strict=True)}


def _kept_of(tower: nn.Module) -> dict[Hashable, tuple[Any, Any]] | None:
    """Where the looks of a tower are kept; `None` if each of them counts for itself."""
    plain = torch.compiler.is_compiling() or torch.is_grad_enabled() or tower.training
    return None if plain else _KEPT.get()


def _pixels(image: torch.Tensor) -> Hashable:
    """What tells images `(3, height, width)` apart: their pixels, bit by bit."""
    return str(image.dtype), image.shape, image.contiguous().view(torch.uint8).cpu().numpy().tobytes()
