"""The configuration is strict data: it says what is wrong, and it survives a round trip."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, CLIPConfig, GPT2Config

from hf_ravlm import InvalidInputError, RavlmConfig, RavlmForConditionalGeneration
from tiny import tiny_config


def test_unknown_fusion_lists_the_choices():
    with pytest.raises(Exception, match="'in_context', 'concat', .* 'cross_attention'.*got gate"):
        tiny_config(fusion="gate")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_image_tokens", 5, "square number"),
        ("num_passages", 0, "num_passages=0"),
        ("fusion_heads", 5, "does not divide"),
        ("projection_dim", "wide", "projection_dim"),
        ("content_free_weight", 1.5, "content_free_weight=1.5: expected a number from 0 to 1"),
    ],
)
def test_wrong_values_are_named(field, value, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**{field: value})


def test_a_dual_tower_gives_its_halves():
    clip = CLIPConfig()
    config = RavlmConfig(vision_config=clip.to_dict(), text_config=clip.to_dict())
    assert config.vision_config.model_type == "clip_vision_model"
    assert config.text_config.model_type == "clip_text_model"


def test_generation_asks_the_generator():
    config = RavlmConfig(generator_config=GPT2Config(n_embd=48, n_head=4, vocab_size=77))
    assert config.get_text_config(decoder=True).vocab_size == 77
    assert config.get_text_config().hidden_size == 48


def test_saved_and_loaded_config_is_equal_and_holds_no_path(tmp_path):
    config = tiny_config(fusion="gated", default_prompt="Whose flag?")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    first, again = ((tmp_path / folder / "config.json").read_text() for folder in (".", "again"))
    assert first == again
    assert str(tmp_path) not in again
    assert loaded.default_prompt == "Whose flag?"
    assert json.loads(again)["auto_map"]["AutoModel"] == "ravlm_hub.RavlmModel"


def test_the_width_of_a_convolutional_tower_is_found_or_asked_for():
    assert RavlmConfig(vision_config={"model_type": "efficientnet", "hidden_dim": 40}).vision_dim == 40
    unknown = RavlmConfig(vision_config={"model_type": "mobilenet_v2"})
    with pytest.raises(ValueError, match="'mobilenet_v2' does not tell the width"):
        unknown.vision_dim  # noqa: B018


@pytest.mark.parametrize("settings", [{"model_type": "gpt2"}, {"bos_token_id": 1, "eos_token_id": 2}])
def test_settings_of_another_model_make_no_model_of_defaults(settings, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for load in (RavlmConfig.from_pretrained, RavlmForConditionalGeneration.from_pretrained):
        with pytest.raises(InvalidInputError, match="from_backbones"):
            load(tmp_path)
