"""What saving replaces and what it leaves: other weights in the folder, other processes, the caller's wishes."""

from __future__ import annotations

import os

import pytest
import torch

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm import KnowledgeBase, RavlmConfig, RavlmForConditionalGeneration, RavlmProcessor, RavlmRetriever
from hf_ravlm.saving.folders import STAGING_PREFIX
from tiny import tiny_model, tiny_processor


def test_a_variant_and_an_adapter_leave_the_weights_beside_them(tmp_path):
    from peft import LoraConfig

    model = tiny_model()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "model.fp16.safetensors").exists()
    model.add_adapter(LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_fewer_shards_leave_no_shard_of_before(tmp_path):
    tiny_model(seed=0).save_pretrained(tmp_path, max_shard_size="100KB")
    many = len(list(tmp_path.glob("model-*")))
    second = tiny_model(seed=1)
    second.save_pretrained(tmp_path, max_shard_size="200KB")
    assert 1 < len(list(tmp_path.glob("model-*"))) < many
    loaded = RavlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.image_projector.weight, second.image_projector.weight)


def test_another_process_of_a_distributed_save_touches_nothing(tmp_path):
    staging = tmp_path / f"{STAGING_PREFIX}of-the-main-process"
    staging.mkdir()
    tiny_model().save_pretrained(tmp_path, is_main_process=False)
    assert [path.name for path in tmp_path.iterdir()] == [staging.name]


@pytest.mark.parametrize("part", ["model", "config"])
def test_arguments_of_the_upload_reach_it(part, tmp_path, monkeypatch):
    thing = tiny_model() if part == "model" else tiny_model().config
    seen = {}
    monkeypatch.setattr(type(thing), "push_to_hub", lambda self, repo_id, **kwargs: seen.update(kwargs, id=repo_id))
    thing.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/flags", private=True, token="secret")
    assert seen == {"id": "me/flags", "private": True, "token": "secret"}


@pytest.mark.parametrize("tie", [False, True])
def test_a_grown_vocabulary_is_saved_and_loaded(tie, tmp_path):
    generator = tiny_model().config.generator_config.to_dict() | {"tie_word_embeddings": tie}
    model = tiny_model(generator_config=generator)
    size = generator["vocab_size"] + 7
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path)
    loaded, report = RavlmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.get_text_config().vocab_size == loaded.get_output_embeddings().out_features == size
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tie
    ids = torch.tensor([[1, size - 1]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits)


def test_saved_weights_are_readable_by_others_as_the_umask_says(tmp_path):
    umask = os.umask(0o022)
    try:
        tiny_model().save_pretrained(tmp_path)
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    for place in ("home", "elsewhere"):
        (tmp_path / place).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    tiny_model().save_pretrained("~/whole")
    tiny_processor().save_pretrained("~/whole")
    built(numbered(range(3)), HashEncoder()).save_pretrained("~/whole")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["whole"]
    assert RavlmForConditionalGeneration.from_pretrained("~/whole").config.model_type == "ravlm"
    assert RavlmConfig.from_pretrained("~/whole").fusion == "in_context"
    assert len(RavlmProcessor.from_pretrained("~/whole").tokenizer) == len(tiny_processor().tokenizer)
    assert len(RavlmRetriever.from_pretrained("~/whole", encoder=HashEncoder())) == 3
    assert len(KnowledgeBase.load("~/whole")) == 3
    (tmp_path / "home" / "table.csv").write_text("id,text\na,red\n", encoding="utf-8")
    assert KnowledgeBase.from_csv("~/table.csv").ids == ["a"]
    assert not list((tmp_path / "elsewhere").iterdir())
