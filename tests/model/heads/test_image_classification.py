"""The classifier as a model of transformers: its formula, its sources of classes, saving, Auto classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_ravlm import RavlmForConditionalGeneration, RavlmForImageClassification, RavlmModel
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.model.heads.neighbors import fit_neighbors, join_neighbors
from tiny import assert_same_weights, tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RavlmForImageClassification(tiny_config(id2label={0: "a", 1: "b", 2: "c"})).eval()


def by_hand(logits, scores, labels, weight, sharpness, counts, balance):
    """The formula with loops."""
    joined = np.array(logits, np.float64)
    for row in range(len(joined)):
        for score, label, count in zip(scores[row], labels[row], counts[row]):
            if label >= 0:
                joined[row, label] += weight * count**-balance * np.exp(-sharpness * (1 - score))
    return joined


@pytest.mark.parametrize(("weight", "sharpness", "balance"), [(1.0, 5.5, 0.0), (3.0, 0.5, 1.0), (0.1, 50.0, 0.5)])
def test_the_formula_is_that_of_its_oracle(weight, sharpness, balance):
    draw = np.random.default_rng(0)
    logits, scores = draw.normal(size=(5, 4)), draw.uniform(-1, 1, (5, 6))
    labels, counts = draw.integers(-1, 4, (5, 6)), draw.integers(1, 9, (5, 6))
    labels[labels < 0] = -100
    found = join_neighbors(
        torch.tensor(logits),
        torch.tensor(scores),
        torch.tensor(labels),
        weight,
        sharpness,
        torch.tensor(counts),
        balance,
    )
    expected = by_hand(logits, scores, labels, weight, sharpness, counts, balance)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=1e-4)


def test_places_without_a_neighbour_count_for_nothing_whatever_stands_there(model):
    pixels = torch.randn(2, 3, 16, 16)
    alone = model(pixel_values=pixels).logits
    nothing = {"neighbor_scores": torch.full((2, 2), torch.nan), "neighbor_labels": torch.full((2, 2), -100)}
    torch.testing.assert_close(model(pixel_values=pixels, **nothing).logits, alone)
    none = {"neighbor_scores": torch.zeros(2, 0), "neighbor_labels": torch.zeros(2, 0, dtype=torch.long)}
    torch.testing.assert_close(model(pixel_values=pixels, **none).logits, alone)


def test_it_returns_what_the_family_returns_and_learns_by_labels(model):
    pixels, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    neighbors = {"neighbor_scores": torch.rand(4, 2), "neighbor_labels": torch.tensor([[0, 1]] * 4)}
    outputs = model(pixel_values=pixels, labels=labels, **neighbors)
    assert isinstance(outputs, ImageClassifierOutput)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    outputs.loss.backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {"class_head.weight", "class_head.log_scale", "neighbors.log_weight", "neighbors.log_sharpness"} <= learned
    model.zero_grad()
    embeds = model(image_embeds=outputs.image_embeds, **neighbors)
    torch.testing.assert_close(embeds.logits, outputs.logits)


def test_a_new_class_has_its_row_in_the_call(model):
    pixels = torch.randn(2, 3, 16, 16)
    plain = model(pixel_values=pixels)
    more = model(pixel_values=pixels, new_class_embeds=3 * plain.image_embeds[:1].detach())
    torch.testing.assert_close(more.logits[:, :3], plain.logits)
    scale = model.class_head.log_scale.exp()
    torch.testing.assert_close(more.logits[0, 3], scale, atol=1e-3, rtol=1e-3)  # the cosine with itself is 1


def test_names_make_a_zero_shot_head(tmp_path):
    dual, processor = tiny_model().model, tiny_processor()
    model = RavlmForImageClassification.from_dual_encoder(dual, ["red", "white"], processor, class_prompt="it is {}")
    assert model.model is dual
    inputs = processor.for_retrieval(texts=["it is red", "it is white"])
    texts = dual.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    outputs = model(pixel_values=torch.randn(3, 3, 16, 16))
    expected = dual.get_logit_scale() * outputs.image_embeds @ texts.mT
    torch.testing.assert_close(outputs.logits, expected, atol=1e-4, rtol=1e-4)
    model.neighbors.set(2.0, 9.0, 0.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is RavlmForImageClassification
    assert_same_weights(loaded, model)
    assert loaded.config.id2label == {0: "red", 1: "white"}
    assert loaded.config.class_prompt == "it is {}"
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["RavlmForImageClassification"]


def test_other_classes_take_their_own_weights_from_its_folder_silently(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    loaded, report = RavlmModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    reader = RavlmForConditionalGeneration(tiny_config())
    reader.save_pretrained(tmp_path / "reader")
    _, report = RavlmForImageClassification.from_pretrained(tmp_path / "reader", output_loading_info=True)
    assert not report["unexpected_keys"]


def test_fitting_finds_what_neighbours_are_worth():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (60,))
    logits = torch.randn(60, 3)
    told = torch.stack([labels, labels, (labels + 1) % 3], dim=1)
    scores = torch.tensor([[0.9, 0.8, 0.3]]).expand(60, 3)
    found = fit_neighbors(logits, scores, told, labels)
    joined = join_neighbors(logits, scores, told, found.weight, found.sharpness)
    assert found.accuracy == 1.0
    assert (joined.argmax(-1) == labels).all()
    wrong = fit_neighbors(torch.nn.functional.one_hot(labels, 3) * 0.5, scores, (told + 1) % 3, labels)
    assert wrong.accuracy == 1.0  # neighbours that mislead count for nearly nothing


def test_balance_lifts_a_rare_class():
    scores, labels = torch.full((1, 4), 0.9), torch.tensor([[0, 0, 0, 1]])
    counts = torch.tensor([[30, 30, 30, 1]])
    assert join_neighbors(torch.zeros(1, 2), scores, labels, 1.0, 5.0, counts).argmax() == 0
    assert join_neighbors(torch.zeros(1, 2), scores, labels, 1.0, 5.0, counts, 1.0).argmax() == 1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, "no labels came"),
        (["a", "a"], {}, "'a' occurs twice"),
        (["a", 3], {}, "the label 3 is no name"),
        (["a", " "], {}, "is no name"),
        (["a", "b"], {"class_embeds": torch.zeros(3, 16)}, r"shape \(3, 16\) came with 2 labels"),
        (["a", "b"], {"processor": tiny_processor(), "class_prompt": "a photo"}, "in the place of a class's name"),
    ],
)
def test_a_head_that_cannot_be_is_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        RavlmForImageClassification.from_dual_encoder(tiny_model().model, labels, **options)


def test_a_model_of_another_kind_is_refused(model):
    with pytest.raises(InvalidInputError, match="expected a RavlmModel"):
        RavlmForImageClassification.from_dual_encoder(tiny_model(), ["a"])
    with pytest.raises(ValueError, match="got neither"):
        model()
    with pytest.raises(ValueError, match="in half"):
        model(pixel_values=torch.zeros(1, 3, 16, 16), neighbor_scores=torch.zeros(1, 1))
    with pytest.raises(ValueError, match="expected numbers above 0"):
        model.neighbors.set(0, 1)
