"""The house stands as CONTRIBUTING draws it: floors, rooms, one question's way, and parts that fit on a screen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest


tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_ravlm"
FILES = sorted(PACKAGE.rglob("*.py"))
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# What transformers dictates: every input of a model is a parameter of its `forward`.
DICTATED = {"forward"}
LINES_OF_A_FUNCTION = 60


def floors() -> list[set[str]]:
    """The floors that import-linter guards, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [contract for contract in settings["contracts"] if contract["id"] == "floors"]
    return [{room.strip() for room in re.split("[|:]", layer)} for layer in contract["layers"]]


def functions(path: Path):
    """Each function of a file with the number of its lines of code: no docstring, no blank line, no comment."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            told = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            inside = set(range(node.lineno, node.end_lineno + 1))
            inside -= set(range(told.lineno, told.end_lineno + 1)) if told else set()
            code = [n for n in inside if lines[n - 1].strip() and not lines[n - 1].lstrip().startswith("#")]
            yield node.name, len(code)


def test_the_guide_shows_the_floors_that_are_guarded():
    rows = re.findall(r"^\| \d+ \| (.*?) \|", GUIDE, flags=re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == floors()


def test_no_two_rooms_of_one_floor_know_each_other():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contract = settings.partition('id = "floors"')[2].partition("[[")[0]
    assert ":" not in re.sub(r"#.*", "", contract)  # in import-linter's words: siblings that may import each other
    assert "exclude_type_checking_imports" not in settings
    assert "ignore_imports" not in settings


def test_the_way_of_one_question_leads_through_files_and_names_that_exist():
    way = GUIDE.partition("## One question, file by file")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. `([\w/]+\.py)`((?:.|\n(?!\d+\. ))*)", way, flags=re.MULTILINE)
    assert len(steps) >= 8
    for file, said in steps:
        text = (PACKAGE / file).read_text(encoding="utf-8")
        names = re.findall(r"`(\w+)\(\)`", said)
        assert names, file
        for name in names:
            assert re.search(rf"^\s*(?:def|class) {name}\b", text, flags=re.MULTILINE), (file, name)


def test_a_function_fits_on_a_screen():
    too_long = {
        f"{path.relative_to(PACKAGE)}: {name}": length
        for path in FILES
        for name, length in functions(path)
        if length > LINES_OF_A_FUNCTION and name not in DICTATED
    }
    assert not too_long


def test_a_module_says_what_it_is():
    first_lines = {path: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") for path in FILES}
    silent = [str(path.relative_to(PACKAGE)) for path, text in first_lines.items() if not text]
    assert not silent
    mannered = [str(path.relative_to(PACKAGE)) for path, text in first_lines.items() if text.startswith("Knows")]
    assert not mannered


def test_files_are_named_for_what_they_hold():
    of_transformers = {"configuration_ravlm.py", "modeling_ravlm.py", "processing_ravlm.py"}
    assert {path.name for path in FILES if path.stem.endswith("_ravlm")} == of_transformers
    assert not [path.name for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]
    assert len(list((PACKAGE / "model").glob("*.py"))) <= 8
