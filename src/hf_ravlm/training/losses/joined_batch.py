"""One batch joined from the batches of all processes, each of any size, in an order that all agree on.

The joined batch has the queries of process 0, 1, ..., then for the passages the positives in the same order and the
hard negatives behind them, just as one process would have laid it out. With one process everything stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ...model.heads.matching import SIDE


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if world_size() > 1 else 0


@dataclass(frozen=True)
class BatchLayout:
    """How many queries and passages each process has, and their places in the joined batch.

    >>> layout = BatchLayout((2, 1), (3, 2), rank=1)  # each with one hard negative
    >>> layout.own_queries, layout.own_passages(), layout.passage_order()
    (range(2, 3), [2, 4], [0, 1, 3, 2, 4])
    """

    num_queries: tuple[int, ...]
    num_passages: tuple[int, ...]
    rank: int = 0

    @property
    def own_numbers(self) -> tuple[int, int]:
        """How many queries and passages this process has."""
        return self.num_queries[self.rank], self.num_passages[self.rank]

    @property
    def own_queries(self) -> range:
        """Places of this process's queries, which are also those of their positives."""
        start = sum(self.num_queries[: self.rank])
        return range(start, start + self.num_queries[self.rank])

    def own_passages(self) -> list[int]:
        """Places of this process's passages: its positives, then its hard negatives."""
        hard = [passages - queries for queries, passages in zip(self.num_queries, self.num_passages, strict=True)]
        start = sum(self.num_queries) + sum(hard[: self.rank])
        return [*self.own_queries, *range(start, start + hard[self.rank])]

    def passage_order(self) -> list[int]:
        """The order that makes passages of process after process those of the joined batch."""
        starts = list(accumulate(self.num_passages, initial=0))
        places = list(zip(starts, self.num_queries, starts[1:], strict=False))
        positives = [row for start, queries, _ in places for row in range(start, start + queries)]
        return positives + [row for start, queries, end in places for row in range(start + queries, end)]


def read_layout(num_queries: int, num_passages: int, device: torch.device) -> BatchLayout:
    """The layout, for which all processes tell each other how many rows they have."""
    if world_size() == 1:
        return BatchLayout((num_queries,), (num_passages,))
    own = torch.tensor([num_queries, num_passages], device=device)
    everyone = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(everyone, own)
    queries, passages = zip(*(sizes.tolist() for sizes in everyone), strict=True)
    return BatchLayout(queries, passages, process_rank())


def gather_rows(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """The rows `(n, ...)` of all processes, one process after the other; `sizes` holds the `n` of each.

    The gradient reaches this process's rows, multiplied by the number of processes: DDP then averages over the
    processes, which gives the gradient of the joined batch, *if every process computes the same loss from the gathered
    rows*. Other gradients (of the temperature) need no factor: all processes compute the same one.
    """
    return tensor if len(sizes) == 1 else _GatherRows.apply(tensor, sizes, process_rank())


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, sizes: tuple[int, ...], rank: int) -> torch.Tensor:
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        ctx.factor = len(sizes)
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:size] for rows, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient[ctx.own] * ctx.factor, None, None


def in_order(passages: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
    """Rows of passages, gathered process by process, in the order of the joined batch."""
    if len(layout.num_passages) == 1:
        return passages
    return passages[torch.tensor(layout.passage_order(), device=passages.device)]


def gather_inputs(inputs: dict[str, torch.Tensor], layout: BatchLayout) -> dict[str, torch.Tensor]:
    """The inputs of all processes in the order of the joined batch, under the names of `SIDE` and `passage_...`.

    Texts are padded to the longest. Where one process has no images, or no texts, its rows are masked.
    """
    if len(layout.num_queries) == 1:
        return inputs
    gathered = {}
    for prefix, sizes in (("", layout.num_queries), ("passage_", layout.num_passages)):
        side = {name: inputs[prefix + name] for name in SIDE if inputs.get(prefix + name) is not None}
        for name, tensor in _gather_side(side, sizes).items():
            gathered[prefix + name] = in_order(tensor, layout) if prefix else tensor
    return gathered


def _gather_side(side: dict[str, torch.Tensor], sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    # Masks may be missing where all rows have the image or the text, but other processes may lack some.
    for values, mask in (("pixel_values", "image_mask"), ("input_ids", "text_mask")):
        if values in side:
            side.setdefault(mask, torch.ones(len(side[values]), dtype=torch.bool, device=side[values].device))
    if "input_ids" in side:
        side.setdefault("attention_mask", torch.ones_like(side["input_ids"]))
    known: list[Any] = [None] * len(sizes)
    dist.all_gather_object(known, {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in side.items()})
    own, device = sizes[process_rank()], next(iter(side.values())).device
    gathered = {}
    for name in SIDE:
        shapes = [shapes[name] for shapes in known if name in shapes]
        if not shapes:
            continue
        shape = tuple(max(axis) for axis in zip(*(shape for shape, _ in shapes), strict=True))
        tensor = side.get(name)
        if tensor is None:
            tensor = torch.zeros((own, *shape), dtype=shapes[0][1], device=device)
            if name == "attention_mask":
                tensor[:, 0] = 1  # an encoder must have a token to look at, though its vector is masked
        gap = [size for axis in reversed(range(len(shape))) for size in (0, shape[axis] - tensor.shape[axis + 1])]
        rows = F.pad(tensor, gap) if any(gap) else tensor
        whole = gather_rows(rows.byte() if rows.dtype == torch.bool else rows, sizes)
        gathered[name] = whole.to(shapes[0][1])
    return gathered


@torch.no_grad()
def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Averages gradients over the processes; DDP would average only what the last of several backward passes used."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    used = used.to(trained[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    waiting = []
    for parameter, is_used in zip(trained, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= world_size()
            waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()
