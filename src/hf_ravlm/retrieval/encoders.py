"""Knows how images and texts become unit vectors: the protocol that every encoder follows, and the one for our models.

The retriever asks an encoder for vectors and for a fingerprint; the fingerprint says whether stored vectors and new
queries come from the same weights and the same preprocessing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ..errors import InvalidInputError


@runtime_checkable
class Encoder(Protocol):
    """What a retriever needs: unit vectors of queries and passages in one space, and an identity.

    Attributes:
        name: A description for messages.
        fingerprint: A SHA-256 in hexadecimal over weights and preprocessing; equal exactly if the vectors are.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def encode_queries(
        self, images: Sequence[Image.Image | None] | None, texts: Sequence[str | None] | None
    ) -> np.ndarray:
        """Returns unit vectors of shape (n, D) in float32; every row has an image, a text or both."""
        ...

    def encode_passages(self, texts: Sequence[str | None], images: Sequence[Image.Image | None]) -> np.ndarray:
        """Returns unit vectors of shape (n, D) in float32; every row has a text, an image or both."""
        ...


class RavlmEncoder:
    """Encodes with a dual encoder such as `RavlmModel` and its processor.

    The model is used in evaluation mode and without gradients, on the device where it is; its modes are restored
    afterwards.

    Args:
        model: Has `get_query_features(**inputs)` and `get_passage_features(**inputs)`, which return tensors (n, D).
        processor: Has `for_retrieval(images=..., texts=...)`, which returns the inputs, and
            `retrieval_fingerprint()`, which returns a JSON-like dictionary of everything that shapes them.
        batch_size: How many rows go through the model at once.

    Raises:
        InvalidInputError: If model or processor lack these methods, or `batch_size < 1`.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64) -> None:
        _require_methods(model, "model", ("get_query_features", "get_passage_features", "state_dict"))
        _require_methods(processor, "processor", ("for_retrieval", "retrieval_fingerprint"))
        if batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected at least 1.")
        self.model = model
        self.processor = processor
        self.batch_size = batch_size

    @property
    def name(self) -> str:
        """Class and towers of the model, for messages."""
        config = getattr(self.model, "config", None)
        parts = {
            "vision": getattr(getattr(config, "vision_config", None), "model_type", None),
            "text": getattr(getattr(config, "text_config", None), "model_type", None),
            "dim": getattr(config, "projection_dim", None),
        }
        described = [f"{key}={value}" for key, value in parts.items() if value is not None]
        return " ".join([type(self.model).__name__, *described])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all weights of the model, bit by bit with their types, and over the preprocessing.

        It is computed anew each time (about a second per gigabyte), for weights change in training. A model cast to
        another type has another fingerprint.
        """
        return fingerprint_of(self.model, self.processor.retrieval_fingerprint())

    def encode_queries(
        self, images: Sequence[Image.Image | None] | None, texts: Sequence[str | None] | None
    ) -> np.ndarray:
        """Returns unit vectors of questions, images, or both.

        Args:
            images: One per query; `None` for no images at all, or in single places.
            texts: One per query; `None` for no texts at all, or in single places.

        Returns:
            An array of shape (n, D) in float32.

        Raises:
            InvalidInputError: If both are `None`, or their lengths differ.
        """
        return self._encode(self.model.get_query_features, images, texts)

    def encode_passages(self, texts: Sequence[str | None], images: Sequence[Image.Image | None]) -> np.ndarray:
        """Returns unit vectors of passages, of shape (n, D) in float32; arguments as `encode_queries`."""
        return self._encode(self.model.get_passage_features, images, texts)

    def _encode(
        self,
        get_features: Callable[..., Any],
        images: Sequence[Image.Image | None] | None,
        texts: Sequence[str | None] | None,
    ) -> np.ndarray:
        if images is None and texts is None:
            raise InvalidInputError("There is nothing to encode. Pass images, texts, or both.")
        if images is not None and texts is not None and len(images) != len(texts):
            raise InvalidInputError(f"{len(images)} images came with {len(texts)} texts. Pass one per row, or None.")
        num_rows = len(images if images is not None else texts or ())
        if num_rows == 0:
            return np.zeros((0, 0), np.float32)
        # Rows of similar length share a batch, so that little is spent on padding.
        lengths = [len(text or "") for text in texts] if texts is not None else [0] * num_rows
        order = np.argsort(lengths, kind="stable")[::-1]
        with _inference(self.model):
            encoded = [
                self._encode_batch(get_features, _pick(images, rows), _pick(texts, rows))
                for rows in _batches(order, self.batch_size)
            ]
        vectors = np.concatenate(encoded)  # (n, D), longest text first
        restored = np.empty_like(vectors)
        restored[order] = vectors
        return restored

    def _encode_batch(self, get_features: Callable[..., Any], images: Any, texts: Any) -> np.ndarray:
        inputs = self.processor.for_retrieval(images=images, texts=texts)
        device = next(self.model.parameters()).device
        features = get_features(**{name: tensor.to(device) for name, tensor in inputs.items()})  # (n, D)
        vectors: np.ndarray = features.float().cpu().numpy()
        return vectors


def fingerprint_of(model: Any, preprocessing: dict[str, Any]) -> str:
    """Returns a SHA-256 over name, type, shape and bytes of every tensor of a model, and over the preprocessing.

    Args:
        model: A `torch.nn.Module`. Where its outputs depend on more than its weights, it may give that as a
            JSON-like dictionary by a method `retrieval_fingerprint()`.
        preprocessing: A JSON-like dictionary.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        content = hashlib.sha256(memoryview(flat.view(torch.uint8).numpy()))
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{content.hexdigest()}\n".encode())
    own = model.retrieval_fingerprint() if hasattr(model, "retrieval_fingerprint") else None
    digest.update(json.dumps([own, preprocessing], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _require_methods(thing: Any, role: str, methods: Sequence[str]) -> None:
    missing = [name for name in methods if not callable(getattr(thing, name, None))]
    if missing:
        raise InvalidInputError(
            f"The {role} is a {type(thing).__name__} without the methods {missing}. Pass the {role} of a dual "
            "encoder, such as RavlmModel with RavlmProcessor."
        )


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored, for some may be frozen in training."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(order: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    from transformers.utils.logging import tqdm

    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="Encoding") if len(starts) > 1 else starts:
        yield order[start : start + batch_size].tolist()


def _pick(items: Sequence[Any] | None, rows: list[int]) -> list[Any] | None:
    picked = None if items is None else [items[row] for row in rows]
    return None if picked is None or all(item is None for item in picked) else picked
