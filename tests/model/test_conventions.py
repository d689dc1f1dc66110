"""Habits of transformers that its common test suites check, and that users of ours would miss first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_ravlm import InvalidInputError, RavlmModel
from tiny import FUSIONS, picture, tiny_config, tiny_model, tiny_processor


EVIDENCE = [["the capital of Norway is Oslo", "red white"], ["red", "of Chad"]]
GREEDY = {"do_sample": False, "eos_token_id": -1}


def inputs_for(fusion: str, **settings):
    processor = tiny_processor(fusion=fusion)
    return processor(
        images=[picture(0), picture(1)],
        text=["what is ?", "red or"],
        evidence=EVIDENCE,
        return_tensors="pt",
        **settings,
    )


def test_a_resized_dual_encoder_is_loaded_again_and_leaves_the_generator_alone(tmp_path):
    model = RavlmModel(tiny_config())
    generator_words = model.config.get_text_config().vocab_size
    model.resize_token_embeddings(321)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.get_input_embeddings().num_embeddings == again.config.text_config.vocab_size == 321
    assert again.config.get_text_config().vocab_size == generator_words


def test_a_loaded_config_equals_the_saved_one(tmp_path):
    config = tiny_config(fusion="gated")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert again == {**config.to_dict(), "_name_or_path": again["_name_or_path"]}


def test_the_dual_encoder_gives_the_states_of_its_texts():
    model = RavlmModel(tiny_config()).eval()
    model.set_attn_implementation("eager")
    texts = tiny_processor().for_retrieval(texts=["what is ?", "red"])
    outputs = model(**texts, output_hidden_states=True, output_attentions=True)
    batch, length = texts["input_ids"].shape
    assert [state.shape for state in outputs.hidden_states] == [(batch, length, 32)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(batch, 4, length, length)] * 2
    assert model(**texts).hidden_states is None


@pytest.mark.parametrize(
    ("fusion", "layer"),
    [("cross_attention", "CrossReading"), ("gated", "GatedExchange"), ("attention", "PassageReading")],
)
def test_layers_of_fusions_stay_on_one_device(fusion, layer):
    assert {layer, "LlamaDecoderLayer"} <= tiny_model(fusion=fusion)._no_split_modules


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_answer_goes_on_from_the_cache_of_its_beginning(fusion):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    whole = model.generate(**inputs, **GREEDY, max_new_tokens=6)
    begun = model.generate(**inputs, **GREEDY, max_new_tokens=4, return_dict_in_generate=True)
    inputs["input_ids"] = begun.sequences
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1)
    rest = model.generate(**inputs, **GREEDY, max_new_tokens=2, past_key_values=begun.past_key_values)
    assert torch.equal(rest, whole)


def test_an_answer_can_be_generated_from_embeddings():
    model, inputs = tiny_model(), inputs_for("in_context")
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = model.generate(**words, **GREEDY, max_new_tokens=5)[:, words["input_ids"].shape[1] :]
    embeds = model.get_input_embeddings()(words.pop("input_ids"))
    assert torch.equal(model.generate(inputs_embeds=embeds, **words, **GREEDY, max_new_tokens=5), expected)


def test_settings_of_the_image_processor_hold_for_a_call():
    pixels = inputs_for("in_context")["pixel_values"]
    raw = inputs_for("in_context", do_normalize=False)["pixel_values"]
    torch.testing.assert_close(pixels, (raw - 0.5) / 0.5)
    assert torch.equal(inputs_for("in_context", images_kwargs={"do_normalize": False})["pixel_values"], raw)
    with pytest.raises(ValueError, match="passed two times"):
        inputs_for("in_context", images_kwargs={"do_normalize": False}, do_normalize=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_can_have_a_fixed_length(side):
    free = inputs_for("in_context", padding_side=side)
    length = free["input_ids"].shape[1]
    fixed = inputs_for("in_context", padding_side=side, padding="max_length", max_length=length + 5)
    kept = slice(5, None) if side == "left" else slice(None, length)
    for name, fill in (("input_ids", 0), ("attention_mask", 0), ("token_passages", -1)):
        assert torch.equal(fixed[name][:, kept], free[name])
        assert (fixed[name] == fill).sum() == (free[name] == fill).sum() + 2 * 5
    assert inputs_for("in_context", pad_to_multiple_of=64)["input_ids"].shape[1] % 64 == 0


def test_there_is_nothing_to_ask_without_words_and_pictures():
    with pytest.raises(InvalidInputError, match="nothing to ask"):
        tiny_processor()()


def test_saving_a_processor_tells_where_its_files_are(tmp_path):
    saved = tiny_processor().save_pretrained(tmp_path)
    assert saved
    assert all(Path(path).is_file() and Path(path).parent == tmp_path for path in saved)
