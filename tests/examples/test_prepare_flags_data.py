"""The script that makes the flags data, run as a person runs it, on a source of three small pictures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flags.world import load_world


SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "flags" / "prepare_data.py"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = []
    for entity, view in [("aa", "twemoji"), ("aa", "mledoze"), ("bb", "mledoze")]:
        name = f"{entity}__{view}.png"
        Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).save(folder / name)
        split = "train" if entity == "aa" else "test"
        pictures.append({"file_name": name, "entity": entity, "view": view, "role": "query", "split": split})
    write(folder / "metadata.jsonl", pictures)
    entities = [{"id": "aa", "name": "Åland", "secret": 1}, {"id": "bb", "name": "Brobdingnag"}]
    write(folder / "kb.jsonl", entities)
    write(folder / "vqa.jsonl", [{"entity": "aa", "type": "name", "question": "Whose?", "answer": ["Åland"], "x": 1}])
    return folder


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def run(source, out):
    command = [sys.executable, str(SCRIPT), "--source", str(source), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_pixels_survive_and_columns_are_chosen(source, tmp_path):
    result = run(source, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    table = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert [row["file_name"] for row in table] == ["aa__mledoze.webp", "aa__twemoji.webp", "bb__mledoze.webp"]
    for row in table:
        with Image.open(source / f"{row['entity']}__{row['view']}.png") as original:
            with Image.open(io.BytesIO(row["image"]["bytes"])) as copy:
                assert copy.format == "WEBP"
                np.testing.assert_array_equal(np.asarray(original), np.asarray(copy.convert("RGB")))
    first = json.loads((tmp_path / "out" / "kb.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["name"] == "Åland"
    assert first["capital"] is None
    assert "secret" not in first
    assert set(json.loads((tmp_path / "out" / "licences.json").read_text(encoding="utf-8"))["images"]) == {
        "mledoze",
        "twemoji",
    }
    assert "3 pictures" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_twice_gives_the_same_bytes(source, tmp_path):
    for name in ["one", "two"]:
        assert run(source, tmp_path / name).returncode == 0
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ["one", "two"])
    assert first == second
    assert len(first) == 5
    assert str(tmp_path).encode() not in b"".join(first.values())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "aa__mledoze.png").unlink(), "aa__mledoze.png"),
        (lambda folder: (folder / "vqa.jsonl").unlink(), "vqa.jsonl"),
        (lambda folder: Image.new("L", (4, 4)).save(folder / "bb__mledoze.png"), "has the mode L"),
        (lambda folder: write(folder / "kb.jsonl", [{"id": "aa", "name": "Åland"}]), r"lacks: ['bb']"),
        (lambda folder: write(folder / "kb.jsonl", [{"id": "aa"}, {"id": "aa"}]), "an id twice"),
    ],
)
def test_errors_name_the_culprit(source, tmp_path, spoil, message):
    spoil(source)
    result = run(source, tmp_path / "out")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_shipped_data_is_what_the_script_writes_for_people():
    """README.md and licences.json follow from the code; they must not be edited by hand nor fall behind it."""
    from flags.attribution import LICENCES, render_readme
    from flags.world import DATA

    world = load_world()
    views = [view for _, view in world.images]
    counts = {view: views.count(view) for view in sorted(set(views))}
    readme = render_readme(counts, len(world.entities), len(world.questions))
    assert (DATA / "README.md").read_text(encoding="utf-8") == readme
    assert world.licences == LICENCES
