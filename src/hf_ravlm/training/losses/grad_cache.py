"""A large batch in the memory of a small one: the parts of GradCache (Gao et al. 2021, arXiv 2101.06983).

(1) All rows go through the towers, chunk by chunk, without a graph; (2) the loss of the vectors gives the gradient of
each; (3) each chunk goes through the towers once more, with a graph and the same random numbers, and its vectors are
pulled along their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import get_device_states, set_device_states


class RandomState:
    """The state of the random numbers now, on the CPU and the devices of some tensors, to be replayed later.

    >>> state = RandomState()
    >>> first = torch.rand(1)
    >>> with state.replayed():
    ...     second = torch.rand(1)
    >>> bool(first == second), bool(torch.rand(1) == first)
    (True, False)
    """

    def __init__(self, *tensors: torch.Tensor):
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(*tensors)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Repeats the random numbers inside, and changes nothing outside."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states)
            yield


@dataclass(frozen=True)
class Chunk:
    """The inputs of some rows, and their places in the batch of this process."""

    inputs: dict[str, torch.Tensor]
    queries: range
    passages: list[int]


def split_batch(inputs: dict[str, torch.Tensor], num_queries: int, num_passages: int, size: int) -> list[Chunk]:
    """Cuts a batch in chunks of at most `size` queries with their positives and a share of the hard negatives.

    >>> batch = {"input_ids": torch.arange(3)[:, None], "passage_input_ids": torch.arange(5)[:, None]}
    >>> [(chunk.queries, chunk.passages) for chunk in split_batch(batch, 3, 5, size=2)]
    [(range(0, 2), [0, 1, 3]), (range(2, 3), [2, 4])]
    """
    starts = range(0, num_queries, size)
    hard = [rows.tolist() for rows in torch.arange(num_queries, num_passages).tensor_split(len(starts))]
    chunks = []
    for start, further in zip(starts, hard, strict=True):
        queries = range(start, min(start + size, num_queries))
        passages = [*queries, *further]
        rows = {name: passages if name.startswith("passage_") else list(queries) for name in inputs}
        chunks.append(Chunk({name: tensor[rows[name]] for name, tensor in inputs.items()}, queries, passages))
    return chunks
