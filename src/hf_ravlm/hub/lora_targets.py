"""Tells peft which layers LoRA adapts in our readers by default, without importing peft before somebody else does."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from ..model import RavlmConfig


# The attention of the language model under the names of the usual families; neither towers nor fusion.
LORA_TARGETS = r".*language_model.*\.(q_proj|v_proj|qkv_proj|c_attn|query_key_value|Wqkv)"

_CONSTANTS = "peft.utils.constants"
_MAPPING = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"


def register_lora_targets() -> None:
    """Enters our default; now if peft is there already, else as soon as it is imported. Twice is harmless.

    >>> import sys
    >>> register_lora_targets()
    >>> import peft
    >>> peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["ravlm"] == LORA_TARGETS
    True
    """
    if _CONSTANTS in sys.modules:
        _register(sys.modules[_CONSTANTS])
    elif not any(isinstance(finder, _WhenPeftComes) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenPeftComes())


def _register(constants: ModuleType) -> None:
    mapping = getattr(constants, _MAPPING, None)
    if isinstance(mapping, dict):
        mapping.setdefault(RavlmConfig.model_type, LORA_TARGETS)


class _WhenPeftComes(MetaPathFinder):
    """Lets the usual finders find peft's table, and adds our line once it has been read."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != _CONSTANTS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register(module)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)  # what readers of sources and resources ask of it
