"""Who loads our folders: with the package imported, with the package installed only, and without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers.pipelines as transformers_pipelines
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoModelForPreTraining, AutoProcessor

import hf_ravlm
from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration, RavlmForPreTraining, RavlmProcessor
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
    assert type(AutoModelForPreTraining.from_pretrained(folder)) is RavlmForPreTraining


HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_ravlm":
            raise ModuleNotFoundError("No module named 'hf_ravlm'", name="hf_ravlm")
sys.meta_path.insert(0, Hide())
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


def test_without_the_package_the_error_names_it(folder):
    done = run(HIDE, str(folder))
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
    late = "('faiss', 'datasets', 'peft', 'pyarrow', 'hf_ravlm.retrieval', 'hf_ravlm.training')"
    program = (
        f"import sys, hf_ravlm\nprint([name for name in {late} if name in sys.modules])\n"
        "from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known\n"
        "print('q_proj' in known['ravlm'] and 'llama' in known)"  # once peft comes, it has our targets beside its own
    )
    assert run(program).stdout.split() == ["[]", "True"]


def test_every_public_name_is_there():
    named = {name: getattr(hf_ravlm, name) for name in hf_ravlm.__all__}
    assert all(named[name].__name__ == name for name in named)
    assert set(named) <= set(dir(hf_ravlm))
    with pytest.raises(AttributeError, match="RavlmNothing"):
        _ = hf_ravlm.RavlmNothing
