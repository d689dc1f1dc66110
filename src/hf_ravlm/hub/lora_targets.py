"""The layers that LoRA adapts in readers by default, entered into peft's own table."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from ..model import RavlmConfig


# The attention of the language model, as the usual families name it; neither towers and fusion of ours, nor what an
# image-text-to-text model sees and hears with.
SENSES = "vision|visual|video|image|audio|speech|connector|projector|resampler|perceiver|qformer|aligner|merger"
_ATTENTION = "q_proj|v_proj|qkv_proj|c_attn|query_key_value|query|value|Wqkv|q_b_proj|kv_b_proj"
LORA_TARGETS = rf"(?!.*({SENSES})).*language_model.*\.({_ATTENTION})"

_CONSTANTS = "peft.utils.constants"


def register_lora_targets() -> None:
    """Makes `get_peft_model(reader, LoraConfig())` work without `target_modules`, now or once peft is imported.

    >>> import sys
    >>> register_lora_targets()
    >>> import peft
    >>> peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["ravlm"] == LORA_TARGETS
    True
    """
    if _CONSTANTS in sys.modules:
        _register(sys.modules[_CONSTANTS])
    elif not any(isinstance(finder, _WhenPeftIsImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenPeftIsImported())


def _register(constants: ModuleType) -> None:
    mapping = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", None)
    if isinstance(mapping, dict):
        mapping.setdefault(RavlmConfig.model_type, LORA_TARGETS)


class _WhenPeftIsImported(MetaPathFinder):
    """Adds our line to peft's table when peft is imported.

    peft reads defaults from this table alone. To import it here would cost every `import hf_ravlm` its time, and every
    user the package.
    """

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != _CONSTANTS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
