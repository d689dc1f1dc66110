"""A detector on annotated images, from the command line: with and without entries; COCO's measures."""

from __future__ import annotations

import json

import pytest
from transformers import pipeline

from hf_ravlm import DetectionCollator, KnowledgeBase, RavlmEncoder, RavlmForObjectDetection, RavlmRetriever
from hf_ravlm.cli import main
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics.detection import mean_average_precision
from labelled_world import entries
from tiny import tiny_model, tiny_processor
from tiny_detectors import LEFT_BOX, scene, tiny_detector


pytest.importorskip("pycocotools", reason='pip install "hf_ravlm[detection]"')
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def box(*edges):
    return dict(zip(CORNERS, edges, strict=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model, processor = tiny_model(), tiny_processor()
    for part in (model, processor):
        part.save_pretrained(folder / "encoder")
    detector, image_processor = tiny_detector("detr")
    retriever = RavlmRetriever.build(
        KnowledgeBase.from_dicts(entries(["red", "white"])), RavlmEncoder(model.model, processor)
    )
    made = RavlmForObjectDetection.from_detector(detector)
    pipe = pipeline("object-detection", model=made, image_processor=image_processor, retriever=retriever)
    pipe.save_pretrained(folder / "detector")
    (folder / "images").mkdir()
    rows = []
    for number in range(3):
        scene("red", "white", number).save(folder / "images" / f"{number}.png")
        objects = {"bbox": [[8, 8, 24, 24], [48, 8, 24, 24]], "category": ["red", "white"]}
        rows.append({"file_name": f"{number}.png", "objects": objects})
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(world, output, *words):
    return [
        "evaluate",
        str(world / "detector"),
        str(world / "images"),
        str(output),
        "--task",
        "object-detection",
        *words,
    ]


def test_figures_with_and_without_entries_are_written(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = tiny_model().model, tiny_processor()
    monkeypatch.setattr("hf_ravlm.pipelines.image_to_text.find_retriever", lambda *_: built(world, *found))
    assert main(command(world, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["num_images"], report["num_objects"], report["new_classes"]) == (3, 6, ["white"])
    assert set(report["arms"]) == {"detector", "neighbors"}
    assert report["arms"]["detector"]["new"]["map50"] == 0
    assert "| with entries | new |" in out
    assert main(command(world, tmp_path / "out", "--arms", "gold")) == 2
    assert "a detector is shown labelled images alone" in capsys.readouterr().err


def built(world, dual, processor):
    return RavlmRetriever.from_pretrained(world / "detector", encoder=RavlmEncoder(dual, processor))


def test_average_precision_by_hand():
    there = [[{"label": "kite", "box": box(0, 0, 10, 10)}, {"label": "owl", "box": box(20, 0, 30, 10)}], []]
    right, wrong = {"label": "kite", "box": box(0, 0, 10, 10)}, {"label": "kite", "box": box(40, 0, 50, 10)}
    found = [[{**right, "score": 0.5}], [{**wrong, "score": 0.9}]]
    kites = mean_average_precision(there, found, ["kite"])
    assert kites["map50"] == pytest.approx(0.5, abs=1e-6)  # the wrong one is surer
    assert mean_average_precision(there, found)["map50"] == pytest.approx(0.25, abs=1e-6)
    assert mean_average_precision(there, [[], []])["map50"] == 0
    half = [
        [{"label": "kite", "box": box(0, 0, 10, 6.2), "score": 0.5}],
        [],
    ]  # overlaps by .62: three of ten thresholds
    told = mean_average_precision(there, half, ["kite"])
    assert (told["map50"], told["map"]) == (pytest.approx(1, abs=1e-6), pytest.approx(0.3, abs=1e-6))
    with pytest.raises(InvalidInputError, match="no object of these classes"):
        mean_average_precision(there, found, ["heron"])
    with pytest.raises(InvalidInputError, match="detections of 1 images came with objects of 2"):
        mean_average_precision(there, [[]])


def test_batches_of_annotated_images_are_what_detectors_learn_from():
    detector, image_processor = tiny_detector("detr")
    collator = DetectionCollator(image_processor=image_processor, labels=["red", "green", "blue"])
    rows = [{"image": scene("red", "blue"), "objects": [{"label": "blue", "box": [48, 8, 24, 24]}]}]
    batch = collator(rows)
    assert batch["labels"][0]["class_labels"].tolist() == [2]
    assert batch["labels"][0]["boxes"][0].tolist() == pytest.approx([0.75, 0.5, 0.3, 0.6])
    assert detector.train()(**batch).loss.isfinite()
    for entry, message in (
        ({"label": "heron", "box": LEFT_BOX}, "'heron' is no class of the detector"),
        ({"label": "red", "box": [70, 8, 24, 24]}, "lies outside of its image"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            collator([{"image": scene("red", "blue"), "objects": [entry]}])
