"""The README's blocks run as they stand, in a process of their own, in both languages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import picture


ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh.md")
STAGES = ("matching", "sharpening", "text", "reading", "choosing")
TINY = " ".join(f"--{stage}_steps 2" for stage in STAGES) + " --designs 64 --no_evaluate"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", READMES)
def test_python_blocks_run_one_after_the_other(name, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "my_folder").mkdir()  # what the reader brings: pictures with a text beside each
    for n, bird in enumerate(("kite", "robin")):
        picture(n).save(tmp_path / "my_folder" / f"{bird}.png")
        (tmp_path / "my_folder" / f"{bird}.txt").write_text(f"This is a {bird}.")
    first, *rest = blocks(name, "python")  # whose names are those of a Hub: tests/hub/test_guides.py runs it
    program = "\n".join([first.split("\n\n")[0], *rest]) + "\nprint(len(evidence[0]), evidence[0][0].text)\n"
    printed = run([sys.executable, "-c", program], tmp_path)
    assert printed.splitlines()[-1] == "2 This is a kite."
    assert (tmp_path / "my_model" / "knowledge_base" / "CURRENT").exists()


def test_both_languages_show_the_same_code():
    assert blocks(READMES[0], "python") == blocks(READMES[1], "python")
    assert [line.split("#")[0].strip() for line in "".join(blocks(READMES[0], "console")).splitlines()] == [
        line.split("#")[0].strip() for line in "".join(blocks(READMES[1], "console")).splitlines()
    ]


@pytest.mark.slow
def test_the_training_line_writes_a_folder_that_the_demo_loads(tmp_path):
    (line,) = [line for line in "".join(blocks("README.md", "console")).splitlines() if "train_flags.py" in line]
    launch = [str(Path(sys.executable).with_name("accelerate")), *line.split()[1:], *TINY.split()]
    launch[launch.index("examples/train_flags.py")] = str(ROOT / "examples" / "train_flags.py")
    run(launch, tmp_path)
    folder = tmp_path / line.split("--out ")[1].split()[0]
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "knowledge_base"}
    program = (
        "import hf_ravlm, transformers, sys\n"
        "ask = transformers.pipeline('image-to-text', model=sys.argv[1], max_new_tokens=4)\n"
        "print(len(ask(sys.argv[2], question='What is the capital?')[0]['evidence']))\n"
    )
    picture(0).save(tmp_path / "flag.png")
    assert run([sys.executable, "-c", program, str(folder), "flag.png"], tmp_path).strip() == "1"
