"""Adapters (LoRA and others of peft) for readers."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import InvalidInputError
from ..hub.lora_targets import SENSES, register_lora_targets


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.getLogger(__name__)

ALL = "all-linear"  # as peft calls it


def add_adapters(
    model: nn.Module, peft_config: PeftConfig, activation_checkpointing: bool = False, towers_learn: bool = False
) -> PeftModel:
    """The reader with adapters; all else is frozen, but for the projectors and the fusion.

    Args:
        model: A reader; its language model may be quantized.
        peft_config: Such as `LoraConfig(r=8)`. Without `target_modules` the attention of the language model is
            adapted; without `modules_to_save` projectors and fusion are trained whole (`[]` for neither).
        activation_checkpointing: Whether the training recomputes activations.
        towers_learn: Whether names may hit the towers that encode for the search, too.

    Raises:
        InvalidInputError: If the model has adapters already, one of `target_modules` or `modules_to_save` matches
            nothing, or a name in `target_modules` hits the language model and, unasked, what sees images beside it.
    """
    from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

    if isinstance(model, PeftModel):
        raise InvalidInputError("The model has adapters already: leave `peft_config` out, or pass the model without.")
    register_lora_targets()
    peft_config, wanted = copy.deepcopy(peft_config), getattr(peft_config, "target_modules", None)
    if hasattr(peft_config, "modules_to_save") and peft_config.modules_to_save is None:
        # They are new beside pretrained parts, and small.
        parts = {
            name: getattr(model, name, None) for name in ("image_projector", "evidence_image_projector", "fusion")
        }
        own = [name for name, part in parts.items() if part is not None and list(part.parameters())]
        peft_config.modules_to_save = own or None
    _check_modules_to_save(model, getattr(peft_config, "modules_to_save", None) or ())
    _check_targets(model, getattr(peft_config, "target_modules", None))
    if not getattr(model, "name_or_path", None):
        logger.warning(
            "The adapters will not say which model they belong to, for this one has no name yet: save it first "
            "(`model.save_pretrained(folder)`), and train what `from_pretrained(folder)` loads."
        )
    if any(getattr(part, "is_quantized", False) for part in (model, getattr(model, "language_model", None))):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=activation_checkpointing)
    try:
        adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        if "arget modules" not in str(error) and "target_modules" not in str(error):
            raise
        layers = getattr(peft_config, "layers_to_transform", None)
        of_those = "" if layers is None else f", of those with the numbers {layers!r}"
        raise InvalidInputError(
            f"target_modules={getattr(peft_config, 'target_modules', None)!r} of the peft_config match no layer of "
            f"the model{of_those}. Linear layers of its language model are: {_layer_names(model)}. Name some of "
            "them, or give a regular expression."
        ) from error
    if wanted is not None:
        _check_unasked(adapted, wanted, towers_learn)
    return adapted


def _check_modules_to_save(model: nn.Module, wanted: Iterable[str]) -> None:
    """Refuses unknown names, which peft would ignore."""
    names = [name for name, _ in model.named_modules()]
    for part in wanted:
        if not any(name == part or name.endswith(f".{part}") for name in names):
            raise InvalidInputError(
                f"modules_to_save of the peft_config names {part!r}, which the model does not have. It has: "
                f"{[name for name, _ in model.named_children()]} and the parts of these."
            )
        if part == "model" and getattr(model, "model", None) is not None:
            raise InvalidInputError(
                "modules_to_save names `model`: peft would train copies of the towers, unseen by any retriever, and "
                "of the body of the language model, which has this name, too. Name layers in target_modules, or parts."
            )


def _check_targets(model: nn.Module, wanted: Any) -> None:
    """Refuses single names that match no layer, which peft ignores beside others that do."""
    if wanted is None or isinstance(wanted, str):
        return
    names = [name for name, _ in model.named_modules()]
    for target in sorted(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InvalidInputError(
                f"target_modules of the peft_config name {target!r}, and no layer of the model has this name. Linear "
                f"layers of its language model are: {_layer_names(model)}."
            )


def _check_unasked(model: PeftModel, wanted: Any, towers_learn: bool) -> None:
    """Refuses names by which peft adapts the language model and, as they are alike, what sees images beside it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    reader = model.get_base_model()
    if (isinstance(wanted, str) and wanted != ALL) or not hasattr(reader, "get_decoder"):
        return  # a regular expression is meant as it is
    decoder = reader.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    adapted = [(name, module) for name, module in reader.named_modules() if isinstance(module, BaseTunerLayer)]
    towers = r"(?!)" if towers_learn else r"model\."
    senses = re.compile(rf"{towers}|language_model\..*({SENSES})")
    others = [name for name, module in adapted if id(module) not in inside and senses.match(name)]
    if not others or not any(id(module) in inside for _, module in adapted):
        return
    prefix = next(name for name, module in reader.named_modules() if module is decoder)
    layers = "q_proj|v_proj" if isinstance(wanted, str) else "|".join(sorted(wanted))
    model.unload()
    raise InvalidInputError(
        f"target_modules={wanted if isinstance(wanted, str) else sorted(wanted)!r} of the peft_config hits the "
        f"language model and also {len(others)} layers of what sees images or encodes for the search ({others[0]}, "
        "...). Leave target_modules out for the attention of the language model, or say which layers by one regular "
        rf"expression, such as '{prefix}\..*\.({layers})'."
    )


def _layer_names(model: nn.Module) -> list[str]:
    """The last parts of the names of linear layers in the language model, each once."""
    language_model = getattr(model, "language_model", model)
    names = (name for name, module in language_model.named_modules() if hasattr(module, "weight") and name)
    matrices = (name for name in names if getattr(language_model.get_submodule(name).weight, "dim", int)() == 2)
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in matrices))[:20]
