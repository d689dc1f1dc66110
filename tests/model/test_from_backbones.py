"""Any backbone: three folders or objects become one model with their own weights in it."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    BertModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import InvalidInputError, RavlmModel, from_backbones
from hf_ravlm.model.backbones import load_generator, load_text_encoder, load_vision_tower, reader_kind
from tiny import assert_same_weights, picture
from tiny_backbones import (
    CAUSAL,
    TEXT,
    VISION,
    WIDTHS,
    causal_model,
    causal_tokenizer,
    multimodal_model,
    text_model,
    vision_model,
)


def image_processor(side: int = 16) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": side, "width": side})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saves a backbone with what belongs to it, once per family: `folders("generator", "gpt2")` is its path."""
    root = tmp_path_factory.mktemp("backbones")
    build = {"vision": vision_model, "text": text_model, "generator": causal_model}

    def folder(role: str, family: str):
        path = root / f"{role}-{family}"
        if not path.exists():
            build[role](family).save_pretrained(path)
            belongs = image_processor(32 if family == "convnext" else 16) if role == "vision" else causal_tokenizer()
            belongs.save_pretrained(path)
        return path

    return folder


def assemble(folders, vision="vit", text="bert", generator="llama", **settings):
    given = folders("vision", vision), str(folders("text", text)), folders("generator", generator)
    return from_backbones(*given, projection_dim=16, **settings)


def inputs_for(processor, **more):
    evidence = [["the capital of Norway is Oslo", "red"], ["white"]]
    return processor(images=[picture(0), picture(1)], text=["what is it?", "red or"], evidence=evidence, **more)


def assert_holds(part, original):
    """`part` has the weights of `original`, and perhaps more rows for new words."""
    kept = original.state_dict()
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor[: len(kept[name])] if tensor.dim() else tensor, kept[name]), name


def assert_reloads(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = inputs_for(processor)
    reread = inputs_for(AutoProcessor.from_pretrained(folder))
    assert inputs.keys() == reread.keys()
    with torch.no_grad():
        torch.testing.assert_close(again(**reread).logits, model(**inputs).logits)
    assert_same_weights(again, model)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_causal_language_model_of_any_family_reads_and_reloads(folders, family, tmp_path):
    model, processor = assemble(folders, generator=family)
    original = causal_model(family)
    old = original.get_input_embeddings().num_embeddings
    assert_holds(model.language_model, original)
    ids = torch.randint(3, old, (1, 9))
    with torch.no_grad():  # the new marks changed nothing for the old words
        torch.testing.assert_close(model.language_model(ids).logits[..., :old], original(ids).logits)
    sequences = model.generate(**inputs_for(processor), max_new_tokens=3, do_sample=False)
    assert sequences.shape[0] == 2
    model(**inputs_for(processor, answers=["Oslo", "red"])).loss.backward()
    assert model.image_projector.weight.grad.abs().sum() > 0
    assert_reloads(model, processor, tmp_path)


@pytest.mark.parametrize("family", VISION)
def test_a_vision_tower_of_any_family_sees_and_reloads(folders, family, tmp_path):
    model, processor = assemble(folders, vision=family)
    original = vision_model(family)
    assert_same_weights(model.model.vision_tower, getattr(original, "vision_model", original))
    features = model.model.get_query_features(**processor.for_retrieval(images=[picture(0), picture(1)]))
    assert features.shape == (2, 16)
    assert not torch.allclose(*features)
    assert_reloads(model, processor, tmp_path)


@pytest.mark.parametrize("family", TEXT)
def test_a_text_encoder_of_any_family_encodes_and_reloads(folders, family, tmp_path):
    model, processor = assemble(folders, text=family, fusion="gated", num_memory_tokens=2)
    original = text_model(family)
    assert_same_weights(model.model.text_encoder, getattr(original, "text_model", original))
    long = "the capital of Norway " * 50  # as long as the encoder can hold, and no longer
    features = model.model.get_query_features(**processor.for_retrieval(texts=["red", long]))
    assert not torch.allclose(*features)
    assert_reloads(model, processor, tmp_path)


def test_model_and_processor_agree(folders):
    model, processor = assemble(folders, generator="gpt2", fusion="gated", num_memory_tokens=3)
    marks = processor.markers
    assert (model.config.image_token_id, model.config.evidence_token_id) == (marks.image, marks.evidence)
    assert (processor.fusion, processor.num_memory_tokens) == ("gated", 3)
    assert processor.max_length == 448  # of 512 positions an eighth is left for the answer
    assert len(processor.tokenizer) == model.get_input_embeddings().num_embeddings
    assert model.config.get_text_config().vocab_size == len(processor.tokenizer)
    assert not model.training


def test_new_parts_start_as_in_a_new_model_and_new_marks_as_the_mean(folders):
    model, processor = assemble(folders, generator="opt", fusion="gated", logit_scale_init=2.0)
    assert model.model.logit_scale.item() == 2.0
    for weight in (model.image_projector.weight, model.model.text_projection.weight):
        assert 0.015 < weight.std().item() < 0.025  # initializer_range
    assert model.image_projector.out_features == 16  # the width of the embeddings, not of the layers
    assert not model.image_projector.bias.any()
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values() if tensor.is_floating_point())
    rows = model.get_input_embeddings().weight
    old = causal_model("opt").get_input_embeddings().weight
    torch.testing.assert_close(rows[processor.markers.evidence], old.mean(dim=0))
    assert len(rows) == len(old) + 5


@pytest.mark.parametrize("fusion", ["concat", "product", "attention", "gated", "cross_attention"])
@pytest.mark.parametrize("family", ["opt", "gpt2"])  # embeddings narrower than layers; positions that are learned
def test_every_fusion_fits_every_width(folders, fusion, family, tmp_path):
    model, processor = assemble(folders, generator=family, fusion=fusion, num_memory_tokens=2)
    assert model.generate(**inputs_for(processor), max_new_tokens=2).shape[0] == 2
    model(**inputs_for(processor, answers=["Oslo", "red"])).loss.backward()
    assert sum(weight.grad.abs().sum() for weight in model.fusion.parameters() if weight.grad is not None) > 0
    with torch.no_grad():
        for weight in model.fusion.parameters():  # gates that start closed are opened
            weight.add_(torch.randn_like(weight), alpha=0.1)
    assert_reloads(model, processor, tmp_path)


def test_tied_embeddings_stay_tied(folders, tmp_path):
    model, _ = assemble(folders, generator="gpt2")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_a_tokenizer_that_has_the_marks_grows_nothing():
    from tiny import tiny_model, tiny_processor

    generator, ours = tiny_model().language_model, tiny_processor()
    before = generator.get_input_embeddings().num_embeddings
    prepared = {"image_processor": image_processor(), "text_tokenizer": ours.text_tokenizer}
    model, processor = from_backbones(
        vision_model("vit"), text_model("bert"), generator, tokenizer=ours.tokenizer, **prepared
    )
    assert len(processor.tokenizer) == len(ours.tokenizer)
    assert model.get_input_embeddings().num_embeddings == before
    assert model.language_model is generator


def test_objects_become_parts_and_heads_are_left_behind():
    torch.manual_seed(0)
    classifier = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **WIDTHS))
    dual = text_model("clip")
    model, processor = from_backbones(
        classifier,
        dual,
        causal_model("llama"),
        image_processor=image_processor(),
        text_tokenizer=causal_tokenizer(),
        tokenizer=causal_tokenizer(),
    )
    assert model.model.vision_tower is classifier.vit
    assert model.model.text_encoder is dual.text_model
    assert processor.max_text_length == 24
    assert model.config.vision_config.model_type == "vit"


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_all_parts_have_one_dtype(folders, tmp_path, dtype):
    causal_model("llama").bfloat16().save_pretrained(tmp_path)
    causal_tokenizer().save_pretrained(tmp_path)
    model, processor = from_backbones(folders("vision", "vit"), folders("text", "bert"), tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert model.generate(**inputs_for(processor), max_new_tokens=2).shape[0] == 2


def test_nothing_saved_tells_where_a_part_came_from(folders, tmp_path):
    model, processor = assemble(folders)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    root = str(folders("vision", "vit").parent)
    for path in tmp_path.rglob("*.json"):
        assert root not in path.read_text(), path.name


def test_the_dual_encoder_alone_loads_from_the_same_folder(folders, tmp_path):
    model, _ = assemble(folders)
    model.save_pretrained(tmp_path)
    encoder = RavlmModel.from_pretrained(tmp_path)
    assert_same_weights(encoder.vision_tower, vision_model("vit"))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    ViTModel(ViTConfig(image_size=16, patch_size=4, **{**WIDTHS, "num_hidden_layers": 1})).save_pretrained(tmp_path)
    ViTConfig(image_size=16, patch_size=4, **WIDTHS).save_pretrained(tmp_path)  # says two layers
    with pytest.raises(InvalidInputError, match="lacks 16 weights of a ViTModel"):
        load_vision_tower(tmp_path)


@pytest.mark.parametrize(
    ("load", "model", "message"),
    [
        (load_generator, lambda: text_model("bert"), "BertModel, which has no head"),
        (load_generator, lambda: vision_model("vit"), "'vit' model, which neither generates text nor reads images"),
        (load_generator, lambda: AutoModel.from_config(T5Config(d_model=8, d_ff=8, num_layers=1)), "encoder-decoder"),
        (load_vision_tower, lambda: text_model("bert"), "BertModel, which reads input_ids"),
        (load_text_encoder, lambda: vision_model("vit"), "ViTModel, which reads pixel_values"),
        (load_text_encoder, lambda: AutoModel.from_config(T5Config(d_model=8, d_ff=8, num_layers=1)), "has a decoder"),
        (load_vision_tower, lambda: Siglip2VisionModel(Siglip2VisionConfig(**WIDTHS)), "flexible resolution"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(load, model, message):
    with pytest.raises(InvalidInputError, match=message):
        load(model())


def test_an_object_from_no_folder_needs_what_prepares_its_inputs():
    with pytest.raises(InvalidInputError, match="give text_tokenizer="):
        from_backbones(vision_model("vit"), text_model("bert"), causal_model("llama"))


def test_types_in_both_mappings_read_images_by_themselves():
    assert reader_kind(multimodal_model("gemma3")[0].config) == "image_text"
    assert reader_kind(causal_model("gemma3_text").config) == "causal"


def test_bert_that_generates_is_a_language_model():
    with pytest.raises(InvalidInputError, match="expected a BertLMHeadModel: load it with AutoModelForCausalLM"):
        load_generator(BertModel(BertConfig(**WIDTHS)))
