"""Knows in which number type a model encodes fastest on this machine, and how to make a copy of a model in it.

On CPUs with bfloat16 instructions (AVX512-BF16, AMX) bfloat16 doubles the speed of float32 or more, at a cosine of
0.999 or better to the float32 vectors. float16 is emulated on CPUs, many times slower, and therefore refused there.
int8 halves the memory of the weights again, but the vectors change visibly: measure the recall before using it.
"""

from __future__ import annotations

import copy
import logging
import time
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ...errors import InvalidInputError


logger = logging.getLogger(__name__)

COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")

_PROBE_SIDE = 512
_PROBE_SECONDS = 0.025  # for each of the two types
_MIN_SPEEDUP = 1.2  # of bfloat16 over float32: 1.9 to 8 with the instructions, below 1 without


def resolve_dtype(dtype: str | None, device: str | torch.device = "cpu") -> str | None:
    """Returns the type to compute in: one of `COMPUTE_DTYPES` but `"auto"`, or `None` to leave a model as it is.

    Args:
        dtype: One of `COMPUTE_DTYPES`; `"auto"` is bfloat16 where the device is fast in it, and float32 elsewhere.
        device: Where the model is.

    Raises:
        InvalidInputError: If the name is not known, or the device cannot use the type sensibly.

    Example:

    >>> resolve_dtype("float32"), resolve_dtype(None)
    ('float32', None)
    >>> resolve_dtype("auto") in ("float32", "bfloat16")
    True
    """
    if dtype is None:
        return None
    kind = torch.device(device).type
    if dtype not in COMPUTE_DTYPES:
        raise InvalidInputError(f"dtype={dtype!r} is not known. Choose one of {COMPUTE_DTYPES}, or None.")
    if dtype == "auto":
        return "bfloat16" if _has_fast_bfloat16(kind) else "float32"
    if dtype == "float16" and kind == "cpu":
        raise InvalidInputError(
            'dtype="float16": CPUs emulate it, many times slower than float32. Choose "auto", "bfloat16" or "float32".'
        )
    if dtype == "int8" and kind != "cpu":
        raise InvalidInputError(f'dtype="int8" is for CPUs, but the model is on {device}. Choose "auto".')
    return dtype


def copy_for_inference(model: nn.Module, dtype: str) -> nn.Module:
    """Returns a copy of a model that computes in another type, in evaluation mode and without gradients.

    Args:
        model: Stays as it is.
        dtype: A type that `resolve_dtype` returned.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    if dtype == "int8":
        logger.warning("int8 weights: expect cosines near 0.99 to the exact vectors. Measure the recall.")
        return _with_int8_linears(copied.float())
    return copied.to(getattr(torch, dtype))


def _has_fast_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and _cpu_has_fast_bfloat16()


@lru_cache(maxsize=1)
def _cpu_has_fast_bfloat16() -> bool:
    """Asks the processor for its instructions first, and then the stopwatch, for 50 ms."""
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


def dtype_of(model: Any) -> torch.dtype:
    """The number type of a model's first weight with a fraction, float32 if it has none."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
