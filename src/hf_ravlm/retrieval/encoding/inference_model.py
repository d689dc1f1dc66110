"""A model as encoders run it: without gradients, in evaluation mode, without padding, in a number type of choice.

On CPUs with bfloat16 instructions (AVX512-BF16, AMX) bfloat16 doubles the speed of float32 or more, at a cosine of
0.999 or better to the float32 vectors. int8 halves the memory again, but the vectors change: measure the recall.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ...errors import InvalidInputError
from .packed_encoding import with_packed_text_encoders


logger = logging.getLogger(__name__)

COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")

_PROBE_SIDE = 512
_PROBE_SECONDS = 0.025  # for each of the two types
_MIN_SPEEDUP = 1.2  # of bfloat16 over float32: 1.9 to 8 with the instructions, below 1 without
_ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class InferenceModel:
    """A model as it is, or its copy in another number type.

    Args:
        model: A `torch.nn.Module`.
        dtype: `None` for its own type, or one of `COMPUTE_DTYPES`: a copy made now, which does not follow training.

    Attributes:
        model: The model that computes.
        dtype: What it computes in, such as `"bfloat16"`.

    Raises:
        InvalidInputError: If `dtype` is not known or does not suit the device.
    """

    def __init__(self, model: Any, dtype: str | None = None) -> None:
        self.model = model
        own = str(_dtype_of(model)).removeprefix("torch.")
        self.dtype = resolve_dtype(dtype, self.device) or own
        if self.dtype != own:
            self.model = copy_for_inference(model, self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((weight.device for weight in self.model.parameters()), torch.device("cpu"))

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Gives the model ready to encode, its BERT-like parts packed (another object if it has some)."""
        with inference(self.model):
            yield with_packed_text_encoders(self.model)

    def inputs(self, values: Any) -> dict[str, Any]:
        """Returns inputs by name, on the device of the model; pixels in its number type, everything else as it is."""
        dtype, device = _dtype_of(self.model), self.device
        return {
            name: value.to(device, dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
            for name, value in values.items()
        }

    def fingerprint(self, **preprocessing: Any) -> str:
        """Returns the `fingerprint_of` weights with their type, network settings and preprocessing."""
        config = getattr(self.model, "config", None)
        network = None if config is None else _without_origin(config.to_dict())
        return fingerprint_of(self.model, {"network": network, **preprocessing})

    def describe(self) -> str:
        """Returns class and number type, for messages; float32 is not mentioned."""
        name = type(self.model).__name__
        return name if self.dtype == "float32" else f"{name} dtype={self.dtype}"


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Runs a model in evaluation mode without gradients; restores every module's own mode, as some may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def fingerprint_of(model: Any, preprocessing: dict[str, Any]) -> str:
    """Returns a SHA-256 over name, type, shape and bytes of every tensor of a model, and over the preprocessing.

    Args:
        model: A `torch.nn.Module`; may say what else shapes its outputs by `retrieval_fingerprint()`, JSON-like.
        preprocessing: A JSON-like dictionary.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        content = hashlib.sha256(memoryview(flat.view(torch.uint8).numpy()))
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{content.hexdigest()}\n".encode())
    own = model.retrieval_fingerprint() if hasattr(model, "retrieval_fingerprint") else None
    digest.update(json.dumps([own, preprocessing], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def processor_settings(processor: Any) -> dict[str, Any]:
    """Returns what the image processor and the tokenizer of a processor do, for a fingerprint."""
    return {**image_settings(processor.image_processor), "tokenizer": tokenizer_digest(processor.tokenizer)}


def image_settings(image_processor: Any) -> dict[str, Any]:
    """Returns what an image processor does, for a fingerprint."""
    settings = image_processor.to_dict()
    return {"image_processor": {key: value for key, value in settings.items() if not key.startswith("_")}}


def tokenizer_digest(tokenizer: Any) -> str:
    """Returns a SHA-256 over all that a tokenizer does, whatever it was last used for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
        content.pop(state, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_origin(settings: Any) -> Any:
    """A model's config without what says nothing about its outputs."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_origin(value) for key, value in settings.items() if key not in _ORIGIN}


def _dtype_of(model: Any) -> torch.dtype:
    """The number type of a model's first weight with a fraction, float32 if it has none."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)


def resolve_dtype(dtype: str | None, device: str | torch.device = "cpu") -> str | None:
    """Returns the type to compute in: `dtype`, with `"auto"` resolved to bfloat16 where the device is fast in it.

    Raises:
        InvalidInputError: If the name is not known, or the device cannot use the type sensibly.

    >>> resolve_dtype("float32"), resolve_dtype(None)
    ('float32', None)
    >>> resolve_dtype("auto") in ("float32", "bfloat16")
    True
    """
    kind = torch.device(device).type
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise InvalidInputError(f"dtype={dtype!r} is not known. Choose one of {COMPUTE_DTYPES}, or None.")
    if dtype == "auto":
        if kind == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = kind == "cpu" and _cpu_has_fast_bfloat16()
        return "bfloat16" if fast else "float32"
    if dtype == "float16" and kind == "cpu":
        raise InvalidInputError(
            'dtype="float16": CPUs emulate it, many times slower than float32. Choose "auto", "bfloat16" or "float32".'
        )
    if dtype == "int8" and kind != "cpu":
        raise InvalidInputError(f'dtype="int8" is for CPUs, but the model is on {device}. Choose "auto".')
    return dtype


@lru_cache(maxsize=1)
def _cpu_has_fast_bfloat16() -> bool:
    """Asks for the processor's instructions first, and then measures for 50 ms."""
    known = torch.cpu.get_capabilities()
    if known.get("architecture") == "x86_64" and not (known.get("avx512_bf16") or known.get("amx_bf16")):
        return False
    float32, bfloat16 = (_product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    logger.info("A matrix product takes %.2f ms in float32, %.2f in bfloat16", float32 * 1e3, bfloat16 * 1e3)
    return float32 >= _MIN_SPEEDUP * bfloat16


def _product_seconds(dtype: torch.dtype) -> float:
    """The fastest of a few matrix products: another program on the machine makes some of them slow, not all."""
    matrix = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype)
    product = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=product)  # the first one sets things up
    times: list[float] = []
    deadline = time.perf_counter() + _PROBE_SECONDS
    while len(times) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        times.append(time.perf_counter() - start)
    return min(times)


def copy_for_inference(model: nn.Module, dtype: str) -> nn.Module:
    """Returns a copy of a model, in evaluation mode and without gradients, in a type that `resolve_dtype` returned."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    if dtype == "int8":
        logger.warning("int8 weights: expect cosines near 0.99 to the exact vectors. Measure the recall.")
        return _with_int8_linears(copied.float())
    return copied.to(getattr(torch, dtype))


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale per output; inputs get one scale per row while it runs.

    Args:
        linear: The layer in float32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # (out,)
        self.register_buffer("weight_t", (linear.weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps (..., in) to (..., out)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        row_scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127  # (n, 1)
        products = torch._int_mm((rows / row_scale).round().to(torch.int8), self.weight_t)  # (n, out) in int32
        outputs = products.to(inputs.dtype).mul_(row_scale).mul_(self.scale)
        if self.bias is not None:
            outputs += self.bias
        return outputs.reshape(*inputs.shape[:-1], -1)


def _with_int8_linears(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        # Both sides a multiple of 8: what the 8-bit products ask for.
        if type(child) is nn.Linear and child.in_features % 8 == 0 and child.out_features % 8 == 0:
            setattr(module, name, Int8Linear(child))
        else:
            _with_int8_linears(child)
    return module
