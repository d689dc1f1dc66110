"""A pretrained dual encoder kept whole: its features, scale, texts and images are its own, in a reader and alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from hf_ravlm import RavlmConfig, RavlmEncoder, RavlmModel, from_backbones, from_encoder
from hf_ravlm.errors import InvalidInputError
from tiny import assert_same_weights, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer
from tiny_encoders import FAMILIES, IMAGES, TEXTS, own_vectors, saved_once


WHOLE = [
    name for name, family in FAMILIES.items() if family.kind == "dual" and name not in ("SigLIP 2, NaFlex", "AIMv2")
]
SCALES = {"CLIP": lambda model: model.logit_scale.exp(), "ALIGN": lambda model: 1 / model.temperature}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return saved_once(tmp_path_factory.mktemp("encoders"))


def features(model, processor):
    with torch.no_grad():
        images = model.get_image_features(**{"pixel_values": processor.for_retrieval(images=IMAGES)["pixel_values"]})
        texts = processor.for_retrieval(texts=TEXTS)
        texts = model.get_text_features(texts["input_ids"], texts["attention_mask"])
    return images.pooler_output.numpy(), texts.pooler_output.numpy()


@pytest.mark.parametrize("name", WHOLE)
def test_features_are_those_of_the_encoder(folders, name):
    family, folder = FAMILIES[name], folders(name)
    own = own_vectors(family, folder)
    model, processor = from_encoder(folder)
    images, texts = features(model, processor)
    np.testing.assert_allclose(images, own["image"], atol=1e-5)
    np.testing.assert_allclose(texts, own["text"], atol=1e-5)
    if name in SCALES:
        original = family.auto.from_pretrained(folder)
        torch.testing.assert_close(model.get_logit_scale(), SCALES[name](original).reshape(()))
    encoder = RavlmEncoder(model, processor)
    np.testing.assert_allclose(encoder.encode_queries(None, TEXTS), own["text"], atol=1e-5)
    both = own["image"] + own["text"][: len(IMAGES)]
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_queries(IMAGES, TEXTS[: len(IMAGES)]), both, atol=1e-5)


@pytest.mark.parametrize("name", ["CLIP", "SigLIP 2, fixed size"])
def test_it_is_saved_and_given_back_by_the_auto_classes(folders, tmp_path, name):
    model, processor = from_encoder(folders(name), text_weight_init=0.5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reread = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, RavlmModel)
    assert_same_weights(again, model)
    for left, right in zip(features(again, reread), features(model, processor), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    assert RavlmEncoder(again, reread).fingerprint == RavlmEncoder(model, processor).fingerprint
    assert str(folders(name)) not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("fusion", ["in_context", "gated"])
def test_a_reader_holds_it_and_reads_with_its_halves(folders, tmp_path, fusion):
    folder = folders("SigLIP")
    model, processor = from_backbones(
        encoder=folder,
        generator=causal_model("llama"),
        tokenizer=causal_tokenizer(),
        fusion=fusion,
        num_memory_tokens=2,
    )
    own = own_vectors(FAMILIES["SigLIP"], folder)
    images, texts = features(model.model, processor)
    np.testing.assert_allclose(images, own["image"], atol=1e-5)
    np.testing.assert_allclose(texts, own["text"], atol=1e-5)
    inputs = processor(images=IMAGES[:1], text=["what ?"], evidence=[["Oslo", "red"]])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reread = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**inputs).logits
        found = again(**reread(images=IMAGES[:1], text=["what ?"], evidence=[["Oslo", "red"]])).logits
    torch.testing.assert_close(found, expected)
    assert_same_weights(AutoModel.from_pretrained(tmp_path), model.model)  # the towers alone
    assert json.loads((tmp_path / "config.json").read_text())["encoder_config"]["model_type"] == "siglip"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_it_trains_from_there_with_lora(folders):
    from peft import LoraConfig, get_peft_model

    model, processor = from_encoder(folders("CLIP"))
    before = features(model, processor)
    trained = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    inputs = processor.for_retrieval(images=IMAGES)
    passages = {f"passage_{name}": value for name, value in processor.for_retrieval(texts=TEXTS[:3]).items()}
    loss = trained(**inputs, **passages, return_loss=True).loss
    loss.backward()
    assert all(weight.grad is not None for name, weight in trained.named_parameters() if "lora_B" in name)
    after = features(trained.base_model.model, processor)
    assert not np.allclose(before[0], after[0], atol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vision": "x"}, "either"),
        ({"projection_dim": 8}, "projection_dim=8: the encoder is kept whole"),
    ],
)
def test_what_does_not_fit_is_refused(folders, given, message):
    with pytest.raises(InvalidInputError, match=message):
        from_backbones(encoder=folders("CLIP"), generator=causal_model("llama"), tokenizer=causal_tokenizer(), **given)


@pytest.mark.parametrize(("name", "message"), [("BERT", "'bert' model"), ("SigLIP 2, NaFlex", "NaFlex")])
def test_no_dual_encoder_is_told(folders, name, message):
    with pytest.raises(InvalidInputError, match=message):
        from_encoder(folders(name))


def test_the_halves_and_the_width_are_those_of_the_encoder():
    config = RavlmConfig(encoder_config={"model_type": "clip", "projection_dim": 24})
    assert (config.projection_dim, config.vision_config.model_type, config.has_towers) == (
        24,
        "clip_vision_model",
        True,
    )


def test_the_towers_of_a_reader_are_no_whole_encoder():
    tools = {"image_processor": tiny_processor().image_processor, "text_tokenizer": causal_tokenizer()}
    with pytest.raises(InvalidInputError, match="'ravlm' model whose towers are parts already"):
        from_backbones(
            encoder=tiny_model().model, generator=causal_model("llama"), tokenizer=causal_tokenizer(), **tools
        )


def test_the_offline_encoder_is_no_part_and_nobody_asks_the_hub_for_it():
    with pytest.raises(InvalidInputError, match="stands beside one, `load_encoder"):
        from_encoder("offline")
