"""The words of `hf-ravlm`: known without torch, the same as those of the rooms, and each leads to its function."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import import_module

import pytest

import hf_ravlm
from hf_ravlm import cli
from hf_ravlm.commands import argument_types, arguments, command_line
from hf_ravlm.retrieval import INDEX_KINDS
from hf_ravlm.retrieval.encoding.reference import ENCODER_KINDS
from hf_ravlm.retrieval.knowledge_channels import CHANNEL_NAMES
from hf_ravlm.retrieval.store.parts import PARTS


HEAVY = ("torch", "transformers", "faiss", "pyarrow", "datasets", "numpy", "PIL", "huggingface_hub")


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()):
    """The words and the parser of every command, groups of commands included."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from leaves(command, (*words, name))


COMMANDS = dict(leaves(command_line.make_parser("1")))


def test_every_help_and_the_version_are_answered_without_heavy_imports(tmp_path):
    asked = [*([*words, "--help"] for words in COMMANDS), ["--version"], ["index", "build"]]
    program = tmp_path / "hf-ravlm"  # as the script that pip writes
    program.write_text(
        "import json, sys\n"
        "from hf_ravlm.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        main(words)\n    except SystemExit as stopped:\n        print('code', stopped.code)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    command = [sys.executable, program, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("code")] == ["code 0"] * (len(asked) - 1) + ["code 2"]
    assert sum(line.startswith("usage: hf-ravlm") for line in lines) == len(COMMANDS)
    assert lines[-1] == "[]"


def test_the_module_answers_as_the_script_does():
    command = [sys.executable, "-X", "importtime", "-m", "hf_ravlm", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"hf_ravlm {hf_ravlm.__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hf_ravlm.cli" in imported
    assert not imported.intersection(HEAVY)


@pytest.mark.parametrize(
    ("program", "started", "expected"),
    [
        ("/bin/hf-ravlm", ["python", "/bin/hf-ravlm", "index"], True),
        ("C:\\hf-ravlm.exe".replace("C:\\", "/"), ["python", "/hf-ravlm.exe"], True),
        ("-m", ["python", "-u", "-m", "hf_ravlm", "index"], True),
        ("-m", ["python", "-m", "pytest", "hf_ravlm"], False),
        ("/bin/hf-ravlm", ["python", "-c", "from multiprocessing.spawn import spawn_main; ..."], False),
        ("train.py", ["python", "train.py", "hf-ravlm"], False),
        ("", ["python"], False),
    ],
)
def test_only_the_command_itself_registers_later(program, started, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", started)
    assert hf_ravlm._is_command_line() is expected


def test_choices_are_those_of_the_rooms():
    assert arguments.INDEX_KINDS == INDEX_KINDS
    assert arguments.ENCODER_KINDS == ENCODER_KINDS
    assert argument_types.CHANNEL_NAMES == CHANNEL_NAMES
    assert arguments.PARTS == PARTS


def test_every_command_has_its_function():
    carried_out = [parser.get_default("run") for parser in COMMANDS.values() if parser.get_default("run")]
    assert len(carried_out) == len(set(carried_out)) >= 16
    for module, function in (run.split(".") for run in carried_out):
        assert callable(getattr(import_module(f"hf_ravlm.commands.{module}"), function))


def test_ctrl_c_while_libraries_are_imported_is_no_traceback(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", stop)
    assert cli.main(["index", "info", "folder"]) == 130
    assert capsys.readouterr().err.startswith("Stopped.")


def test_an_unknown_option_is_told_with_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evaluate", "model", "questions.csv", "out", "--max-new-tokens", "9"])
    told = capsys.readouterr().err
    assert told.startswith("usage: hf-ravlm evaluate ")
    assert "unrecognized arguments: --max-new-tokens 9 (did you mean --max_new_tokens?)" in told
    with pytest.raises(SystemExit, match="2"):
        cli.main(["index", "info", "folder", "a koala"])
    assert "a koala (words that belong to no option stand together, before the options)" in capsys.readouterr().err
