"""Command lines that nobody should write: one line, an exit code of ours, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os

import pytest
from fuzzing import choose, run_cases

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.cli import main


COMMANDS = ["info", "verify", "repair", "remove", "compact", "search", "add", "build", "push"]
WORDS = [
    "",
    " ",
    "--",
    "-1",
    "nope",
    "a\nb",
    "\ud800",
    "../..",
    "/dev/null",
    "x" * 300,
    "nä=1",
    "{}",
    "None",
    "\x1b[31m",
]
OPTIONS = [
    ["--json"],
    ["--purge"],
    ["--to", "gen-00000009"],
    ["--ids_file", "nope"],
    ["--channels", "bm25"],
    ["--channels", "smell"],
    ["--where", "{"],
    ["--where", '{"source": "s1"}'],
    ["--k", "0"],
    ["--model", "nope"],
    ["--format", "csv"],
    ["--columns", "text"],
    ["--memory_budget", "-3"],
    ["--quiet"],
    ["--drop_damaged"],
]


def test_random_command_lines(tmp_path):
    built(numbered(range(9)), HashEncoder()).save_pretrained(tmp_path / "base")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text('id,text\n1,"a\n')
    os.mkfifo(tmp_path / "pipe.jsonl")
    places = [str(tmp_path / name) for name in ("base", "loop", "empty", "file.csv", "none")]

    def case(random):
        words = ["index", choose(random, COMMANDS)]
        words += [choose(random, places + WORDS) for _ in range(int(random.integers(4)))]
        for _ in range(int(random.integers(3))):
            words += choose(random, OPTIONS)
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(words)
        except SystemExit as stopped:
            code = stopped.code
            assert code in (0, 2), words
            return
        said = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        assert code in (0, 1, 2), words
        assert "Traceback" not in err.getvalue(), words
        assert "This was not foreseen" not in err.getvalue(), (words, err.getvalue())
        assert len(said) <= 1, words
        assert code == 0 or said or out.getvalue(), words
        if "--json" in words and "--" not in words:
            json.loads(out.getvalue(), parse_constant=pytest.fail)

    run_cases("test_random_command_lines", case, 80, tmp_path)
