"""`hf-ravlm explain` writes its figure and says what it found; `hf-ravlm demo` says what it lacks."""

from __future__ import annotations

import json
import socket
import sys

import pytest
from PIL import Image

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.cli import main
from tiny import picture, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with processor and knowledge base."""
    folder = tmp_path_factory.mktemp("reader")
    model, processor = tiny_model(), tiny_processor()
    rows = [{"id": "a", "text": "Oslo", "image": picture(3), "licence": "CC0-1.0"}, {"id": "b", "text": "Chad"}]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), RavlmEncoder(model.model, processor))
    for part in (model, processor, retriever):
        part.save_pretrained(folder)
    picture(0).save(folder / "flag.png")
    return folder


def test_a_figure_is_written_and_told(folder, tmp_path, capsys):
    out = tmp_path / "explained.png"
    asked = ["--image", str(folder / "flag.png"), "--question", "what is the capital ?", "--answer", "Oslo"]
    assert main(["explain", str(folder), *asked, "--out", str(out), "--json", "--k", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["answer"] == "Oslo"
    assert {passage["id"] for passage in record["passages"]} == {"a", "b"}
    assert record["files"] == [str(out)]
    with Image.open(out) as figure:
        assert figure.format == "PNG"
        assert figure.width >= 1040
    assert main(["explain", str(folder), *asked, "--out", str(out), "--k", "0", "--token", "0", "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["what is the capital ?", "-> Oslo"]
    assert said[2].startswith("   the image gives ")
    assert said[3:] == [f"Written: {out}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "figure.jpg"], "a name that ends in .png"),
        (["--out", "nowhere/figure.png"], "there is no folder"),
        (["--layer", "vision_tower.nothing"], "there is no layer 'vision_tower.nothing'"),
        (["--token", "99"], "count from 0"),
        (["--knowledge", "nowhere"], "nowhere"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    given = ["--image", str(folder / "flag.png"), "--out", str(tmp_path / "figure.png"), "--answer", "Oslo"]
    assert main(["explain", str(folder), *given, *options, "--quiet"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_the_demo_names_its_extra(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(folder)]) == 1
    assert 'pip install "hf_ravlm[demo]"' in capsys.readouterr().err


def test_a_port_in_use_is_told(folder, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", str(folder), "--port", str(port)]) == 2
    assert f"--port {port}: it cannot be used" in capsys.readouterr().err
