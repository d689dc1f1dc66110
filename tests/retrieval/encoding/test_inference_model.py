from __future__ import annotations

import copy

import pytest
import torch

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.encoding import inference_model
from hf_ravlm.retrieval.encoding.inference_model import Int8Linear, copy_for_inference, resolve_dtype


@pytest.fixture
def cpu(monkeypatch):
    """A processor of our choice: its instructions, and its speed in bfloat16 relative to float32."""

    def choose(speedup: float, **capabilities):
        known = {"architecture": "x86_64", **capabilities}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
        times = {torch.float32: 1.0, torch.bfloat16: 1.0 / speedup}
        monkeypatch.setattr(inference_model, "_product_seconds", times.__getitem__)
        inference_model._cpu_has_fast_bfloat16.cache_clear()

    yield choose
    inference_model._cpu_has_fast_bfloat16.cache_clear()


def test_auto_is_bfloat16_only_where_the_processor_has_it_and_is_fast_in_it(cpu):
    cpu(8.0, amx_bf16=True)
    assert resolve_dtype("auto") == "bfloat16"
    cpu(2.0, avx512_bf16=True)
    assert resolve_dtype("auto") == "bfloat16"
    cpu(0.5, avx512_bf16=True)
    assert resolve_dtype("auto") == "float32"
    cpu(9.0)  # no such instructions: what the stopwatch saw was noise
    assert resolve_dtype("auto") == "float32"
    cpu(2.0, architecture="aarch64")
    assert resolve_dtype("auto") == "bfloat16"


def test_unknown_types_and_emulated_ones_are_refused():
    with pytest.raises(InvalidInputError, match="bf16.*Choose one of"):
        resolve_dtype("bf16")
    with pytest.raises(InvalidInputError, match="CPUs emulate it"):
        resolve_dtype("float16")
    with pytest.raises(InvalidInputError, match="is for CPUs"):
        resolve_dtype("int8", "cuda:0")
    assert resolve_dtype("float16", "cuda:0") == "float16"


def test_a_copy_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout()).train()
    before = copy.deepcopy(model.state_dict())
    for dtype, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        copied = copy_for_inference(model, dtype)
        assert copied[0].weight.dtype == expected
        assert not copied.training
        assert not copied[0].weight.requires_grad
    assert model.training
    assert model[0].weight.requires_grad
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_an_8_bit_layer_is_near_the_exact_one(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32, bias=bias)
    inputs = torch.randn(3, 40, 64)
    inputs[0, 0] = 0
    exact, found = linear(inputs), Int8Linear(linear)(inputs)
    assert found.shape == exact.shape
    assert (found - exact).norm() / exact.norm() < 0.02
    torch.testing.assert_close(found[0, 0], exact[0, 0], atol=1e-6, rtol=0)


def test_an_8_bit_copy_replaces_the_linear_layers_that_can_be():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ModuleDict({"odd": torch.nn.Linear(8, 3)}))
    copied = copy_for_inference(model, "int8")
    assert isinstance(copied[0], Int8Linear)
    assert type(copied[1]["odd"]) is torch.nn.Linear
    assert type(model[0]) is torch.nn.Linear
    assert copied[0].weight_t.dtype == torch.int8
