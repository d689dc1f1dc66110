"""Faults of several processes are told before any of them waits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_ravlm import InvalidInputError
from hf_ravlm.training.processes import (
    allow_idle_parameters,
    check_idle_parameters,
    check_processes,
    shard_language_model,
)
from hf_ravlm.training.trainers import RavlmTrainer, freeze
from reading_world import arguments, rows
from tiny import tiny_model, tiny_processor


def test_processes_that_would_train_alone_are_refused(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    check_processes(args)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as launchers set it; that the processes find each other is another matter
    with pytest.raises(InvalidInputError, match="2 processes .*--use_cpu"):
        RavlmTrainer(tiny_model(), args, train_dataset=rows(), processing_class=tiny_processor())


def test_a_choice_of_the_user_and_reentrant_checkpoints_are_left_alone(tmp_path):
    for given, expected in (
        ({}, True),
        ({"activation_checkpointing": True}, True),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}, None),
        ({"ddp_find_unused_parameters": False}, False),
    ):
        args = arguments(tmp_path, **given)
        allow_idle_parameters(args)
        assert args.ddp_find_unused_parameters is expected


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("looks", [True, False])
def test_parameters_that_nobody_will_wait_for_are_named(looks, one_process_group):
    parts = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    parts.forward = lambda inputs: parts["used"](inputs)
    model = DistributedDataParallel(parts, find_unused_parameters=looks)
    model(torch.ones(1, 2)).sum().backward()
    if looks:
        check_idle_parameters(model)
    else:
        with pytest.raises(InvalidInputError, match=r"2 trainable .*idle\.weight"):
            check_idle_parameters(model)


def test_of_a_reader_the_layers_of_its_language_model_are_sharded_and_its_towers_stay_whole():
    plugin, model = SimpleNamespace(), tiny_model()
    with pytest.raises(InvalidInputError, match="freeze"):
        shard_language_model(plugin, model, torch.device("cpu"))
    freeze(model.model)
    shard_language_model(plugin, model, torch.device("cpu"))
    assert plugin.ignored_modules == [model.model]
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    with pytest.raises(InvalidInputError, match="RavlmModel is not sharded"):
        shard_language_model(plugin, model.model, torch.device("cpu"))


def test_models_name_only_layers_that_they_have():
    for fusion in ("in_context", "gated", "cross_attention"):
        model = tiny_model(fusion=fusion)
        here = {type(module).__name__ for module in model.modules()}
        assert "LlamaDecoderLayer" in model._no_split_modules
        assert set(model._no_split_modules) <= here
