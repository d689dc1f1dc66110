"""Folders of models with any damage: with a manifest all of it is noticed, without one nothing crashes or hangs."""

from __future__ import annotations

import os
import shutil
import signal
import time

from damage import harm
from fuzzing import run_cases

from hf_ravlm import RavlmForConditionalGeneration, RavlmProcessor
from hf_ravlm.errors import RavlmError
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.saving.checksums import MANIFEST
from tiny import assert_same_weights, picture, tiny_model, tiny_processor


FREE = ("README.md", "ravlm_hub.py")


def saved(folder):
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    AnswerPolicy(similarity_floor=0.1).save_pretrained(folder)
    return folder


def load_all(folder):
    model = RavlmForConditionalGeneration.from_pretrained(folder)
    return model, RavlmProcessor.from_pretrained(folder), AnswerPolicy.from_pretrained(folder)


def test_damaged_models(tmp_path):
    template = saved(tmp_path / "template")

    def case(random):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        name = harm(place, random, free=(*FREE, MANIFEST))
        if all(path.is_file() and path.read_bytes() == data for path, data in before.items()):
            return
        try:
            load_all(place)
        except (RavlmError, OSError, ValueError):  # transformers reads some files before we do, and says so its way
            return
        raise AssertionError(f"{name} was altered, and nobody noticed")

    run_cases("test_damaged_models", case, 20, tmp_path)


def test_damaged_models_without_a_manifest(tmp_path):
    template = saved(tmp_path / "template")
    (template / MANIFEST).unlink()

    def case(random):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        harm(place, random, free=FREE)
        if any(not (path.is_file() or path.is_dir()) and path.exists() for path in place.rglob("*")):
            return  # a pipe or device in place of a file is for the reader of the file, transformers
        try:
            model, processor, _ = load_all(place)
            batch = processor(
                images=[picture(0)], text=["what is it ?"], evidence=[["a red kite"]], return_tensors="pt"
            )
        except (RavlmError, OSError, ValueError):
            return
        try:
            model.generate(**batch, max_new_tokens=2)
        except (RavlmError, ValueError):  # a setting that no other says is wrong
            return

    run_cases("test_damaged_models_without_a_manifest", case, 15, tmp_path)


def test_killed_saves(tmp_path):
    models = [tiny_model(seed=seed) for seed in range(2)]

    def case(random):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        models[0].save_pretrained(place)
        child = os.fork()
        if child == 0:
            try:
                models[1].save_pretrained(place)
            finally:
                os._exit(0)
        time.sleep(float(random.uniform(0, 0.12)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = RavlmForConditionalGeneration.from_pretrained(place)
        is_new = bool((loaded.image_projector.weight == models[1].image_projector.weight).all())
        assert_same_weights(loaded, models[is_new])

    run_cases("test_killed_saves", case, 8, tmp_path)
