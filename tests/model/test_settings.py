"""Every keyword of `from_backbones` is applied, or refused with the choices."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import InvalidInputError, from_backbones
from tiny_backbones import causal_model, causal_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("generator")
    causal_model("llama").save_pretrained(path)
    causal_tokenizer().save_pretrained(path)
    return path


def test_settings_reach_config_processor_and_loading(folder):
    model, processor = from_backbones(
        generator=folder,
        marginalization="sequence",
        num_passages=7,
        max_length=99,
        max_passage_length=11,
        question_first=True,
        torch_dtype="bfloat16",
        attn_implementation="eager",
        device_map="cpu",
        local_files_only=True,
        token="hf_secret",
    )
    assert (model.config.num_passages, model.config.marginalization) == (7, "sequence")
    assert (processor.max_length, processor.max_passage_length, processor.question_first) == (99, 11, True)
    assert processor.passage_prompts
    assert model.dtype == torch.bfloat16
    assert model.language_model.config._attn_implementation == "eager"
    assert "hf_secret" not in model.config.to_json_string() + processor.to_json_string()


def test_an_object_takes_what_can_be_done_to_it():
    given = {"generator": causal_model("llama"), "tokenizer": causal_tokenizer()}
    model, _ = from_backbones(**given, attn_implementation="eager", dtype=torch.float32)
    assert model.language_model.config._attn_implementation == "eager"
    for settings in ({"dtype": "bfloat16"}, {"device_map": "cpu"}, {"quantization_config": {"bits": 4}}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(settings))}= is of loading, and the generator came"):
            from_backbones(**given, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fusionn": "gated"},
            r"takes no fusionn=; did you mean fusion=\? It takes .*attn_implementation.*max_length",
        ),
        ({"fusion": "gate"}, "'in_context', 'concat', .* 'cross_attention'.*got gate"),
        ({"num_passages": 0}, "num_passages=0: expected a whole number"),
        ({"image_token_id": 7}, "takes no image_token_id="),
        ({"passage_prompts": True}, "takes no passage_prompts="),
        ({"dtype": "brain"}, "dtype='brain': expected 'auto', 'float32'"),
        ({"revision": "v1"}, "revision='v1' is of a repository, and generator came as a folder"),
        ({"vision_revision": "v1"}, "vision_revision='v1' is of a repository, and vision"),
    ],
)
def test_what_cannot_be_applied_is_refused_before_anything_is_loaded(folder, settings, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        from_backbones(generator=folder, **settings)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    for source, message in [(tmp_path, "cannot be loaded"), ("no/such-model", "no folder of this name")]:
        with pytest.raises((InvalidInputError, OSError), match=message) as caught:
            from_backbones(generator=source)
        assert "\n" not in str(caught.value)
        assert type(caught.value).__module__ == "hf_ravlm.errors"
