"""A classifier on labelled images, from the command line: with and without neighbours."""

from __future__ import annotations

import json

import pytest
from transformers import pipeline

from hf_ravlm.cli import main
from hf_ravlm.evaluation import evaluate_classifier
from labelled_world import KNOWN, coloured, tiny_classifier


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model, processor, retriever = tiny_classifier()
    model.neighbors.set(50.0, 50.0)
    parts = {"model": model, "processor": processor, "retriever": retriever}
    pipeline("image-classification", **parts).save_pretrained(folder / "model")
    rows = []
    for number, label in enumerate(KNOWN * 2):
        coloured(label, 50 + number).save(folder / f"{number}.png")
        rows.append({"id": f"{number}", "image": f"{number}.png", "label": label})
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "unlabelled.jsonl").write_text(json.dumps({"id": "a", "image": "0.png"}))
    return folder


def command(world, output, data="labelled.jsonl", *words):
    paths = [world / "model", world / data, output]
    return ["evaluate", *map(str, paths), "--task", "image-classification", *words]


def test_figures_with_and_without_neighbours_are_written(world, tmp_path, capsys):
    assert main(command(world, tmp_path, "labelled.jsonl", "--batch_size", "3")) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["num_images"], report["num_classes"]) == (6, 3)
    assert report["arms"]["neighbors"]["top1"]["mean"] == report["arms"]["neighbors"]["macro_recall"] == 1
    assert report["effect"]["harmed"] == 0
    assert "head and neighbours | 1.000" in out
    assert (tmp_path / "report.md").read_text().strip() in out


def test_a_folder_of_folders_is_labelled_by_their_names(world, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for label in KNOWN:
        (tmp_path / "images" / label).mkdir(parents=True)
        coloured(label, 80).save(tmp_path / "images" / label / "one.png")
    found = evaluate_classifier(world / "model", tmp_path / "images", tmp_path / "out", k=3)
    assert found.report["num_images"] == 3
    assert found.report["arms"]["neighbors"]["top1"]["mean"] == 1


def test_mistakes_are_told(world, tmp_path, capsys):
    assert main(command(world, tmp_path, "unlabelled.jsonl")) == 2
    assert "1 rows have no image or no 'label', such as 'a'" in capsys.readouterr().err
    assert main(command(world, tmp_path, "labelled.jsonl", "--arms", "gold")) == 2
    assert "--arms is of questions" in capsys.readouterr().err
