"""Who loads our folders: with the package imported, with the package installed only, and without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers.pipelines as transformers_pipelines
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration, RavlmProcessor
from hf_ravlm.hub.registration import register_auto_classes, register_pipelines
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_auto_classes_need_no_trust_flag(folder):
    assert type(AutoConfig.from_pretrained(folder)) is RavlmConfig
    assert type(AutoProcessor.from_pretrained(folder)) is RavlmProcessor
    assert type(AutoModelForMultimodalLM.from_pretrained(folder)) is RavlmForConditionalGeneration


LOAD = (
    "import sys\n"
    "from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor\n"
    "for auto in (AutoModelForImageTextToText, AutoModel, AutoProcessor):\n"
    "    print(type(auto.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == 'trust')).__name__)\n"
)


def test_installed_but_not_imported_the_shim_loads_with_trust(folder):
    done = run(LOAD, str(folder), "trust")
    assert done.stdout.split() == ["RavlmForConditionalGeneration", "RavlmModel", "RavlmProcessor"], done.stderr


def test_without_trust_nothing_of_ours_runs(folder):
    done = run("import sys, builtins\n" + LOAD, str(folder), "no")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


def test_without_the_package_the_error_names_it(folder):
    hide = "import sys, importlib.abc\nclass Hide(importlib.abc.MetaPathFinder):\n    def find_spec(self, name, path=None, target=None):\n        if name.split('.')[0] == 'hf_ravlm':\n            raise ModuleNotFoundError(\"No module named 'hf_ravlm'\", name='hf_ravlm')\nsys.meta_path.insert(0, Hide())\n"  # noqa: E501
    done = run(hide + LOAD, str(folder), "trust")
    assert done.returncode != 0
    assert "pip install hf_ravlm" in done.stderr


def test_registering_twice_changes_nothing():
    before = transformers_pipelines._resolve_deprecated_task
    register_auto_classes()
    register_pipelines()
    assert transformers_pipelines._resolve_deprecated_task is before


def test_other_retired_tasks_are_still_refused():
    with pytest.raises(KeyError, match="removed from transformers"):
        transformers_pipelines.pipeline("summarization")


def test_importing_the_package_is_light():
    program = "import sys, hf_ravlm\nprint([m for m in ('faiss', 'datasets', 'peft', 'pyarrow') if m in sys.modules])"
    assert run(program).stdout.strip() == "[]"
