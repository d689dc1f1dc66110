"""`pipeline("object-detection")` with labelled images: what boxes are named by, new classes, batches, bad input."""

from __future__ import annotations

import pytest
from transformers import ObjectDetectionPipeline, pipeline

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmForObjectDetection, RavlmRetriever
from hf_ravlm.errors import InvalidInputError, RavlmError
from hf_ravlm.pipelines import RavlmObjectDetectionPipeline, boxed_entries
from labelled_world import entries
from tiny import tiny_model, tiny_processor
from tiny_detectors import LEFT, LEFT_BOX, RIGHT, PointingDetector, scene, tiny_detector


NOTHING = (0.5, 0.1, 0.05, 0.05)


@pytest.fixture(scope="module")
def encoder():
    return RavlmEncoder(tiny_model().model, tiny_processor())


def detector_with(encoder, family="detr", rows=None, boxes=(LEFT, RIGHT, NOTHING)):
    """A pipeline whose detector points at the two squares, takes both for green, and is sure that they are objects."""
    detector, processor = tiny_detector(family)
    background = [[-2.0], [-2.0], [9.0]] if family == "detr" else [[], [], []]
    logits = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [-9.0, -9.0, -9.0]][: len(boxes)]
    model = RavlmForObjectDetection.from_detector(detector)
    model.detector = PointingDetector(
        detector, list(boxes), [own + more for own, more in zip(logits, background, strict=False)]
    )
    model.neighbors.set(50.0, 50.0)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries() if rows is None else rows), encoder)
    return pipeline("object-detection", model=model, image_processor=processor, retriever=retriever)


@pytest.fixture(params=["detr", "rt_detr"])
def detect(encoder, request):
    return detector_with(encoder, request.param)


def told(detections):
    return [(one["label"], one["box"], [entry["id"] for entry in one["evidence"]]) for one in detections]


def labels_of(detections):
    """The best label of every box."""
    best = {}
    for one in detections:
        best.setdefault(str(one["box"]), one["label"])
    return set(best.values())


def test_boxes_are_named_by_neighbours_and_each_brings_those_it_rests_on(detect):
    assert type(detect) is RavlmObjectDetectionPipeline
    found = detect(scene("red", "blue"), threshold=0.5)
    assert {(one["label"], one["box"]["xmin"] > 40) for one in found} == {("red", False), ("blue", True)}
    for one in found:
        assert {entry["metadata"]["label"] for entry in one["evidence"]} == {one["label"]}
        assert {"id", "image", "score", "licence"} <= set(one["evidence"][0])
        assert one["evidence"]
    alone = detect(scene("red", "blue"), threshold=0.4, k=0)
    assert labels_of(alone) == {"green"}
    assert all(one["evidence"] == [] for one in alone)
    assert labels_of(detect(scene("red", "blue"), threshold=0.4, num_boxes=0)) == {"green"}


def test_a_new_class_comes_with_its_entries_and_goes_with_them(detect):
    assert "white" not in labels_of(detect(scene("white", "blue")))
    detect.retriever.add(entries(["white"], 5))
    assert labels_of(detect(scene("white", "blue"), threshold=0.3)) == {"white", "blue"}
    assert labels_of(detect(scene("red", "blue"), threshold=0.3)) == {"red", "blue"}
    detect.retriever.remove([f"white-{n}" for n in range(5)])
    assert "white" not in labels_of(detect(scene("white", "blue"), threshold=0.3))


def test_batches_lists_and_generators_say_the_same(detect):
    images = [scene("red", "blue"), scene("green", "red"), scene("blue", "blue")]
    each = [told(detect(image)) for image in images]
    assert [told(one) for one in detect(images, batch_size=2)] == each
    assert [told(one) for one in detect(image for image in images)] == each
    assert told(detect(images[0], where={"label": ["red", "green", "blue"]})) == each[0]
    assert detect([]) == []


def test_saved_and_opened_again_it_is_the_same(encoder, tmp_path):
    detector, processor = tiny_detector("yolos")
    model = RavlmForObjectDetection.from_detector(detector)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries(["white", "red"])), encoder)
    detect = pipeline("object-detection", model=model, image_processor=processor, retriever=retriever)
    image = scene("white", "red")
    first = detect(image, threshold=0.05)
    assert first
    detect.save_pretrained(tmp_path)
    again = pipeline("object-detection", model=str(tmp_path), encoder=encoder)
    second = again(image, threshold=0.05)
    assert told(first) == told(second)
    assert [one["score"] for one in first] == pytest.approx([one["score"] for one in second], abs=1e-5)


def test_a_detector_by_its_folder_becomes_one_that_asks(encoder, tmp_path):
    detector, processor = tiny_detector("detr")
    detector.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain = pipeline("object-detection", model=str(tmp_path))
    assert type(plain) is ObjectDetectionPipeline
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries()), encoder)
    retriever.save_pretrained(tmp_path / "entries")
    detect = pipeline(
        "object-detection", model=str(tmp_path), encoder=encoder, knowledge=tmp_path / "entries" / "knowledge_base"
    )
    image = scene("red", "blue")
    ours = [(one["label"], one["box"]) for one in detect(image, threshold=0.1, k=0)]
    theirs = [(one["label"], one["box"]) for one in plain(image, threshold=0.1)]
    assert sorted(ours, key=str) == sorted(theirs, key=str)
    assert any(one["evidence"] for one in detect(image, threshold=0.0))


def objects(left, right):
    return [{"label": left, "box": LEFT_BOX}, {"label": right, "box": [48, 8, 24, 24]}]


def test_how_much_neighbours_count_is_fitted_on_scenes_of_ones_own(encoder):
    detect = detector_with(encoder)
    scenes = [("red", "blue"), ("green", "red"), ("blue", "green")]
    images = [scene(*colours, seed=200 + n) for n, colours in enumerate(scenes)]
    found = detect.fit_neighbors(images, [objects(*colours) for colours in scenes], k=3)
    assert found.accuracy > 0.9
    assert detect.model.neighbors.log_weight.exp().item() == pytest.approx(found.weight, rel=1e-4)
    told = detect(scene("red", "blue", 77), k=3)
    assert {one["label"] for one in told} == {"red", "blue"}


def test_annotated_scenes_become_entries(encoder):
    rows = list(boxed_entries([scene("red", "white")], [objects("red", "white")], name="one"))
    assert [(row["id"], row["label"], row["image"].size) for row in rows] == [
        ("one-0-0", "red", (24, 24)),
        ("one-0-1", "white", (24, 24)),
    ]
    detect = detector_with(encoder, rows=rows)
    assert labels_of(detect(scene("white", "red", 5), threshold=0.3)) == {"red", "white"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "red", "box": [70, 8, 24, 24]}, "lies outside of its image of 80 x 40 pixels"),
        ({"label": "red", "box": {"xmin": -9, "ymin": 0, "xmax": 5, "ymax": 5}}, "lies outside of its image"),
        ({"label": "red", "box": {"xmin": 9, "ymin": 0, "xmax": 5, "ymax": 5}}, "it is empty"),
        ({"label": "red", "box": [1, 2, 3]}, "expected xmin, ymin, xmax, ymax, or four numbers"),
        ({"label": "red", "box": [1, 2, float("nan"), 3]}, "four numbers"),
        ({"label": "red", "box": "here"}, "four numbers"),
        ({"box": LEFT_BOX}, "an object has no 'label'"),
        ({"label": "red"}, "an object has no 'box'"),
        ({"label": "violet", "box": LEFT_BOX}, "'violet' is no class"),
    ],
)
def test_objects_that_cannot_be_are_refused(encoder, entry, message):
    detect = detector_with(encoder)
    with pytest.raises(InvalidInputError, match=message):
        detect.fit_neighbors([scene("red", "blue")], [[entry]])
    if "no class" not in message:
        with pytest.raises(InvalidInputError, match=message):
            list(boxed_entries([scene("red", "blue")], [[entry]]))


def test_numbers_and_places_that_do_not_fit_are_refused(encoder):
    detect = detector_with(encoder)
    with pytest.raises(InvalidInputError, match="1 images came with objects of 0"):
        detect.fit_neighbors([scene("red", "blue")], [])
    far = [{"label": "red", "box": [0, 30, 9, 9]}]
    with pytest.raises(InvalidInputError, match="no box on any of the objects"):
        detect.fit_neighbors([scene("red", "blue")], [far])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "text": "Oslo"}], "has 'label' in its metadata: it seems to be made of passages"),
        ([*entries(["red"]), {"id": "odd", "text": "Oslo"}], "1 of 4 entries have no 'label': 'odd'"),
    ],
)
def test_an_index_without_labels_is_refused(encoder, rows, message):
    with pytest.raises(InvalidInputError, match=message):
        detector_with(encoder, rows=rows)(scene("red", "blue"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresh": 0.3}, "takes no thresh="),
        ({"threshold": 1.5}, "threshold=1.5: expected a number from 0 to 1"),
        ({"k": -1}, "k=-1: expected a whole number of at least 0"),
        ({"where": {"label": "nobody"}}, "No labelled entry is left"),
    ],
)
def test_what_cannot_be_applied_is_refused(encoder, options, message):
    with pytest.raises(InvalidInputError, match=message):
        detector_with(encoder)(scene("red", "blue"), **options)


def test_boxes_outside_of_the_image_are_looked_up_by_what_is_inside_or_not_at_all(encoder):
    detect = detector_with(encoder, boxes=[(0.0, 0.5, 0.8, 0.6), (1.5, 0.5, 0.3, 0.6), NOTHING])
    inside, outside = sorted(detect(scene("red", "blue"), threshold=0.3), key=lambda one: one["box"]["xmin"])
    assert inside["label"] == "red"
    assert outside["label"] == "green"
    assert outside["evidence"] == []


def test_a_broken_image_is_named_or_passed_over(encoder, tmp_path):
    detect = detector_with(encoder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [scene("red", "blue"), str(broken), scene("blue", "red")]
    with pytest.raises(RavlmError, match="input 1"):
        detect(images)
    for size in (1, 3):
        found = detect(images, on_error="skip", batch_size=size)
        assert found[1][0]["error"]
        assert labels_of(found[2]) == {"red", "blue"}


def test_parts_that_do_not_go_together_are_refused(encoder, tmp_path):
    detector, processor = tiny_detector("detr")
    with pytest.raises(InvalidInputError, match="pass image_processor="):
        pipeline("object-detection", model=RavlmForObjectDetection.from_detector(detector))
    with pytest.raises(InvalidInputError, match="turns no outputs into boxes"):
        RavlmObjectDetectionPipeline(
            RavlmForObjectDetection.from_detector(detector), image_processor=tiny_processor().image_processor
        )
    alone = pipeline(
        "object-detection", model=RavlmForObjectDetection.from_detector(detector), image_processor=processor
    )
    with pytest.raises(InvalidInputError, match="nothing to search"):
        alone(scene("red", "blue"), where={"label": "red"})
    with pytest.raises(InvalidInputError, match="nothing to look at"):
        alone()
    with pytest.raises(InvalidInputError, match="finds no objects"):
        RavlmObjectDetectionPipeline(tiny_model(), image_processor=processor)
