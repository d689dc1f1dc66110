"""Quantized generators: they answer, are saved with their reader and come back, and train through adapters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import InvalidInputError, from_backbones
from hf_ravlm.model.parts.quantized import four_bit_layers
from hf_ravlm.model.reader.probe import probe_language_model
from hf_ravlm.training.lora import add_adapters
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer, text_model, vision_model


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
}  # four bits are of 64 weights at once, and on some processors whole
ASKED = {"images": [picture(0)], "text": ["what ?"], "evidence": [["the capital of Norway is Oslo"]]}


def quantization(kind: str):
    if kind == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    return BitsAndBytesConfig(**(four if kind == "bitsandbytes-4" else {"load_in_8bit": True}))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    images = ViTImageProcessorPil(size={"height": 16, "width": 16})
    for name, model, belongs in (
        ("generator", causal_model("llama", **WIDE), causal_tokenizer()),
        ("vision", vision_model("vit"), images),
        ("text", text_model("bert"), causal_tokenizer()),
    ):
        model.save_pretrained(root / name)
        belongs.save_pretrained(root / name)
    return {name: root / name for name in ("vision", "text", "generator")}


@pytest.mark.parametrize("kind", ["bitsandbytes-8", "bitsandbytes-4", "torchao"])
def test_a_quantized_generator_answers_is_saved_and_trains(parts, kind, tmp_path):
    settings = {"fusion": "gated", "projection_dim": 16, "dtype": torch.float32}
    model, processor = from_backbones(**parts, quantization_config=quantization(kind), **settings)
    assert model.is_quantized
    inputs = processor(**ASKED)
    model.save_pretrained(tmp_path)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():  # where nothing learns, both may compute in bfloat16
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    again.save_pretrained(tmp_path / "again")
    adapted = add_adapters(model, LoraConfig(r=2)).train()
    adapted(**processor(**ASKED, answers=["Oslo"])).loss.backward()
    assert any(weight.grad is not None for name, weight in adapted.named_parameters() if "lora_B" in name)


def test_four_bits_learn_after_an_answer_as_before(parts):
    """bitsandbytes packs weights for some processors when a model first answers; packed they would pass nothing on."""
    model, processor = from_backbones(
        **parts, quantization_config=quantization("bitsandbytes-4"), projection_dim=16, dtype=torch.float32
    )
    torch.manual_seed(0)
    model = add_adapters(model, LoraConfig(r=2, init_lora_weights=False))
    inputs, learned = processor(**ASKED, answers=["Oslo"]), []
    for _ in range(2):
        model.train().zero_grad()
        model(**inputs).loss.backward()
        adapters = [weight.grad.flatten() for name, weight in model.named_parameters() if "lora_A" in name]
        learned.append(torch.cat(adapters))
        with torch.no_grad():
            model.eval()(**inputs)
    assert torch.cosine_similarity(*learned, dim=0) > 0.99  # packing rounds to bfloat16


def test_what_is_packed_for_answers_is_unpacked_to_learn():
    """As bitsandbytes has it: a layer is packed when it answers, and its state dict unpacks it."""

    class FourBits(torch.nn.Linear):
        def forward(self, states):
            self.weight.quant_state.packing_format_for_cpu |= not self.training
            return super().forward(states)

        def state_dict(self, *args, **kwargs):
            self.weight.quant_state.packing_format_for_cpu = False
            return super().state_dict(*args, **kwargs)

    model, processor = tiny_model(), tiny_processor()
    model.is_quantized = True
    layer = model.language_model.model.layers[0].self_attn.q_proj = FourBits(32, 32, bias=False)
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=False)
    probe_language_model(model.language_model.eval())
    assert not layer.weight.quant_state.packing_format_for_cpu
    assert not layer.training
    model(**processor(**ASKED))
    assert layer.weight.quant_state.packing_format_for_cpu
    model.train()
    assert not layer.weight.quant_state.packing_format_for_cpu
    adapted = add_adapters(model, LoraConfig(r=2, lora_dropout=0.5))
    assert [module for module, _ in four_bit_layers(adapted)] == [layer]


def test_a_plain_reader_is_loaded_quantized_and_its_towers_are_not(parts, tmp_path):
    model, processor = from_backbones(**parts, fusion="gated", projection_dim=16)
    model.save_pretrained(tmp_path)
    reader = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=quantization("bitsandbytes-4"), dtype=torch.float32
    )
    assert type(reader.language_model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    for part in (reader.model, reader.image_projector, reader.fusion):
        assert not [module for module in part.modules() if "4bit" in type(module).__name__]
    features = {"images": [picture(0)], "texts": ["red"]}
    torch.testing.assert_close(
        reader.model.get_query_features(**processor.for_retrieval(**features)),
        model.model.get_query_features(**processor.for_retrieval(**features)),
    )
    assert reader.generate(**processor(**ASKED), max_new_tokens=2).shape[0] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused here is what needs a graphics card")
@pytest.mark.parametrize("config", ["FineGrainedFP8Config", "HiggsConfig"])
def test_a_quantization_that_this_machine_cannot_do_is_refused_by_name(parts, config):
    quantization = getattr(transformers, config)()
    with pytest.raises(InvalidInputError, match=f"cannot be quantized by {config} here: .*GPU"):
        from_backbones(generator=parts["generator"], quantization_config=quantization)
