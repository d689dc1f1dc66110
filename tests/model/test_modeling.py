"""Laws of the two models: masks, batches, caches, backbones, checkpoints."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForImageTextToText

from hf_ravlm import RavlmForConditionalGeneration, RavlmModel
from hf_ravlm.model.modeling_ravlm import info_nce
from tiny import (
    FUSIONS,
    VISION,
    WIDTHS,
    assert_same_weights,
    picture,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)


QUESTIONS = ["what is the capital ?", "red or white of this country ?"]
EVIDENCE = [
    [{"text": "the capital of Norway is Oslo", "score": 0.9}, {"text": "red white", "score": 0.1}],
    [{"text": "the capital of Chad is N'Djamena", "score": 0.7}],
]


def inputs_for(fusion: str, evidence=EVIDENCE, **settings):
    processor = tiny_processor(fusion=fusion, **settings)
    return processor(images=[picture(0), picture(1)], text=QUESTIONS, evidence=evidence)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_a_batch_generates_what_its_rows_generate_alone(fusion, options):
    model = tiny_model(fusion=fusion)
    inputs = inputs_for(fusion)
    together = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)[
        :, inputs["input_ids"].shape[1] :
    ]
    processor = tiny_processor(fusion=fusion)
    for row in range(2):
        single = processor(images=[picture(row)], text=[QUESTIONS[row]], evidence=[EVIDENCE[row]])
        alone = model.generate(**single, max_new_tokens=6, do_sample=False, **options)[
            :, single["input_ids"].shape[1] :
        ]
        assert together[row, : alone.shape[1]].tolist() == alone[0].tolist()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_caches_change_nothing_and_sampling_follows_the_seed(fusion):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    greedy = [model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*greedy)
    samples = []
    for _ in range(2):
        torch.manual_seed(3)
        samples.append(model.generate(**inputs, max_new_tokens=6, do_sample=True, num_return_sequences=2))
    assert torch.equal(*samples)
    assert len(samples[0]) == 4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_masked_evidence_is_no_evidence(fusion):
    model = tiny_model(fusion=fusion)
    inputs, closed = inputs_for(fusion), inputs_for(fusion, evidence=None)
    with torch.no_grad():
        open_logits = model(**inputs).logits[:, -1]
        inputs["evidence_mask"] = torch.zeros_like(inputs["evidence_mask"])
        masked_logits, closed_logits = model(**inputs).logits[:, -1], model(**closed).logits[:, -1]
    torch.testing.assert_close(masked_logits, closed_logits, atol=1e-6, rtol=0)
    assert (open_logits - closed_logits).abs().max() > 1e-4  # the evidence does matter
    generated = [
        model.generate(**given, max_new_tokens=5, do_sample=False)[:, given["input_ids"].shape[1] :]
        for given in (inputs, closed)
    ]
    assert torch.equal(*generated)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_masked_passage_is_a_passage_that_was_not_given(fusion):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion)
    asked = {"images": [picture(0)], "text": [QUESTIONS[0]]}
    three = processor(**asked, evidence=[["red white", "of Chad", "the capital of Norway"]])
    three["evidence_mask"][0, 1] = False
    two = processor(**asked, evidence=[["red white", "the capital of Norway"]])
    with torch.no_grad():
        torch.testing.assert_close(model(**three).logits[:, -1], model(**two).logits[:, -1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_pictures_of_passages_are_read(fusion):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion, passage_images=True)

    def answer(*pictures):
        passages = [{"text": "red white", "image": picture} for picture in pictures]
        inputs = processor(images=[picture(9)], text=["red ?"], evidence=[passages])
        model.generate(**inputs, max_new_tokens=2, num_beams=2)
        with torch.no_grad():
            return model(**inputs).logits[:, -1]

    picture_of, without = picture, None
    first = answer(picture_of(0), without)
    assert not torch.allclose(first, answer(picture_of(1), without), atol=1e-6)
    assert not torch.allclose(first, answer(without, without), atol=1e-6)
    plain = tiny_processor(fusion=fusion)(images=[picture(9)], text=["red ?"], evidence=[["red white"] * 2])
    with torch.no_grad():
        torch.testing.assert_close(answer(without, without), model(**plain).logits[:, -1])


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "in_context"])
def test_passages_encoded_once_serve_as_if_encoded_now(fusion):
    model, inputs = tiny_model(fusion=fusion), inputs_for(fusion)
    with torch.no_grad():
        now = model(**inputs).logits
        ids, mask = inputs.pop("evidence_input_ids"), inputs.pop("evidence_attention_mask")
        states, token_mask = model.encode_evidence(ids, mask)
        later = model(**inputs, evidence_states=states, evidence_token_mask=token_mask).logits
    torch.testing.assert_close(later, now)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_evidence_and_no_image_are_legal(fusion):
    model = tiny_model(fusion=fusion)
    processor = tiny_processor(fusion=fusion)
    nothing = processor(text=["red ?"], evidence=[[]])
    assert "pixel_values" not in nothing
    assert "evidence_scores" not in nothing
    assert model.generate(**nothing, max_new_tokens=3, do_sample=False).shape[0] == 1
    with_evidence = processor(text=["red ?"], evidence=[["red white"]])
    assert model.generate(**with_evidence, max_new_tokens=3, do_sample=False).shape[0] == 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_trainable_part_of_the_reader_gets_a_gradient(fusion):
    model = tiny_model(fusion=fusion).train()
    processor = tiny_processor(fusion=fusion)
    inputs = processor(images=[picture(0)], text=["red ?"], evidence=[["red white"]], answers=["white"])
    model(**inputs).loss.backward()
    reader_parts = ("language_model.", "image_projector.", "fusion.")
    idle = [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(reader_parts) and (parameter.grad is None or not parameter.grad.abs().sum())
    ]
    assert idle == []


def test_loss_is_the_mean_over_answer_tokens_alone():
    model = tiny_model()
    inputs = tiny_processor()(images=[picture(0)], text=["red ?"], evidence=[["red white"]], answers=["white"])
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits
        loss = model(**inputs, labels=labels).loss
    log_probs = logits[:, :-1].log_softmax(-1)
    positions = [t for t in range(labels.shape[1] - 1) if labels[0, t + 1] != -100]
    by_hand = -sum(log_probs[0, t, labels[0, t + 1]] for t in positions) / len(positions)
    torch.testing.assert_close(loss, by_hand)
    assert positions[0] == int(
        (inputs["input_ids"][0] == tiny_tokenizer().convert_tokens_to_ids("<answer>")).nonzero()
    )


def test_wrong_number_of_placeholders_is_explained():
    model, inputs = tiny_model(), inputs_for("in_context")
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match="hold 8 <image> tokens, the inputs give 4 states"):
        model(**inputs)


@pytest.mark.parametrize(
    "vision",
    [
        VISION,
        {**VISION, "model_type": "clip_vision_model"},
        {**VISION, "model_type": "siglip_vision_model"},
        {**VISION, "model_type": "dinov2_with_registers"},
        {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    ],
    ids=lambda vision: vision["model_type"],
)
def test_any_vision_tower(vision):
    model = tiny_model(vision_config=vision, pooling_grid=2)
    inputs = inputs_for("in_context")
    assert model.model.get_image_features(inputs["pixel_values"]).pooler_output.shape == (2, 16)
    assert model(**inputs).image_hidden_states.shape == (2, 4, 32)


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2", "gemma2"])
def test_any_causal_language_model(family):
    vocab_size = len(tiny_tokenizer())
    names = {
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
        "opt": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32},
    }.get(family, {**WIDTHS, "num_key_value_heads": 2, "head_dim": 8})
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": vocab_size}
    if family == "opt":
        special["word_embed_proj_dim"] = 32
    model = tiny_model(generator_config={"model_type": family, **names, **special})
    inputs = inputs_for("in_context")
    row = tiny_processor()(images=[picture(1)], text=[QUESTIONS[1]], evidence=[EVIDENCE[1]])
    together = model.generate(**inputs, max_new_tokens=4, do_sample=False)[1, inputs["input_ids"].shape[1] :]
    alone = model.generate(**row, max_new_tokens=4, do_sample=False)[0, row["input_ids"].shape[1] :]
    assert together.tolist()[: len(alone)] == alone.tolist()


def test_queries_combine_picture_and_words_per_row():
    model, processor = tiny_model().model, tiny_processor()
    mixed = processor.for_retrieval(images=[picture(0), None, picture(1)], texts=["red", "white", None])
    with torch.no_grad():
        vectors = model.get_query_features(**mixed)
        image_only = model.get_query_features(**processor.for_retrieval(images=[picture(1)]))
        text_only = model.get_query_features(**processor.for_retrieval(texts=["white"]))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(vectors[2], image_only[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors[1], text_only[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="nothing to embed"):
        model.get_query_features()


def test_one_checkpoint_gives_reader_and_dual_encoder_without_a_warning(tmp_path, caplog):
    reader = tiny_model(fusion="gated")
    reader.save_pretrained(tmp_path)
    inputs = inputs_for("gated")
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        encoder, encoder_report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        loaded, reader_report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(encoder, RavlmModel)
    assert isinstance(loaded, RavlmForConditionalGeneration)
    for report in (encoder_report, reader_report):
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    assert caplog.text == ""
    assert_same_weights(encoder, reader.model)
    assert_same_weights(loaded, reader)
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(encoder.get_query_features(pixels), reader.model.get_query_features(pixels))
        torch.testing.assert_close(loaded.eval()(**inputs).logits, reader(**inputs).logits)


def test_an_interrupted_save_leaves_the_previous_model(tmp_path, monkeypatch):
    first, second = tiny_model(seed=0), tiny_model(seed=1)
    first.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        second.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    second.save_pretrained(tmp_path)
    loaded = RavlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.image_projector.weight, second.image_projector.weight)


def test_sharded_then_whole_leaves_no_stale_weights(tmp_path):
    tiny_model(seed=0).save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    whole = tiny_model(seed=1)
    whole.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    loaded = RavlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.image_projector.weight, whole.image_projector.weight)


def test_config_of_a_loaded_model_keeps_its_shim_when_saved_again(tmp_path):
    tiny_model().save_pretrained(tmp_path / "a")
    RavlmForConditionalGeneration.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "ravlm_hub.py").read_text() == (tmp_path / "a" / "ravlm_hub.py").read_text()
    assert "def " not in (tmp_path / "b" / "ravlm_hub.py").read_text()  # a shim, no copied code
    assert tiny_config().to_dict()["model_type"] == "ravlm"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_prompts_of_different_lengths_are_read_in_groups_and_answered_alike(fusion):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion)
    asked = {"images": [picture(n) for n in range(4)], "text": ["red ?", "red " * 40, "is of ?", "white " * 35]}
    inputs = processor(**asked, evidence=[["red"], [], ["white red", "of"], ["is"]])
    sent = []
    read = model.language_model.forward

    def counting(**kwargs):
        sent.append(kwargs["inputs_embeds"].shape[:2].numel())
        return read(**kwargs)

    model.language_model.forward = counting
    together = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    if fusion != "cross_attention":  # whose layers see other rows of evidence
        decoded = 3 * 4  # the first of four new tokens comes with the prompt
        assert 1 - inputs["attention_mask"].sum() / (sum(sent) - decoded) <= 0.15
    for row in range(4):
        one = {name: values[row : row + 1] for name, values in asked.items()}
        alone = processor(**one, evidence=[[["red"], [], ["white red", "of"], ["is"]][row]])
        sequence = model.generate(**alone, max_new_tokens=4, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert together[row, : len(sequence)].tolist() == sequence.tolist()


def test_info_nce_equals_the_sum_written_out():
    torch.manual_seed(0)
    queries = F.normalize(torch.randn(4, 8, dtype=torch.float64), dim=-1)
    passages = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=-1)
    labels, passage_labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 0, 5])
    total = 0.0
    for i in range(4):
        terms = [
            math.exp(7.0 * float(queries[i] @ passages[j]))
            for j in range(6)
            if j == i or labels[i] != passage_labels[j]
        ]
        total -= math.log(math.exp(7.0 * float(queries[i] @ passages[i])) / sum(terms))
    loss = info_nce(queries, passages, 7.0, labels, passage_labels)
    assert loss.item() == pytest.approx(total / 4, abs=1e-5)


def test_duplicates_cost_half_log_two_unless_masked():
    embeds = torch.eye(4)[[0, 0, 1, 2]]
    labels = torch.tensor([0, 0, 1, 2])
    assert info_nce(embeds, embeds, 1000.0).item() == pytest.approx(0.5 * math.log(2), abs=1e-6)
    assert info_nce(embeds, embeds, 1000.0, labels, labels).item() == pytest.approx(0.0, abs=1e-6)
