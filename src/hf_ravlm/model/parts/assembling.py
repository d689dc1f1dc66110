"""Puts loaded parts into a model that was made around them, also when a saved folder refers to them by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from ...errors import InvalidInputError
from ..loading import initialize_new, loading_errors
from .adapters import with_noted_adapters
from .quantized import carry_quantizer
from .references import ADDED_ROWS, check_reference, load_pinned, parts_of, pin_revision


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained`: of any repository, of the folder's own, of the generator, and what says nothing here.
HUB_ACCESS = ("token", "cache_dir", "local_files_only", "force_download", "proxies")
GENERATOR_LOADING = (
    *("quantization_config", "attn_implementation", "device_map", "max_memory", "offload_folder", "offload_buffers"),
    *("experts_implementation", "tp_plan"),
)
WITHOUT_MEANING = ("use_safetensors", "weights_only", "low_cpu_mem_usage", "adapter_kwargs", "code_revision")


def put_in_place(model: Any, parts: Mapping[str, PreTrainedModel]) -> None:
    """Gives a model on the meta device its loaded parts, by path, and initial weights to all the rest of it."""
    for path, part in parts.items():
        model.set_submodule(path, part)
    language_model = parts.get("language_model")
    if language_model is not None:
        model.attach_fusion()  # what was attached was on the one that stood there before
    carry_quantizer(model, language_model)
    first = language_model if language_model is not None else next(iter(parts.values()), None)
    device = torch.device("cpu") if first is None else first.device
    initialize_new(model, parts.values(), device, model.config.dtype or torch.get_default_dtype())


def read_references(
    config_class: type[PreTrainedConfig], source: Any, kwargs: Mapping[str, Any]
) -> tuple[PreTrainedConfig, dict[str, Any]] | None:
    """The configuration of a folder or repository that refers to parts, and the arguments left for loading.

    Args:
        kwargs: of `from_pretrained`; `None` comes back where nothing is referred to.
    """
    config, rest = kwargs.get("config"), dict(kwargs)
    if source is None or kwargs.get("state_dict") is not None:
        return None
    if not isinstance(config, PreTrainedConfig):
        names = (*GENERATOR_LOADING, *WITHOUT_MEANING, "dtype", "torch_dtype", "output_loading_info")
        aside = {name: rest.pop(name) for name in names if name in rest}
        rest.pop("config", None)
        config, rest = config_class.from_pretrained(config or source, return_unused_kwargs=True, **rest)
        rest |= {**aside, **{name: kwargs[name] for name in (*HUB_ACCESS, "revision", "subfolder") if name in kwargs}}
    if not config.references:
        return None
    config.name_or_path = os.fspath(source)
    return config, rest


def load_by_reference(
    cls: type[PreTrainedModel],
    source: Any,
    config: PreTrainedConfig,
    kwargs: dict[str, Any],
    loaders: Mapping[str, Callable[..., PreTrainedModel]],
) -> Any:
    """A model whose folder holds its own weights alone: its pretrained parts come from their repositories.

    Args:
        source: folder or name on the Hub; `config` is the one that lies there.
        kwargs: of `from_pretrained`; how to load (`dtype`, `device_map`, `quantization_config`, ...) is for the parts.
        loaders: what loads a part from a name, by role.

    Returns:
        The model in eval mode; with `output_loading_info=True` also what was missing.

    Raises:
        `InvalidInputError`: if a reference is none, or weights do not fit.
        `HubUnavailableError`: if the Hub does not give a part.
    """
    config = copy.deepcopy(config)
    references, config.references = config.references, None  # the model has its parts, and may be saved otherwise
    config.dtype = _dtype(kwargs, config)
    own = own_weights(source, kwargs)
    with torch.device("meta"):
        model = cls(config)
    parts: dict[str, PreTrainedModel] = {}
    for role, path, _ in list(parts_of(model)):
        if role in references:
            loading = _part_loading(role, kwargs, config, hasattr(model, "language_model"))
            loading = {"dtype": config.dtype or "auto", **loading}
            parts[path] = load_part(role, references[role], loading, loaders[role], (source, kwargs))
    place = next((part.device for part in parts.values()), None)  # the first is the generator, if it is there
    put_in_place(model, {path: part if part.device == place else part.to(place) for path, part in parts.items()})
    report = fill_in(model, own, tuple(parts))
    if model.can_generate():
        model.generation_config = _generation_config(source, kwargs) or model.generation_config
    model.eval()
    return (model, report) if kwargs.get("output_loading_info") else model


def load_part(
    role: str,
    reference: Any,
    loading: dict[str, Any],
    loader: Callable[..., PreTrainedModel],
    home: tuple[Any, Mapping[str, Any]],
) -> PreTrainedModel:
    """A part from its repository, as it was loaded when the reference was written, unless `loading` says otherwise.

    Args:
        home: folder or name of what refers to it, and the access there: adapters that are on no Hub lie there.
    """
    given = check_reference(role, reference)
    adapters = given.pop("adapters", None)
    if "quantization_config" in given:
        given["quantization_config"] = AutoQuantizationConfig.from_dict(dict(given["quantization_config"]))
    part = load_pinned(loader, given.pop("name"), {**given, **loading})
    if adapters is None:
        return part
    source, asked = home
    access = {name: asked[name] for name in (*HUB_ACCESS, "revision") if asked.get(name) is not None}
    place = os.path.join(asked.get("subfolder") or "", adapters)
    with loading_errors("adapters", source):
        if os.path.isdir(source):
            return with_noted_adapters(part, os.path.join(source, place), access)
        return with_noted_adapters(part, source, {**access, "subfolder": place})


def _part_loading(role: str, kwargs: Mapping[str, Any], config: PreTrainedConfig, has_reader: bool) -> dict[str, Any]:
    """What of the arguments of `from_pretrained` a part is loaded with."""
    loading = {name: kwargs[name] for name in HUB_ACCESS if kwargs.get(name) is not None}
    loading["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
    if role == "generator":
        asked = {"attn_implementation": config._attn_implementation, **kwargs}  # Auto classes put it there
        loading |= {name: asked[name] for name in GENERATOR_LOADING if asked.get(name) is not None}
    elif not has_reader and kwargs.get("device_map") is not None:
        loading["device_map"] = kwargs["device_map"]
    if isinstance(loading.get("device_map"), Mapping):  # of the whole model
        places = loading["device_map"].items()
        loading["device_map"] = {name.removeprefix("language_model").lstrip("."): place for name, place in places}
    return loading


def _dtype(kwargs: Mapping[str, Any], config: PreTrainedConfig) -> torch.dtype | None:
    asked = kwargs.get("dtype", kwargs.get("torch_dtype", "auto"))
    asked = config.dtype if asked in ("auto", None) else asked
    return getattr(torch, asked.removeprefix("torch.")) if isinstance(asked, str) else asked


def own_weights(source: Any, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that lie in a folder or repository itself, whole or in shards."""
    access = {name: kwargs[name] for name in (*HUB_ACCESS, "revision", "subfolder") if kwargs.get(name) is not None}
    access = pin_revision(source, access)
    quiet = {"_raise_exceptions_for_missing_entries": False}
    whole = cached_file(source, SAFE_WEIGHTS_NAME, **access, **quiet)
    files = [whole]
    if whole is None:
        index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **access, **quiet)
        if index is None:
            raise InvalidInputError(
                f"{source}: there are no weights (no {SAFE_WEIGHTS_NAME}), so the save is not whole"
            )
        files, _ = get_checkpoint_shard_files(source, index, **access)
    own: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as weights:
            own |= {name: weights.get_tensor(name) for name in weights.keys()}
    return own


def fill_in(model: PreTrainedModel, own: dict[str, torch.Tensor], loaded: tuple[str, ...]) -> dict[str, list]:
    """Copies a folder's own weights into a model whose parts under the paths `loaded` are there already.

    Returns:
        As the loading info of transformers.
    """
    if not any(name.startswith("model.") for name, _ in model.named_parameters()):  # the dual encoder by itself
        own = {name.removeprefix("model."): tensor for name, tensor in own.items()}
    added = {name.removeprefix(ADDED_ROWS): own.pop(name) for name in list(own) if name.startswith(ADDED_ROWS)}
    if hasattr(model, "language_model"):
        _add_rows(model, added)
    model.tie_weights()
    state = model.state_dict()
    wrong = [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]
    if wrong:
        raise InvalidInputError(f"weights do not fit the configuration that lies beside them: {', '.join(wrong[:5])}")
    with torch.no_grad():
        for name in state.keys() & own.keys():
            state[name].copy_(own[name])
    filled = {state[name].data_ptr() for name in state.keys() & own.keys()}  # tied ones count for each other
    there = tuple(f"{path}." for path in loaded)
    missing = [
        name for name, tensor in state.items() if not name.startswith(there) and tensor.data_ptr() not in filled
    ]
    if missing:
        logger.warning(
            "%d weights of %s are not in the folder and start from new numbers: %s",
            *(len(missing), type(model).__name__, ", ".join(missing[:5])),
        )
    unexpected = [name for name in own if name not in state and hasattr(model, "language_model")]
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": [], "error_msgs": []}


def _add_rows(model: PreTrainedModel, added: Mapping[str, torch.Tensor]) -> None:
    """Gives a language model the rows that its vocabulary had gained when it was saved."""
    language_model = model.language_model
    size = model.config.get_text_config().vocab_size
    if language_model.get_input_embeddings().num_embeddings < size:
        language_model.resize_token_embeddings(size, mean_resizing=False)
    state = model.state_dict()
    with torch.no_grad():
        for name, rows in added.items():
            state[name][-len(rows) :] = rows


def _generation_config(source: Any, kwargs: Mapping[str, Any]) -> GenerationConfig | None:
    access = {name: kwargs[name] for name in (*HUB_ACCESS, "revision", "subfolder") if kwargs.get(name) is not None}
    try:
        return GenerationConfig.from_pretrained(source, **access)
    except OSError:  # there is none
        return None
