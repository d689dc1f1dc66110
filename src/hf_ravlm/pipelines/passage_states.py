"""Knows the states that a text encoder gives to every token of every passage, for models that read states, not words.

A reader with cross-attention runs its text encoder over the passages of every question anew; stored states spare that.
They cost disk: 2 bytes per token and channel, 77 KB for 100 tokens of 384 channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseMismatchError, UnsafeInputError
from .ragged_array import RaggedArray, RaggedPart, write_ragged


if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ..retrieval.knowledge_base import KnowledgeBase
    from ..retrieval.passage import Passage


EncodeStates = Callable[["list[str | None]", "list[Image.Image | None]"], "Sequence[torch.Tensor]"]

# Batches are sorted by length among this many, which bounds what waits in memory: 80 MB at 77 KB per passage.
_BATCHES_PER_WINDOW = 16


class PassageStates:
    """Token states of all passages in bfloat16, by their position in the knowledge base.

    Args:
        states: The states of each passage, shape (T, C) in uint16: the bits of bfloat16, which numpy lacks.
        fingerprint: Identifies the encoder that made them.

    Example, with an encoder that gives every letter one number:

    ```python
    >>> import torch
    >>> from hf_ravlm.retrieval import KnowledgeBase
    >>> from hf_ravlm.pipelines.passage_states import PassageStates
    >>> birds = KnowledgeBase.from_dicts([{"id": 1, "text": "auk"}, {"id": 2, "text": "emu"}])
    >>> def encode_states(texts, images):
    ...     return [torch.tensor([[float(ord(letter) - ord("a"))] for letter in text]) for text in texts]
    >>> states, mask = PassageStates.build(birds, encode_states, fingerprint="letters").gather([[1]])
    >>> states.dtype, states[0, 0, :, 0].tolist(), mask.shape
    (torch.bfloat16, [4.0, 12.0, 20.0], torch.Size([1, 1, 3]))

    ```
    """

    def __init__(self, states: RaggedArray, fingerprint: str) -> None:
        self.states = states
        self.fingerprint = fingerprint

    @classmethod
    def build(
        cls,
        knowledge_base: KnowledgeBase,
        encode_states: EncodeStates,
        fingerprint: str,
        *,
        batch_size: int = 64,
        path: str | os.PathLike[str] | None = None,
        earlier: PassageStates | None = None,
    ) -> PassageStates:
        """Encodes all passages, texts of similar length together.

        Args:
            knowledge_base: The passages.
            encode_states: Maps texts and images, `None` where a passage has none, to a tensor of shape (L, C) per
                passage, of its own length L and without padding.
            fingerprint: Identifies the encoder; asked for when the states are used.
            batch_size: How many passages are encoded at once.
            path: A file to stream the states to, which is then mapped into memory; `None` keeps them in memory.
            earlier: The states of the first passages, from before the knowledge base grew; they are copied, and only
                the others are encoded.

        Raises:
            KnowledgeBaseMismatchError: If another encoder made the earlier states.
            InvalidInputError: If `encode_states` returns another number of passages, or tensors of another shape.
            UnsafeInputError: If a state is NaN or infinite, or an image cannot be used.
            OSError: If the disk refuses.
        """
        if batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected at least 1.")
        if earlier is not None:
            earlier.check_fingerprint(fingerprint)
            if len(earlier) > len(knowledge_base):
                raise InvalidInputError(
                    f"Earlier states of {len(earlier)} passages came with {len(knowledge_base)} passages. Pass those "
                    "of the first passages, before others were added."
                )
        parts = _encoded(knowledge_base, encode_states, batch_size, earlier)
        if path is None:
            return cls(RaggedArray.from_parts(parts, np.uint16), fingerprint)
        write_ragged(path, parts, len(knowledge_base), _description(fingerprint), np.uint16)
        return cls.open(path, fingerprint)

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: str) -> PassageStates:
        """Maps stored states into memory.

        Args:
            path: A file written by `write` or `build`. It must not change while it is in use.
            fingerprint: That of the encoder that the model uses now.

        Raises:
            FileNotFoundError: If there is no file.
            KnowledgeBaseCorruptError: If it is damaged or holds something else.
            KnowledgeBaseMismatchError: If another encoder made the states.
        """
        states, description = RaggedArray.open(path)
        if description.get("kind") != "states" or states.values.dtype != np.uint16 or states.values.ndim > 2:
            raise KnowledgeBaseCorruptError(
                f"{os.fspath(path)}: expected states of passages, but the file holds {description.get('kind')!r}."
            )
        opened = cls(states, str(description.get("fingerprint")))
        opened.check_fingerprint(fingerprint)
        return opened

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"PassageStates({len(self)} passages, states of shape {self.states.values.shape})"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Stores the states as one safetensors file, where they have the type bfloat16."""
        write_ragged(path, [self.states.part()], len(self), _description(self.fingerprint))

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises `KnowledgeBaseMismatchError` if an encoder is not the one that made the states."""
        if fingerprint != self.fingerprint:
            raise KnowledgeBaseMismatchError(
                f"The states of the passages were made by another encoder (fingerprint {self.fingerprint[:12]}) than "
                f"the one in use (fingerprint {fingerprint[:12]}). Build them again: "
                "`PassageStates.build(knowledge_base, encode_states, fingerprint)`."
            )

    def gather(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the states of passages, padded at the right with zeros to the longest of them.

        Args:
            rows: Positions in the knowledge base, of shape (n, k); -1 stands for no passage.

        Returns:
            States of shape (n, k, L, C) in bfloat16, and a mask of shape (n, k, L) in bool, true at tokens.

        Raises:
            InvalidInputError: If a row is below -1 or beyond the last passage.
        """
        import torch

        states, mask = self.states.gather(rows)
        return torch.from_numpy(states).view(torch.bfloat16), torch.from_numpy(mask)


def _encoded(
    knowledge_base: KnowledgeBase, encode_states: EncodeStates, batch_size: int, earlier: PassageStates | None
) -> Iterator[RaggedPart]:
    """Passages in order, encoded window by window, from the longest text of a window to the shortest."""
    from transformers.utils.logging import tqdm

    if earlier is not None:
        yield earlier.states.part()
    text_lengths = np.asarray(knowledge_base.text_lengths())
    starts = range(0 if earlier is None else len(earlier), len(knowledge_base), batch_size * _BATCHES_PER_WINDOW)
    for start in tqdm(starts, desc="Encoding passages") if len(starts) > 1 else starts:
        window = text_lengths[start : start + starts.step]
        order = start + np.argsort(window, kind="stable")[::-1]
        states: dict[int, np.ndarray] = {}
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size].tolist()
            states.update(zip(rows, _encode_batch(knowledge_base.passages(rows), encode_states), strict=True))
        in_order = [states[row] for row in range(start, start + len(order))]
        widths = {rows.shape[1] for rows in in_order}
        if len(widths) > 1:
            raise InvalidInputError(f"`encode_states` returned states of the widths {sorted(widths)}. Expected one.")
        yield RaggedPart(np.concatenate(in_order), np.array([len(rows) for rows in in_order], np.int64))


def _encode_batch(passages: list[Passage], encode_states: EncodeStates) -> list[np.ndarray]:
    encoded = encode_states([passage.text for passage in passages], [passage.image for passage in passages])
    if len(encoded) != len(passages):
        raise InvalidInputError(f"`encode_states` returned {len(encoded)} tensors for {len(passages)} passages.")
    return [_bits(states, passage.id) for states, passage in zip(encoded, passages, strict=True)]


def _bits(states: torch.Tensor, passage_id: str) -> np.ndarray:
    import torch

    if states.ndim != 2 or not states.is_floating_point():
        raise InvalidInputError(
            f"`encode_states` returned a tensor of shape {tuple(states.shape)} and type {states.dtype} for passage "
            f"{passage_id!r}. Expected floating-point states of shape (tokens, channels)."
        )
    rounded = states.detach().to("cpu", torch.bfloat16)
    if not rounded.isfinite().all():
        raise UnsafeInputError(f"The states of passage {passage_id!r} are NaN or infinite. Check the encoder.")
    bits: np.ndarray = rounded.contiguous().view(torch.uint16).numpy()
    return bits


def _description(fingerprint: str) -> dict[str, Any]:
    return {"kind": "states", "fingerprint": fingerprint}
