"""Adapters of peft on a generator: the base that they name, and weights with them merged in.

A generator that its owner fine-tuned comes as a `PeftModel`, or as a folder or repository that holds adapters alone.
It is read with the adapters merged into its weights: so it is a plain model, which is saved, quantized and adapted
again as any other. A system of references names the base and the adapters; those that are on no Hub lie in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    cached_file,
    find_adapter_config_file,
)

from ...errors import InvalidInputError
from .references import ADAPTERS, Loaded, reference_to, tensor_checksums


_SHARED = ("token", "cache_dir", "local_files_only", "force_download")  # access to any repository
_OF_ONE = ("revision", "subfolder", "variant", "use_safetensors")
_FILES = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME)
OF_BASE = ("base_name", "base_revision")  # of the model under adapters, as a reference names it


def adapter_base(source: Any, loading: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The base model that adapters in a folder or repository name, and how it is loaded.

    Args:
        loading: how the adapters are loaded; what is of their repository alone is not passed on.

    Returns:
        `None` if there are no adapters, or a whole model beside them.

    Raises:
        `InvalidInputError`: if they name no base.
    """
    if os.path.isdir(source) and os.path.isfile(os.path.join(source, loading.get("subfolder") or "", CONFIG_NAME)):
        return None
    place = find_adapter_config_file(source, **_access(loading))
    if place is None:
        return None
    with open(place, encoding="utf-8") as file:
        config = json.load(file)
    base = loading.get("base_name") or config.get("base_model_name_or_path")
    if not base:
        raise InvalidInputError(
            f"the adapters in {os.fspath(source)!r} do not name their base model: load it, put them on it "
            "(`peft.PeftModel.from_pretrained(base, folder)`), and give that object"
        )
    rest = {name: value for name, value in loading.items() if name not in (*_OF_ONE, *OF_BASE)}
    revision = loading.get("base_revision") or config.get("revision")
    return base, {**rest, **({} if revision is None else {"revision": revision})}


def with_adapters(base: PreTrainedModel, source: Any, loading: Mapping[str, Any]) -> PreTrainedModel:
    """The base with the adapters of a folder or repository merged into it.

    Raises:
        `InvalidInputError`: if they do not fit it.
    """
    try:
        base.load_adapter(os.fspath(source), adapter_kwargs=_access(loading))
    except (RuntimeError, ValueError, KeyError) as error:  # of other shapes, layers or kinds
        reason = " ".join(str(error).split())[:300]
        raise InvalidInputError(f"the adapters in {os.fspath(source)!r} do not fit their base: {reason}") from error
    file = cached_file(
        source, ADAPTER_SAFE_WEIGHTS_NAME, **_access(loading), _raise_exceptions_for_missing_entries=False
    )
    if file is not None:
        with safe_open(file, "pt") as weights:
            saved = {name.removeprefix("base_model.model.") for name in weights.keys()}
        strange = sorted(saved - set(base.get_adapter_state_dict()))
        if strange:
            raise InvalidInputError(
                f"the adapters in {os.fspath(source)!r} do not fit their base: it has no {', '.join(strange[:3])}"
            )
    return merged(base)


def with_noted_adapters(base: PreTrainedModel, source: Any, loading: Mapping[str, Any]) -> PreTrainedModel:
    """`with_adapters`; a base from the Hub then remembers the commits of both, or what is on no Hub of the adapters.

    Raises:
        `InvalidInputError`: if they do not fit it.
    """
    loaded = base.__dict__.pop("loaded_from", None)
    model = with_adapters(base, source, loading)
    if loaded is None or "base_name" in loaded.reference:
        return model
    if (reference := reference_to(source, loading)) is not None:
        of_base = {f"base_{name}": loaded.reference[name] for name in ("name", "revision")}
        more = {name: loaded.reference[name] for name in ("quantization_config",) if name in loaded.reference}
        model.loaded_from = Loaded({**reference, **of_base, **more}, tensor_checksums(model), access=loaded.access)
    elif None not in (files := {name: _content(source, name, loading) for name in _FILES}).values():
        known = {**loaded.reference, "adapters": ADAPTERS}
        model.loaded_from = Loaded(known, tensor_checksums(model), files, loaded.access)
    return model


def _content(source: Any, name: str, loading: Mapping[str, Any]) -> bytes | None:
    place = cached_file(source, name, **_access(loading), _raise_exceptions_for_missing_entries=False)
    return None if place is None else Path(place).read_bytes()


def has_adapters(model: Any) -> bool:
    """Whether a model carries adapters of peft, as a `PeftModel` or loaded into it by transformers."""
    return hasattr(model, "get_base_model") or bool(getattr(model, "_hf_peft_config_loaded", False))


def merged(model: Any) -> PreTrainedModel:
    """The model with its adapters merged into its weights, in place.

    Raises:
        `InvalidInputError`: for adapters that are no change of weights (prompt tuning and the like).
    """
    if hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    if hasattr(model, "get_base_model"):
        kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in model.peft_config.values()}
        raise InvalidInputError(
            f"the generator has adapters of type {', '.join(sorted(kinds))}, which cannot be merged into its weights; "
            "expected LoRA or another kind that changes weights"
        )
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        elif hasattr(module, "modules_to_save") and hasattr(module, "active_adapters"):  # trained whole
            model.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    model._hf_peft_config_loaded = False
    del model.peft_config
    return model


def home_of(source: Any, loading: Mapping[str, Any], files: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Where what prepares a generator's inputs lies: with adapters, if one of `files` is there, or with their base.

    Returns:
        Name or folder, and the access to it.
    """
    if isinstance(source, nn.Module):
        return source, dict(loading)
    code = {"trust_remote_code": bool(loading.get("trust_remote_code"))}
    found, quiet = adapter_base(source, loading), {"_raise_exceptions_for_missing_entries": False}
    if found is None or any(cached_file(source, file, **_access(loading), **quiet) is not None for file in files):
        return source, {**code, **_access(loading)}
    base, of_base = found
    return base, {**code, **_access(of_base)}


def _access(loading: Mapping[str, Any]) -> dict[str, Any]:
    names = (*_SHARED, "revision", "subfolder")
    return {name: loading[name] for name in names if loading.get(name) is not None}
