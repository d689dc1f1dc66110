"""A checkpoint's weights come back whole, those of a ViT too, which are saved under other names."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_ravlm import InvalidInputError
from hf_ravlm.training.checkpoints.whole_weights import load_weights
from tiny_alignment import build_model, build_trainer


def test_every_weight_is_loaded_and_a_lack_is_an_error(tmp_path):
    saved = build_model(seed=1)
    saved.save_pretrained(tmp_path)
    model = build_model(seed=2)
    load_weights(model, tmp_path)
    expected = saved.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["match_head.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"lacks 1 weights of a RavlmForPreTraining.*match_head\.bias"):
        load_weights(model, tmp_path)


def test_a_trainer_takes_back_the_whole_best_model(tmp_path):
    best = build_model(seed=1)
    best.save_pretrained(tmp_path / "checkpoint-1")
    trainer = build_trainer(tmp_path, build_model(seed=2), use_cpu=True)
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    expected = best.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.model.state_dict().items())
