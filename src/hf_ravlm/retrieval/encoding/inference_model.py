"""Knows how an encoder runs a model: without gradients, in evaluation mode, without padding, as it is or as a copy.

An encoder that follows training uses the live model. One with a number type of its own keeps a copy, made when the
encoder was: after more training, a new encoder is due.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .compute_dtype import copy_for_inference, dtype_of, resolve_dtype
from .packed_encoding import with_packed_text_encoders


class InferenceModel:
    """A model as it is, or its copy in another number type.

    Args:
        model: A `torch.nn.Module`.
        dtype: `None` for the model as it is; else one of `COMPUTE_DTYPES`, see `resolve_dtype`.

    Attributes:
        model: The model that computes; the given one unless a copy was needed.
        dtype: What it computes in, such as `"bfloat16"`.
    """

    def __init__(self, model: Any, dtype: str | None = None) -> None:
        own = str(dtype_of(model)).removeprefix("torch.")
        chosen = resolve_dtype(dtype, _device_of(model))
        self.dtype = chosen or own
        self.model = model if self.dtype == own else copy_for_inference(model, self.dtype)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return _device_of(self.model)

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Gives the model ready to encode, its BERT-like parts packed; all modes are restored afterwards."""
        with inference(self.model):
            yield with_packed_text_encoders(self.model)

    def fingerprint(self, preprocessing: dict[str, Any]) -> str:
        """See `fingerprint_of`; a copy in another number type has another fingerprint."""
        return fingerprint_of(self.model, preprocessing)

    def describe(self) -> str:
        """Class and number type, for messages; float32 is not mentioned."""
        name = type(self.model).__name__
        return name if self.dtype == "float32" else f"{name} dtype={self.dtype}"


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


def network_settings(model: Any) -> dict[str, Any] | None:
    """The settings of a model's config that may shape its outputs, for a fingerprint."""
    config = getattr(model, "config", None)
    return None if config is None else dict(_without_origin(config.to_dict()))


def tokenizer_digest(tokenizer: Any) -> str:
    """A SHA-256 over all that a tokenizer does, whatever it was last used for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
        content.pop(state, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def inference(model: Any) -> Iterator[None]:
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


def in_type_of(model: Any, inputs: Any) -> dict[str, Any]:
    """Pixels in the number type of the model, everything else as it is."""
    dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    return {
        name: tensor.to(dtype) if hasattr(tensor, "is_floating_point") and tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


def unit_or_zero(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors of length 1, float32, along the last axis.

    >>> unit_or_zero(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    # A zero vector stays zero: the caller knows the passage it belongs to, and names it.
    units: np.ndarray = (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
    return units


_ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def _without_origin(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: _without_origin(value) for key, value in settings.items() if key not in _ORIGIN}


def _device_of(model: Any) -> Any:
    import torch

    return next((weight.device for weight in model.parameters()), torch.device("cpu"))
