"""Image-text-to-text readers of every family, by name, by folder and as objects: thirteen checks, and their page."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from reader_checks import CHECKS, Reader, measure
from tiny_readers import FAMILIES, REFUSED, TYPES


PAGE = Path(__file__).parents[2] / "docs" / "readers.md"
SMOKE = ("blip-2", "gemma3", "llava_onevision", "llama4", "qwen3_5", "qwen3_vl", "smolvlm")


@pytest.mark.parametrize("model_type", [pytest.param(n, marks=() if n in SMOKE else pytest.mark.slow) for n in TYPES])
def test_a_reader_passes_every_check_or_says_in_one_line_why_not(hub, running, tmp_path, model_type):
    reason = REFUSED.get(model_type, "")
    if reason in ("timm", "torchvision") and importlib.util.find_spec(reason):
        pytest.skip(f"{reason} is here, and not missing")
    reader = Reader(model_type, tmp_path, hub=hub, client=running[1])
    outcomes = measure(reader)
    expected = dict.fromkeys(CHECKS, reason) | ({} if reason else FAMILIES[model_type].limits)
    for check, words in expected.items():
        assert outcomes[check].startswith("refused: " if words else "ok"), f"{check}: {outcomes[check]}"
        assert words.lower() in outcomes[check].lower(), f"{check}: {outcomes[check]}"
        assert "\n" not in outcomes[check]
    if reason:
        hub.put(reader.name, reader.folder)
        error = reader.client.error(reader.by_name_code)
        assert error.startswith("InvalidInputError: the ")
        assert reason.lower() in error.lower() or "lacks" in error  # weights, which come before what is read


def test_every_family_is_in_the_page_of_the_documents():
    assert set(TYPES) == {*FAMILIES, *REFUSED}
    lines = ["| family | checks |", "|---|---|"]
    for name in TYPES:
        if name in FAMILIES and name not in REFUSED:
            family = FAMILIES[name]
            limits = "; ".join(f"{check}: refused, {words}" for check, words in family.limits.items())
            lines.append(f"| `{name}` | ok{'; ' * bool(limits)}{limits} |")
    lines += ["", "Refused:", "", "| family | why |", "|---|---|"]
    whys = {name: f"needs {why}" if why in ("timm", "torchvision") else why for name, why in REFUSED.items()}
    lines += [f"| `{name}` | {whys[name]} |" for name in TYPES if name in REFUSED]
    head = PAGE.read_text(encoding="utf-8").partition("<!-- table -->")[0]
    page = f"{head}<!-- table -->\n\n" + "\n".join(lines) + "\n"
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
