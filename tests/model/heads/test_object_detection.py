"""Detectors that ask neighbours: every family kept whole, its scores split and joined, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForObjectDetection

from hf_ravlm import RavlmConfig, RavlmForObjectDetection
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.model.heads.object_detection import BoxBeliefs, box_beliefs, box_logits
from tiny import assert_same_weights, tiny_config
from tiny_detectors import FAMILIES, SIDE, tiny_detector


def asked(outputs, label: int, score: float = 0.9):
    """One neighbour for the first box of every image, none for the others."""
    shape = (*outputs.logits.shape[:2], 1)
    scores, labels = torch.full(shape, torch.nan), torch.full(shape, -100)
    scores[:, 0], labels[:, 0] = score, label
    return {"neighbor_scores": scores, "neighbor_labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_kept_whole_and_its_boxes_are_named_by_neighbours(family, tmp_path):
    detector, processor = tiny_detector(family)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        plain = detector(pixels)
        model = RavlmForObjectDetection.from_detector(detector)
        outputs = model(pixels)
        assert type(outputs) is type(plain)
        torch.testing.assert_close(outputs.logits, plain.logits)
        model.neighbors.set(50.0, 5.0)
        joined = model.join(outputs, **asked(outputs, 4), num_labels=5)
    assert isinstance(joined, type(plain))  # so the family's post-processing takes it
    torch.testing.assert_close(joined.class_logits, plain.logits)
    told, alone = (
        processor.post_process_object_detection(one, threshold=0.0, target_sizes=torch.tensor([[40, 80]] * 2))
        for one in (joined, plain)
    )
    assert 4 in told[0]["labels"].tolist()
    assert 3 not in told[0]["labels"][told[0]["scores"] > 1e-3].tolist()  # no neighbour spoke for it
    with torch.no_grad():
        nothing = model.join(outputs, **asked(outputs, -100))
    torch.testing.assert_close(nothing.logits, plain.logits.float())
    again = processor.post_process_object_detection(nothing, threshold=0.0, target_sizes=torch.tensor([[40, 80]] * 2))
    torch.testing.assert_close(again[0]["scores"], alone[0]["scores"])
    model.neighbors.set(2.0, 9.0, 0.5)
    model.new_class.fill_(-4.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is RavlmForObjectDetection
    assert_same_weights(loaded, model)
    assert (loaded.config.id2label, float(loaded.new_class)) == ({0: "red", 1: "green", 2: "blue"}, -4.0)


@pytest.mark.parametrize("family", ["detr", "rt_detr"])
def test_it_learns_as_its_detector_does(family):
    detector, _ = tiny_detector(family)
    model = RavlmForObjectDetection.from_detector(detector).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    torch.manual_seed(0)
    loss = model(torch.randn(1, 3, SIDE, SIDE), labels=labels).loss
    loss.backward()
    assert all(weight.grad is None for weight in model.neighbors.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in detector.parameters())


@pytest.mark.parametrize("with_background", [True, False])
def test_scores_are_objectness_times_class(with_background):
    logits = torch.randn(2, 5, 4 if with_background else 3) * 3
    beliefs = box_beliefs(logits, 3)
    again = box_logits(beliefs, with_background)
    to_scores = (lambda one: one.softmax(-1)) if with_background else torch.sigmoid
    torch.testing.assert_close(to_scores(again), to_scores(logits))
    objectness = beliefs.objectness.exp()
    moved = BoxBeliefs(beliefs.objectness, beliefs.classes + torch.tensor([25.0, 0.0, 0.0]))
    scores = to_scores(box_logits(moved, with_background))[..., :3]
    torch.testing.assert_close(scores.amax(-1), objectness, atol=1e-3, rtol=1e-3)
    assert (scores <= objectness.unsqueeze(-1) + 1e-5).all()  # neighbours name objects, and make none


def test_a_balance_counts_rare_classes_as_much():
    model = RavlmForObjectDetection.from_detector(tiny_detector()[0])
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, SIDE, SIDE))
    shape = (1, outputs.logits.shape[1], 2)
    labels, counts = torch.tensor([3, 4]).expand(shape), torch.tensor([40, 2]).expand(shape)
    told = {"neighbor_scores": torch.tensor([0.9, 0.8]).expand(shape), "neighbor_labels": labels, "num_labels": 5}
    model.neighbors.set(20.0, 5.0, 0.0)
    often = model.join(outputs, **told, neighbor_counts=counts).logits
    model.neighbors.set(20.0, 5.0, 1.0)
    rare = model.join(outputs, **told, neighbor_counts=counts).logits
    assert (often[..., 3] > often[..., 4]).all()
    assert (rare[..., 4] > rare[..., 3]).all()


def test_fitting_trusts_neighbours_as_far_as_they_are_right_and_leaves_room_for_new_classes():
    torch.manual_seed(0)
    model = RavlmForObjectDetection.from_detector(tiny_detector()[0])
    labels = torch.randint(0, 3, (60,))
    sure = torch.nn.functional.one_hot(labels, 3).float().mul(8).log_softmax(-1)  # the detector is right and sure
    told = torch.stack([labels, labels, (labels + 1) % 3], dim=1)
    scores = torch.tensor([[0.9, 0.8, 0.3]]).expand(60, 3)
    found = model.fit_neighbors(sure, scores, told, labels)
    assert found.accuracy == 1.0
    assert model.neighbors.log_weight.exp().item() == pytest.approx(found.weight, rel=1e-4)
    assert float(model.new_class) == found.new_class
    hidden = sure.scatter(1, labels[:, None], -1e4)
    new = {"neighbor_scores": scores[:, None], "neighbor_labels": torch.full((60, 1, 3), 3), "num_labels": 4}
    outputs = model.detector(torch.randn(1, 3, SIDE, SIDE))
    logits = torch.cat([hidden, torch.full((60, 1), -3.0)], dim=-1)[:, None]
    joined = model.join(type(outputs)(logits=logits, pred_boxes=torch.rand(60, 1, 4)), **new).logits
    assert (joined[:, 0, :4].argmax(-1) == 3).all()  # a class that comes later wins where neighbours agree


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbor_scores": torch.zeros(1, 2, 1)}, r"expected \(1, 6, K\) each"),
        ({"neighbor_labels": torch.full((1, 6, 1), 3)}, "of class 3: expected 0 to 2"),
    ],
)
def test_neighbours_that_do_not_fit_are_refused(changes, message):
    model = RavlmForObjectDetection.from_detector(tiny_detector()[0])
    outputs = model(torch.randn(1, 3, SIDE, SIDE))
    given = {"neighbor_scores": torch.zeros(1, 6, 1), "neighbor_labels": torch.zeros(1, 6, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        model.join(outputs, **{**given, **changes})


def test_what_is_no_detector_is_refused():
    with pytest.raises(InvalidInputError, match="no queries with boxes"):
        RavlmForObjectDetection.from_detector(tiny_detector()[0].model)  # the body, without its head
    with pytest.raises(InvalidInputError, match="no detector_config"):
        RavlmForObjectDetection(tiny_config())
    with pytest.raises(InvalidInputError, match="no such folder"):
        RavlmForObjectDetection.from_detector("no/such/folder/at/all")
    assert RavlmConfig().detector_config is None
