"""What transformers does with its models must work with ours: compile, draft, resize, place, save, adapt."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tiny import FUSIONS, assert_same_weights, picture, tiny_config, tiny_model, tiny_processor


EVIDENCE = [["the capital of Norway is Oslo", "red white"], ["red", "of Chad"]]


def inputs_for(fusion: str, **more):
    processor = tiny_processor(fusion=fusion)
    return processor(images=[picture(0), picture(1)], text=["what is ?", "red or"], evidence=EVIDENCE, **more)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_saved_reader_comes_back_the_same(fusion, tmp_path):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    model.save_pretrained(tmp_path)
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_weights(again, model)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "concat"])
def test_the_forward_pass_compiles_without_a_break(fusion):
    model, inputs = tiny_model(fusion=fusion), dict(inputs_for(fusion))
    with torch.no_grad():
        expected = model(**inputs).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected)
    torch._dynamo.reset()


FLEX = pytest.param("in_context", "flex_attention", marks=pytest.mark.slow)  # compiles


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # transformers' own call
@pytest.mark.parametrize(
    ("fusion", "attention"), [*((fusion, kernel) for fusion in FUSIONS for kernel in ("eager", "sdpa")), FLEX]
)
def test_attention_kernels_agree(fusion, attention):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.language_model.set_attn_implementation(attention)
        kept = inputs["attention_mask"].bool()
        torch.testing.assert_close(model(**inputs).logits[kept], expected[kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_drafted_tokens_change_no_answer(fusion):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    alone = {name: tensor[:1] for name, tensor in inputs.items()}
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(**alone, **options)
    assert torch.equal(model.generate(**alone, **options, prompt_lookup_num_tokens=3), plain)
    assistant = tiny_model(seed=1, fusion=fusion)
    assert torch.equal(model.generate(**alone, **options, assistant_model=assistant), plain)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_sixteen_bits_and_device_maps(fusion, tmp_path):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        exact = model(**inputs).logits[:, -1]
    for dtype in (torch.bfloat16, torch.float16):
        half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype, device_map="cpu").eval()
        with torch.no_grad():
            logits = half(**inputs).logits[:, -1]
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
        assert half.generate(**inputs, max_new_tokens=2).shape[0] == 2


def test_states_and_attentions_of_the_language_model_come_out():
    model, inputs = tiny_model(), inputs_for("in_context")
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    batch, length = inputs["input_ids"].shape
    assert [state.shape for state in outputs.hidden_states] == [(batch, length, 32)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(batch, 4, length, length)] * 2


def test_tied_and_resized_embeddings_stay_tied(tmp_path):
    generator = {**tiny_config().generator_config.to_dict(), "tie_word_embeddings": True}
    model = tiny_model(generator_config=generator)
    model.resize_token_embeddings(320)
    assert model.config.get_text_config().vocab_size == 320
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert again(**inputs_for("in_context")).logits.shape[-1] == 320


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
@pytest.mark.parametrize("fusion", ["in_context", "gated", "cross_attention"])
def test_adapters_on_every_part_save_load_and_merge(fusion, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    tiny_model(fusion=fusion).save_pretrained(tmp_path / "base")
    inputs = inputs_for(fusion)
    settings = LoraConfig(
        target_modules=r".*(language_model.*(q_proj|v_proj)|text_encoder.*(query|value)|vision_tower.*(query|value|q_proj|v_proj))",
        modules_to_save=["image_projector"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(tmp_path / "base"), settings).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = adapted(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_language_model_alone_is_quantized_and_reloads(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install --no-deps torchao")
    from transformers import TorchAoConfig

    model, inputs = tiny_model(fusion="gated"), inputs_for("gated")
    model.save_pretrained(tmp_path / "exact")
    settings = TorchAoConfig(
        quantization.Int8WeightOnlyConfig(), modules_to_not_convert=["model", "image_projector", "fusion", "lm_head"]
    )
    load = AutoModelForImageTextToText.from_pretrained
    small = load(tmp_path / "exact", quantization_config=settings, device_map="cpu").eval()
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        difference = (small(**inputs).logits - model(**inputs).logits)[kept].abs().max()
    assert 0 < difference < 0.02
    assert type(small.fusion.output.weight) is torch.nn.Parameter
    small.save_pretrained(tmp_path / "small")
    again = load(tmp_path / "small", device_map="cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, small(**inputs).logits)
    assert again.generate(**inputs, max_new_tokens=2).shape[0] == 2
