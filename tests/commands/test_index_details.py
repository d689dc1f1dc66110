"""What `hf-ravlm index` takes care of: folders of others, terminals, and several spellings."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from hf_ravlm.cli import main
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
    path = tmp_path / "birds.dat"
    rows = [{"id": "owl\x1b]0;x\x07", "text": "big \x1b[31meyes"}, {"id": "möwe", "text": "große Augen, eyes too"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_folder_for_unfinished_work_keeps_what_others_put_there(tmp_path, source, model):
    staging = tmp_path / "scratch"
    (staging / "build").mkdir(parents=True)
    (staging / "notes.txt").write_text("mine")
    words = ("--kind", "jsonl", "--staging", str(staging), "--quiet")
    assert main(["index", "build", str(source), str(tmp_path / "out"), "--model", str(model), *words]) == 0
    assert sorted(path.name for path in staging.iterdir()) == ["build", "notes.txt"]


def test_passages_cannot_steer_the_terminal_and_channels_may_have_commas(tmp_path, source, model, capsys):
    out = str(tmp_path / "out")
    assert main(["index", "build", str(source), out, "--model", str(model), "--format", "jsonl", "--quiet"]) == 0
    capsys.readouterr()
    words = ("--model", str(model), "--channels", "dense,bm25", "-k", "2", "--quiet")
    assert main(["index", "search", out, "eyes", *words]) == 0
    shown = capsys.readouterr().out
    assert "big [31meyes" in shown
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    assert main(["index", "search", out, "eyes", *words, "--json"]) == 0
    written = capsys.readouterr().out
    assert written.isascii()
    record = json.loads(written)
    assert record["channels"] == ["dense", "bm25"]
    assert {one["id"] for one in record["results"]} == {"möwe", "owl\x1b]0;x\x07"}


def test_an_unknown_channel_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["index", "search", "out", "eyes", "--channels", "dense,smell"])
    assert stopped.value.code == 2
    assert "there is no smell; choose from dense" in capsys.readouterr().err
