"""Checks that keep several processes from waiting for each other forever.

Some batches leave parameters of a reader idle (the image tower without images, the fusion without evidence). Unless
DDP looks for them at every step, it fails a step later or waits for gradients that never come.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from ..errors import InvalidInputError
from ..model.loading import without_adapters


def allow_idle_parameters(args: TrainingArguments) -> None:
    """Lets DDP look for idle parameters also if activations are recomputed, unless the user has chosen.

    The Trainer turns it off because of reentrant checkpoints, which are no longer the default.

    >>> args = TrainingArguments("out", activation_checkpointing=True)
    >>> allow_idle_parameters(args)
    >>> args.ddp_find_unused_parameters
    True
    """
    settings = getattr(args, "activation_checkpointing_kwargs", None) or {}
    if args.ddp_find_unused_parameters is None and not settings.get("use_reentrant", False):
        args.ddp_find_unused_parameters = True


def check_processes(args: TrainingArguments) -> None:
    """Refuses processes that were launched together but do not know of each other.

    Raises:
        InvalidInputError: If each of them would train alone, on all of the data, into the same folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and args.world_size == 1:
        raise InvalidInputError(
            f"{launched} processes were launched, but each would train alone and write to {args.output_dir!r}: "
            "on CPUs set `use_cpu=True` (`--use_cpu`), and they will communicate through gloo."
        )


def check_idle_parameters(model: nn.Module) -> None:
    """Refuses parameters without a gradient after a backward pass, if DDP does not look for them.

    Raises:
        InvalidInputError: With their names.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        return
    named = model.module.named_parameters()
    idle = [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]
    if idle:
        raise InvalidInputError(
            f"{len(idle)} trainable parameters took no part in this step ({', '.join(idle[:3])}, ...), and with "
            "ddp_find_unused_parameters=False the processes would wait for their gradients. Leave that argument out, "
            "or freeze what is not used: hf_ravlm.training.freeze(...)."
        )


def shard_language_model(plugin: Any, model: nn.Module, device: torch.device) -> None:
    """Has FSDP shard the layers of the language model, and leave the dual encoder whole in every process.

    The retriever calls the dual encoder outside of the model's `forward`, where sharded weights are not put together.

    Args:
        plugin (`accelerate.FullyShardedDataParallelPlugin`): Changed in place.
        model: A reader, with or without adapters.
        device: Of this process.

    Raises:
        InvalidInputError: If the model is no reader, or its dual encoder is trained.
    """
    reader = without_adapters(model)
    language_model, towers = (getattr(reader, name, None) for name in ("language_model", "model"))
    if language_model is None or towers is None:
        raise InvalidInputError(
            f"{type(reader).__name__} is not sharded: it is small, and its temperature is a scalar, which FSDP2 does "
            "not take. Use several processes with DDP: leave out fsdp."
        )
    if any(parameter.requires_grad for parameter in towers.parameters()):
        raise InvalidInputError(
            "FSDP leaves the dual encoder whole and does not average its gradients: freeze it, "
            "hf_ravlm.training.freeze(model.model), or leave out fsdp."
        )
    towers.to(device)
    plugin.ignored_modules = [towers]
    here = {type(module).__name__ for module in language_model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(set(language_model._no_split_modules or ()) & here)
