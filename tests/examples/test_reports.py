"""The cards of reports are what their programs write of the reports that lie beside them."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
CARDS = ["detection", "few_shot"]


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_its_report_says(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    shutil.copy(ROOT / "examples" / name / "report.json", tmp_path)
    import_module(f"{name}.card").write_card(tmp_path)
    written = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert written == (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    for line in written.splitlines():
        if line.startswith("!["):
            assert (ROOT / "model_cards" / line.split("](")[1].rstrip(")")).is_file()


@pytest.mark.parametrize("name", ["closed_set", "compression"])
def test_a_card_of_the_flags_says_what_its_report_says(name, tmp_path):
    module = import_module(f"flags.{name}")
    report = json.loads((ROOT / "examples" / "flags" / f"{name}.json").read_text())
    module.write_card(report, tmp_path / module.CARD)
    assert (tmp_path / module.CARD).read_text("utf-8") == (ROOT / "model_cards" / module.CARD).read_text("utf-8")


def test_the_card_of_the_fusions_says_what_its_reports_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    lines = (ROOT / "benchmarks" / "fusions.jsonl").read_text(encoding="utf-8").splitlines()
    card = import_module("fusions_card").card_text(map(json.loads, lines), "flags_fusions.png")
    assert card == (ROOT / "model_cards" / "flags_fusions.md").read_text(encoding="utf-8")
    assert (ROOT / "model_cards" / "flags_fusions.png").is_file()
