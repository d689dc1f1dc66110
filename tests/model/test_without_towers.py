"""A reader without towers: the encoder stands beside it, images are seen by the generator itself or not at all."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from hf_ravlm import InvalidInputError, RavlmConfig, from_backbones
from hf_ravlm.model.reader.attribution import attribute_prompts
from tiny import assert_same_weights, picture
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model, vision_model


EVIDENCE = [["the capital of Norway is Oslo", "red"], ["white"]]
QUESTIONS = ["what is it?", "red or"]


def parts(kind: str):
    if kind == "causal":
        return from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer())
    generator, processor = multimodal_model("qwen2_5_vl")
    return from_backbones(generator=generator, generator_processor=processor)


@pytest.fixture(scope="module", params=["causal", "image_text"])
def reader(request):
    return parts(request.param)


def test_it_has_no_dual_encoder_and_answers(reader):
    model, processor = reader
    assert model.model is model.config.vision_config is model.config.text_config is None
    assert processor.image_processor is processor.text_tokenizer is None
    inputs = processor(images=[picture(0), picture(1)], text=QUESTIONS, evidence=EVIDENCE)
    assert ("pixel_values" in inputs) == model.reads_images  # a causal one reads words alone
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 2
    model(**processor(text=QUESTIONS, evidence=EVIDENCE, answers=["Oslo", "red"])).loss.backward()
    assert any(weight.grad is not None for weight in model.language_model.parameters())


def test_it_comes_back_from_its_folder(reader, tmp_path):
    model, processor = reader
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.vision_config is config.text_config is None
    again, processor_again = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    assert again.model is processor_again.image_processor is processor_again.text_tokenizer is None
    assert_same_weights(again, model)
    asked = {"images": [picture(0)], "text": QUESTIONS[:1], "evidence": EVIDENCE[:1]}
    with torch.no_grad():
        torch.testing.assert_close(again(**processor_again(**asked)).logits, model(**processor(**asked)).logits)


def test_what_only_towers_can_do_is_refused_in_clear_words(reader, tmp_path):
    model, processor = reader
    for embed in (
        lambda: processor.for_retrieval(texts=["red"]),
        processor.retrieval_fingerprint,
        lambda: AutoModel.from_config(model.config),
    ):
        with pytest.raises(InvalidInputError, match=r"reader without towers.*load_encoder"):
            embed()
    with pytest.raises(InvalidInputError, match="passages to encode came to a reader without towers"):
        model.encode_evidence(torch.ones(1, 1, 2).long(), torch.ones(1, 1, 2).long())


def test_pixels_do_not_reach_a_causal_reader_unnoticed():
    model, processor = parts("causal")
    inputs = processor(text=QUESTIONS)
    for call in (model, model.generate):
        with pytest.raises(InvalidInputError, match="images .* came to a reader without towers"):
            call(**inputs, pixel_values=torch.zeros(2, 3, 16, 16))


def test_answers_are_attributed(reader):
    model, processor = reader
    scores = [
        [{"text": text, "score": score} for text, score in zip(row, (0.9, 0.1), strict=False)] for row in EVIDENCE
    ]
    if model.reads_images:
        found = attribute_prompts(model, processor, None, QUESTIONS, scores, ["Oslo", "red"])
    else:
        asked = processor(text=QUESTIONS, evidence=scores, answers=["Oslo", "red"], padding_side="left")
        found = model.attribute(**asked)
    torch.testing.assert_close(found.posterior.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision": vision_model("vit")}, "text= is missing: expected both towers"),
        ({"fusion": "gated"}, "fusion='gated' needs towers: give vision= and text=, or choose fusion='in_context'"),
        ({"projection_dim": 16}, "projection_dim=16 is of towers, and none came"),
        ({"passage_images": True}, "passage_images=True: this reader sees no images"),
        ({"generator": None}, "no generator given"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings, message):
    given = {"generator": causal_model("llama"), "tokenizer": causal_tokenizer(), **settings}
    with pytest.raises(InvalidInputError, match=message):
        from_backbones(**given)


def test_a_config_with_one_tower_or_a_fusion_has_both():
    assert RavlmConfig().vision_config is RavlmConfig().text_config is None
    assert RavlmConfig(fusion="gated").vision_config.model_type == "vit"
    assert RavlmConfig(vision_config={"model_type": "resnet"}).text_config.model_type == "bert"
