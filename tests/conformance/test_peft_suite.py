"""peft's common tests of models, run on the reader: adapters on its language model, and a part of it trained whole."""

from __future__ import annotations

import inspect
import sys
import types
from unittest import mock

import pytest
import torch
from peft import IA3Config, LoraConfig
from transformers import AutoModelForImageTextToText

from tiny import picture, tiny_model, tiny_processor


diffusers = types.ModuleType("diffusers")  # which peft's suite imports for the tests of other models
diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
with mock.patch.dict(sys.modules, diffusers=diffusers):
    from peft_tests.testing_common import PeftCommonTester
    from peft_tests.testing_utils import set_init_weights_false

ATTENTION = r".*language_model.*\.(q_proj|o_proj)"
ADAPTERS = {
    "lora": (LoraConfig, {"r": 8, "target_modules": ATTENTION}),
    "lora_and_projector": (LoraConfig, {"r": 8, "target_modules": ATTENTION, "modules_to_save": ["image_projector"]}),
    "ia3": (IA3Config, {"target_modules": ATTENTION, "feedforward_modules": []}),
}
# Tests of an adapter that does something; a new one of these does nothing.
OF_TRAINED_ADAPTERS = ("merge", "mixed", "weighted", "disable", "unload", "substring", "conversion")


def common_tests() -> list[str]:
    """The tests that take a model, a class of adapters and its settings, and nothing else."""
    needed = ["self", "model_id", "config_cls", "config_kwargs"]
    return [
        name
        for name, test in inspect.getmembers(PeftCommonTester, inspect.isfunction)
        if name.startswith("_test_")
        and "prompt_learning" not in name
        and [p.name for p in inspect.signature(test).parameters.values() if p.default is p.empty] == needed
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A saved tiny reader."""
    path = tmp_path_factory.mktemp("reader")
    tiny_model(fusion="cross_attention").save_pretrained(path)
    return str(path)


class TestReaderWithAdapters(PeftCommonTester):
    transformers_class = AutoModelForImageTextToText

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        passages = [{"text": "the capital of Norway is Oslo", "image": picture(2)}, {"text": "of Chad"}]
        processor = tiny_processor(fusion="cross_attention", passage_images=True)
        inputs = processor(images=[picture(0), picture(1)], text=["what is ?", "red or"], evidence=[passages] * 2)
        return {name: tensor.to(self.torch_device) for name, tensor in inputs.items()}

    @pytest.mark.parametrize("adapter", ADAPTERS)
    @pytest.mark.parametrize("name", common_tests())
    def test(self, name: str, adapter: str, folder: str):
        config_class, settings = ADAPTERS[adapter]
        settings = dict(settings)
        if any(word in name for word in OF_TRAINED_ADAPTERS):
            settings = set_init_weights_false(config_class, settings)
        if "layer_indexing" in name:  # which peft does for lists of names only
            settings["target_modules"] = ["q_proj", "o_proj"]
        getattr(self, name)(folder, config_class, settings)
