"""Adapters by one argument: what they touch, that they resume, and what they say when they match nothing."""

from __future__ import annotations

import peft
import pytest
import torch

from hf_ravlm import InvalidInputError, RavlmForConditionalGeneration, from_backbones
from hf_ravlm.model.loading import without_adapters
from hf_ravlm.training.lora import add_adapters
from hf_ravlm.training.trainers import RavlmTrainer
from reading_world import STEADY, arguments, assert_same_weights, colour_retriever, rows
from tiny import tiny_config, tiny_model, tiny_processor
from tiny_backbones import MULTIMODAL, multimodal_model


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name


def lora_trainer(folder, model=None, **changes):
    model, processor = tiny_model(fusion="gated") if model is None else model, tiny_processor(fusion="gated")
    return RavlmTrainer(
        model,
        arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, **STEADY, **changes),
        train_dataset=rows(),
        processing_class=processor,
        retriever=colour_retriever(model, processor),
        peft_config=peft.LoraConfig(r=2, lora_alpha=4),
    )


def test_adapters_go_into_the_language_model_and_the_readers_own_parts_are_trained_whole(tmp_path):
    torch.manual_seed(0)
    trainer = lora_trainer(tmp_path)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    adapted = {name for name in trained if "lora_" in name}
    assert adapted
    assert all("language_model" in name and ("q_proj" in name or "v_proj" in name) for name in adapted)
    assert all(name.split(".modules_to_save")[0].endswith(("image_projector", "fusion")) for name in trained - adapted)
    frozen = {
        name: parameter.clone() for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad
    }
    trainer.train()
    assert all(torch.equal(dict(trainer.model.named_parameters())[name], before) for name, before in frozen.items())


def test_adapters_resume_and_load_onto_the_base(tmp_path):
    torch.manual_seed(0)
    whole = lora_trainer(tmp_path)
    whole.train()
    torch.manual_seed(1)
    resumed = lora_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())
    loaded = peft.PeftModel.from_pretrained(tiny_model(fusion="gated"), tmp_path / "checkpoint-4")
    inputs = whole.batches.for_evaluation(rows(2))
    inputs.pop("row_names")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, whole.model.eval()(**inputs).logits, atol=1e-4, rtol=0)


def test_targets_that_match_nothing_are_refused_with_the_names_there_are():
    with pytest.raises(InvalidInputError, match=r"'attn'.*q_proj"):
        add_adapters(tiny_model(), peft.LoraConfig(target_modules=["attn"]))
    with pytest.raises(InvalidInputError, match=r"'q_proj'.* numbers \[9\]"):
        add_adapters(tiny_model(), peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[9]))
    with pytest.raises(InvalidInputError, match=r"'projector'.*image_projector"):
        add_adapters(tiny_model(), peft.LoraConfig(modules_to_save=["projector"]))
    with pytest.raises(InvalidInputError, match="adapters already"):
        add_adapters(add_adapters(tiny_model(), peft.LoraConfig()), peft.LoraConfig())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_the_default_target_knows_other_families(family):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    generator = {"model_type": family, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **sizes}
    model = RavlmForConditionalGeneration(tiny_config(generator_config=generator))
    adapted = [name for name, _ in add_adapters(model, peft.LoraConfig(r=2)).named_parameters() if "lora_" in name]
    assert adapted
    assert all("language_model" in name for name in adapted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_quantized_language_model_is_trained_through_adapters(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install --no-deps torchao")
    from transformers import TorchAoConfig

    tiny_model(fusion="gated").save_pretrained(tmp_path / "exact")
    whole_parts = ["model", "image_projector", "evidence_image_projector", "fusion", "lm_head"]
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=whole_parts)
    small = RavlmForConditionalGeneration.from_pretrained(
        tmp_path / "exact", quantization_config=settings, device_map="cpu"
    )
    trainer = lora_trainer(tmp_path / "run", small, num_train_epochs=1)
    layer = without_adapters(trainer.model).language_model.model.layers[0].self_attn.k_proj
    assert "Int8" in type(layer.weight.data).__name__ or "Int8" in str(layer)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if name in before)


@pytest.mark.parametrize("family", list(MULTIMODAL))
def test_default_targets_leave_what_an_image_text_reader_sees_with(family):
    generator, processor = multimodal_model(family)
    reader, _ = from_backbones(generator=generator, generator_processor=processor)
    adapted = add_adapters(reader, peft.LoraConfig(r=2))
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    decoder = {id(module) for module in reader.get_decoder().modules()}
    assert names
    assert all(id(adapted.get_submodule(name)) in decoder for name in names)


def test_one_name_that_matches_nothing_is_refused_beside_others():
    with pytest.raises(InvalidInputError, match="target_modules of the peft_config name 'queri'"):
        add_adapters(tiny_model(), peft.LoraConfig(target_modules=["q_proj", "queri"]))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_names_that_hit_what_sees_images_unasked_are_refused_with_what_to_say(targets):
    generator, processor = multimodal_model("llava")
    reader, _ = from_backbones(generator=generator, generator_processor=processor)
    with pytest.raises(InvalidInputError, match="what sees images") as told:
        add_adapters(reader, peft.LoraConfig(r=2, target_modules=targets))
    asked = str(told.value).rsplit("'", 2)[1]
    assert not any("lora_" in name for name, _ in reader.named_parameters())  # as it was
    adapted = add_adapters(reader, peft.LoraConfig(r=2, target_modules=asked))
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert names
    assert not any("vision" in name for name in names)
