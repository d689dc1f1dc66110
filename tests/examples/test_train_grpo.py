"""Reinforcement as a user starts it, at tiny size: two steps, a curve, and a second call that goes on."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from reading_world import colour_retriever, rows
from tiny import picture, tiny_model, tiny_processor


pytest.importorskip("trl", reason='needs trl: pip install -e ".[dev]"')
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_rewards_train_a_reader_and_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    model, processor = tiny_model(), tiny_processor()
    for part in (model, processor, colour_retriever(model, processor)):
        part.save_pretrained(tmp_path / "model")
    lines = []
    for number, row in enumerate(rows(8)):
        row.pop("image").save(tmp_path / f"{number}.png")
        lines.append(json.dumps({**row, "image": str(tmp_path / f"{number}.png")}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    told = ["--dataset", str(tmp_path / "rows.jsonl"), "--eval_dataset", str(tmp_path / "rows.jsonl")]
    told += ["--answer_column", "answer", "--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    size = ["--first_steps", "1", "--batch", "4", "--generations", "2", "--test_questions", "4", "--save_steps", "1"]

    def run(steps: int) -> dict:
        monkeypatch.setattr(sys, "argv", ["train_grpo.py", *told, *size, "--steps", str(steps)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        runpy.run_path(str(EXAMPLES / "train_grpo.py"), run_name="__main__")
        return json.loads((tmp_path / "out" / "grpo.json").read_text())

    run(1)
    written = (tmp_path / "out" / "start" / "model.safetensors").stat().st_mtime_ns
    found = run(2)
    assert (tmp_path / "out" / "start" / "model.safetensors").stat().st_mtime_ns == written
    assert [line["step"] for line in found["curve"]] == [1, 2]
    assert all(0 <= line["searches"] <= 1 for line in found["curve"])
    assert set(found["before"]) == set(found["after"]) == {"exact_match", "searches", "searches_where_told"}
    assert Image.open(tmp_path / "out" / "grpo.png").size[0] > 100
    (answer,) = pipeline("image-to-text", model=str(tmp_path / "out"), max_new_tokens=2)(picture(0), question="kite ?")
    assert answer["evidence"]
