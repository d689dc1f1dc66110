"""What loading adds: a model knows its commit but keeps no token, and damaged weights are named."""

from __future__ import annotations

import copy
import pickle

import pytest

from hf_ravlm import RavlmForConditionalGeneration, RavlmModel, UnsafeInputError
from hf_ravlm.model.loading import origin_of
from tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    return folder


def test_the_origin_is_remembered_and_its_token_goes_nowhere(folder):
    model = RavlmModel.from_pretrained(folder, revision="v1", token="hf_secret")
    assert origin_of(model) == {"revision": "v1", "token": "hf_secret"}
    assert "hf_secret" not in repr(model.origin)
    assert origin_of(copy.deepcopy(model)) == {"revision": "v1"}
    assert b"hf_secret" not in pickle.dumps(model)
    assert origin_of(tiny_model()) == {}
    model, _ = RavlmModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert origin_of(model) == {"local_files_only": True}


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: b"\xff" * 8 + data[8:], lambda data: b""])
def test_damaged_weights_are_named(folder, tmp_path, damage):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(UnsafeInputError, match="a file of weights .* is damaged") as raised:
        RavlmForConditionalGeneration.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)
