"""A saved folder in a process of its own: what runs there, with trust and without, and what it can do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from transformers import pipeline

import hf_ravlm
from hf_ravlm.pipelines import answer_questions
from hf_ravlm.retrieval import Evidence
from hf_ravlm.saving.folders import AUTO_MAP
from tiny_folder import save_everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_everything(tmp_path_factory.mktemp("published"))


def run(program: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)


def last_line(done: subprocess.CompletedProcess):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_folder_has_one_file_of_code_and_the_whole_auto_map(folder):
    assert [path.name for path in folder.rglob("*.py")] == ["ravlm_hub.py"]
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {auto: f"ravlm_hub.{name}" for auto, name in AUTO_MAP.items()}
    for name in ("processor_config.json", "tokenizer_config.json"):
        assert json.loads((folder / name).read_text())["auto_map"] == {"AutoProcessor": "ravlm_hub.RavlmProcessor"}
    names: dict = {}
    exec((folder / "ravlm_hub.py").read_text(), names)
    assert all(names[name] is getattr(hf_ravlm, name) for name in set(AUTO_MAP.values()))


def test_installed_but_not_imported_trust_is_enough_to_load_to_answer_and_to_save_again(folder, tmp_path):
    program = (
        "import json, sys\n"
        "from PIL import Image\n"
        "from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining, AutoProcessor\n"
        "from transformers import pipeline\n"
        "autos = (AutoModelForImageTextToText, AutoModel, AutoModelForPreTraining, AutoProcessor)\n"
        "loaded = [type(auto.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ for auto in autos]\n"
        "ask = pipeline('image-text-to-text', model=sys.argv[1], max_new_tokens=3, trust_remote_code=True)\n"
        "answer = ask(images=[Image.new('RGB', (24, 16))], text=['what is the capital ?'])[0]\n"
        "for part in (ask.model, ask.processor):\n"
        "    part.save_pretrained(sys.argv[2])\n"
        "print('\\n' + json.dumps([loaded, type(ask).__name__, len(answer['evidence'])]))\n"
    )
    loaded = ["RavlmForConditionalGeneration", "RavlmModel", "RavlmForPreTraining", "RavlmProcessor"]
    assert last_line(run(program, folder, tmp_path)) == [loaded, "RavlmImageTextToTextPipeline", 3]
    assert [path.name for path in tmp_path.rglob("*.py")] == ["ravlm_hub.py"]
    for name in ("ravlm_hub.py", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        first, second = (json.loads((place / name).read_text())["auto_map"] for place in (folder, tmp_path))
        assert first == second


def test_without_trust_neither_the_package_nor_the_folders_code_runs(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "ravlm_hub.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + (copy / "ravlm_hub.py").read_text())
    program = (
        "import json, sys\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline\n"
        "said = []\n"
        "autos = (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor)\n"
        "def answer(folder, **trust):\n"
        "    pipeline('image-text-to-text', model=folder, **trust)\n"
        "for load in [*(auto.from_pretrained for auto in autos), answer]:\n"
        "    for trust in ({}, {'trust_remote_code': False}):\n"
        "        try:\n"
        "            load(sys.argv[1], **trust)\n"
        "            said.append('loaded')\n"
        "        except ValueError as error:\n"
        "            said.append('trust_remote_code=True' in str(error))\n"
        "print('\\n' + json.dumps([said, 'hf_ravlm' in sys.modules]))\n"
    )
    assert last_line(run(program, copy)) == [[True] * 10, False]
    assert not (tmp_path / "ran").exists()


def test_without_its_knowledge_base_it_answers_closed_book_and_from_given_evidence(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("knowledge_base"))
    ask = pipeline("visual-question-answering", model=str(copy), max_new_tokens=3)
    image, question = Image.new("RGB", (24, 16)), "what is the capital ?"
    assert ask(image=image, question=question)[0]["evidence"] == []
    given = [[Evidence(id="no", text="the capital of Norway is Oslo", score=0.5, rank=1)]]
    ((answer,),) = answer_questions(
        ask.model, ask.processor, None, [image], [question], evidence=given, max_new_tokens=3
    )
    assert [item.id for item in answer.evidence] == ["no"]
    assert answer.posterior == [1.0]
