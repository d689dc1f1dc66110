"""A generator that its owner fine-tuned with peft: as an object, from a folder, with and without its own tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hf_ravlm import InvalidInputError, from_backbones
from tiny import assert_same_weights
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name


def adapted(base, seed: int = 0):
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(base, config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, adapters that name it, and what the two write together."""
    root = tmp_path_factory.mktemp("adapters")
    causal_model("llama").save_pretrained(root / "base")
    causal_tokenizer().save_pretrained(root / "base")
    model = adapted(AutoModelForCausalLM.from_pretrained(root / "base"))
    model.save_pretrained(root / "adapters")
    with torch.no_grad():
        logits = model(torch.arange(3, 12)[None]).logits
    return root, logits


def logits_of(reader, size: int):
    with torch.no_grad():
        return reader.language_model(torch.arange(3, 12)[None]).logits[..., :size]


def test_adapters_in_a_folder_are_read_with_the_base_that_they_name(folders, tmp_path):
    root, expected = folders
    model, processor = from_backbones(generator=root / "adapters")
    torch.testing.assert_close(logits_of(model, expected.shape[-1]), expected)
    assert processor.tokenizer.get_vocab().keys() >= causal_tokenizer().get_vocab().keys()
    assert not [name for name, _ in model.named_modules() if "lora" in name]
    model.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForImageTextToText.from_pretrained(tmp_path), model)


def test_an_object_with_adapters_is_merged(folders):
    root, expected = folders
    object_with_adapters = PeftModel.from_pretrained(causal_model("llama"), root / "adapters")
    model, _ = from_backbones(generator=object_with_adapters, tokenizer=causal_tokenizer())
    torch.testing.assert_close(logits_of(model, expected.shape[-1]), expected)
    loaded_into = causal_model("llama")
    loaded_into.load_adapter(str(root / "adapters"))
    model, _ = from_backbones(generator=loaded_into, tokenizer=causal_tokenizer())
    torch.testing.assert_close(logits_of(model, expected.shape[-1]), expected)


def test_an_image_text_reader_with_adapters_is_a_reader():
    generator, processor = multimodal_model("qwen2_5_vl")
    model, _ = from_backbones(generator=adapted(generator), generator_processor=processor)
    assert model.reads_images
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_adapters_without_a_base_and_those_that_change_no_weights_are_refused(folders, tmp_path):
    root, _ = folders
    for path in (root / "adapters").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(InvalidInputError, match="do not name their base model: load it, put them on it"):
        from_backbones(generator=tmp_path)
    prompts = get_peft_model(causal_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InvalidInputError, match="adapters of type PROMPT_TUNING, which cannot be merged"):
        from_backbones(generator=prompts, tokenizer=causal_tokenizer())


def test_a_whole_reader_of_ours_is_no_generator(tmp_path):
    model, _ = from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer())
    with pytest.raises(InvalidInputError, match="a whole reader of ours: load it with AutoModelForImageTextToText"):
        from_backbones(generator=model)
