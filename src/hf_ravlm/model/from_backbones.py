"""From backbones to one model, with every pretrained weight in its place, and the processor that fits it.

A causal generator that is asked in our layout gets embeddings for those marks that its tokenizer lacks, each the mean
of the old ones; one without towers is asked in its own chat template. Only what is ours (projections, fusion) starts
from new numbers.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..errors import InvalidInputError
from ..saving.safe_paths import at_home
from .backbones import (
    Backbone,
    check_fusion,
    load_generator,
    load_text_encoder,
    load_vision_tower,
    load_whole_encoder,
    read_config,
    reader_kind,
)
from .configuration_ravlm import RavlmConfig
from .loading import loading_errors
from .modeling_ravlm import RavlmModel
from .parts.adapters import home_of
from .parts.assembling import put_in_place
from .parts.references import PARTS, pin_revision, processor_state, remember
from .parts.whole_encoder import text_settings
from .processing_ravlm import RavlmProcessor
from .prompts.chat_processor import load_generator_processor
from .prompts.layout import SPECIAL_TOKENS
from .prompts.literal import add_marks
from .reader.probe import check_state, probe_language_model, probe_multimodal
from .reader.reader import RavlmForConditionalGeneration


MAX_PROMPT = {"causal": 1024, "image_text": 8192}  # tokens, where the generator was trained for more
CONFIG_OF = {
    "model.encoder": "encoder_config",
    "model.vision_tower": "vision_config",
    "model.text_encoder": "text_config",
    "language_model": "generator_config",
}
_DERIVED = {  # from the backbones and from other settings
    *CONFIG_OF.values(),
    *("image_token_id", "evidence_token_id", "tie_word_embeddings", "references"),
    *("class_prompt", "answer_head", "detector_config"),  # of heads
    *("self", "image_processor", "tokenizer", "text_tokenizer", "generator_processor", "passage_prompts"),
}
OF_TOWERS = ("projection_dim", "pooling_grid", "text_weight_init", "num_image_tokens")
CONFIG_SETTINGS = [name for name in RavlmConfig.__annotations__ if name not in _DERIVED]
PROCESSOR_SETTINGS = [
    name for name in inspect.signature(RavlmProcessor.__init__).parameters if name not in {*_DERIVED, *CONFIG_SETTINGS}
]
READER_LOADING = (  # arguments of `from_pretrained` that the generator alone is loaded with
    *("quantization_config", "attn_implementation", "device_map", "max_memory", "offload_folder", "offload_buffers"),
    *("variant", "use_safetensors"),
)
FILES_OF = {  # of what prepares a generator's inputs, which may lie with adapters or with their base
    "tokenizer": ("tokenizer_config.json", "tokenizer.json"),
    "generator_processor": ("processor_config.json", "preprocessor_config.json"),
}
HUB_ACCESS = ("token", "cache_dir", "local_files_only", "force_download")  # for every part
OF_A_REPOSITORY = ("revision", "subfolder")  # alone they are of the generator


def from_backbones(
    vision: Backbone | None = None,
    text: Backbone | None = None,
    generator: Backbone | None = None,
    *,
    encoder: Backbone | None = None,
    image_processor: Any = None,
    text_tokenizer: Any = None,
    tokenizer: Any = None,
    generator_processor: Any = None,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    **settings: Any,
) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
    """A reader and its processor out of pretrained backbones.

    Args:
        vision, text, generator (`str`, `os.PathLike` or `PreTrainedModel`):
            each a name on the Hub, a folder, or a model object, which then becomes a part of the model (no copy).
            The generator is a causal language model or an image-text-to-text model; adapters of peft, in a
            `PeftModel` or in a folder or repository of their own, are merged into its weights. `vision` and `text`
            are given both, or neither: then the encoder that finds passages stands beside the reader, and a causal
            generator reads words alone.
        encoder (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
            in the place of `vision` and `text` a dual encoder (CLIP, SigLIP, ALIGN, ...), which is kept whole: its
            features, scale, tokenizer and image processor stay as they were trained.
        image_processor, text_tokenizer, tokenizer, generator_processor (*optional*):
            of the vision tower, the text encoder (or the dual encoder), a causal generator, an image-text-to-text
            generator. Needed only where the backbone is an object that came from no folder.
        dtype (`str` or `torch.dtype`, *optional*):
            of all parts, also as `torch_dtype`; `"auto"` is that of the generator's checkpoint.
        trust_remote_code (`bool`, *optional*): whether backbones on the Hub may bring their own code.
        settings: fields of [`RavlmConfig`] (`fusion`, `projection_dim`, ...); settings of [`RavlmProcessor`]
            (`passage_images`, `max_length`, ...); how the generator is loaded (`quantization_config`,
            `attn_implementation`, `device_map`, ...); `token`, `cache_dir`, `local_files_only` and `force_download`
            for all parts; `revision` and `subfolder` of the generator, `vision_revision`, `text_subfolder` and so on
            of the others. Anything else is refused.

    Returns:
        [`RavlmForConditionalGeneration`] in eval mode and [`RavlmProcessor`].

    Raises:
        `InvalidInputError`: if a backbone does not fit its role or lacks weights, if a processor is missing, or for a
            setting that is not known or cannot be applied.
        `HubUnavailableError`: if the Hub does not give a backbone.

    Example:

    >>> from hf_ravlm import from_backbones
    >>> model, processor = from_backbones(
    ...     "google/siglip2-base-patch16-224", "sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen3-0.6B"
    ... )  # doctest: +SKIP
    >>> model, processor = from_backbones(generator="Qwen/Qwen3-VL-2B-Instruct")  # doctest: +SKIP
    """
    vision, text, generator, encoder = map(at_home, (vision, text, generator, encoder))
    sources = {"vision": vision, "text": text, "encoder": encoder, "generator": generator}
    given = sort_settings(settings, sources, dtype, trust_remote_code)
    check_sources(sources, given.config)
    generator_config = read_config(generator, "generator", **given.access["generator"])
    kind = reader_kind(generator_config)
    check_fusion(generator_config, **given.config)
    if kind == "image_text" and generator_processor is None:  # first, as it is small, and may be what is missing
        generator_processor = _load_for(
            load_generator_processor, generator, "generator_processor", given, kind=generator_config
        )
    parts = {"language_model": _load_language_model(generator, kind, given)}
    language_model = parts["language_model"]
    has_towers = vision is not None or encoder is not None
    if has_towers:
        tower_parts, image_processor, text_tokenizer = _load_towers(
            sources, image_processor, text_tokenizer, language_model, given
        )
        parts |= tower_parts
    tokenizer, generator_processor, marks = _load_reading(
        generator, language_model, tokenizer, generator_processor, given, has_towers
    )
    subconfigs = {CONFIG_OF[name]: _part_config(part) for name, part in parts.items()}
    config = make_config(**subconfigs, **marks, **given.config)
    config.dtype = language_model.dtype
    own_chat = given.processor.get("layout") in ("chat", "plain")  # of a reader that was not trained by us
    longest = MAX_PROMPT["image_text" if own_chat else kind]
    limits = {"max_length": prompt_limit(language_model.config, longest)}
    if config.has_towers:
        limits |= _text_settings(config, text_tokenizer)
    processor = RavlmProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer,
        generator_processor=generator_processor,
        fusion=config.fusion,
        num_image_tokens=config.num_image_tokens,
        num_memory_tokens=config.num_memory_tokens,
        passage_prompts=config.marginalization != "none",
        **{**limits, **given.processor},
    )
    model = put_together(config, parts)
    if model.reads_images:
        probe_multimodal(model, processor)
    return model, processor


@dataclass
class Settings:
    """The keyword arguments of `from_backbones`, by whom they are for."""

    config: dict[str, Any]
    processor: dict[str, Any]
    reader: dict[str, Any]  # how the generator is loaded, beside `access`
    access: dict[str, dict[str, Any]]  # of each part, to its repository


def sort_settings(
    settings: dict[str, Any], sources: dict[str, Backbone | None], dtype: str | torch.dtype, trust_remote_code: bool
) -> Settings:
    """Says who each keyword argument is for.

    Raises:
        `InvalidInputError`: for one that nobody takes, with those that are taken, and for one of loading where a
            backbone came as an object or from a folder that it cannot be applied to.

    >>> sort_settings({"fusionn": "gated"}, {}, "auto", False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: from_backbones takes no fusionn=; did you mean fusion=? It takes ...
    """
    dtype = settings.get("torch_dtype", dtype) if dtype in ("auto", None) else dtype
    of_parts = {f"{part}_{name}": (part, name) for part in sources for name in OF_A_REPOSITORY}
    of_parts |= {name: ("generator", name) for name in OF_A_REPOSITORY}
    choices = [*CONFIG_SETTINGS, *PROCESSOR_SETTINGS, *READER_LOADING, *HUB_ACCESS, *of_parts, "torch_dtype"]
    for name in settings:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, 1)
            hint = f"did you mean {near[0]}=? " if near else ""
            raise InvalidInputError(f"from_backbones takes no {name}=; {hint}It takes {', '.join(sorted(choices))}")
    shared = {"trust_remote_code": trust_remote_code, **_chosen(settings, HUB_ACCESS)}
    access = {part: dict(shared) for part in sources}
    for name, (part, argument) in of_parts.items():
        if settings.get(name) is not None:
            kinds = {"an object": isinstance(sources[part], nn.Module), "a folder": _is_folder(sources[part])}
            came = "nothing" if sources[part] is None else next((kind for kind, is_it in kinds.items() if is_it), None)
            if came == "a folder" and argument == "subfolder":
                came = None
            if came is not None:
                raise InvalidInputError(f"{name}={settings[name]!r} is of a repository, and {part} came as {came}")
            access[part][argument] = settings[name]
    reader = {**_chosen(settings, READER_LOADING), "dtype": _dtype(dtype)}
    return Settings(_chosen(settings, CONFIG_SETTINGS), _chosen(settings, PROCESSOR_SETTINGS), reader, access)


def check_sources(sources: dict[str, Backbone | None], config: dict[str, Any]) -> None:
    """Refuses backbones that make no reader, and settings that they leave without effect, before anything is loaded.

    Raises:
        `InvalidInputError`: with what is missing.
    """
    if sources["generator"] is None:
        raise InvalidInputError("no generator given: expected generator=, a name on the Hub, a folder or a model")
    if sources["encoder"] is not None and (sources["vision"] is not None or sources["text"] is not None):
        raise InvalidInputError("encoder= came with vision= or text=: a dual encoder kept whole is both; give either")
    if (sources["vision"] is None) != (sources["text"] is None):
        missing = "vision" if sources["vision"] is None else "text"
        raise InvalidInputError(f"{missing}= is missing: expected both towers, vision= and text=, or neither")
    make_config(**{name: value for name, value in config.items() if name != "fusion_heads"})  # it depends on the text
    if sources["vision"] is not None:
        return
    if sources["encoder"] is not None:
        if idle := [name for name in ("projection_dim", "pooling_grid", "logit_scale_init") if name in config]:
            raise InvalidInputError(f"{idle[0]}={config[idle[0]]!r}: the encoder is kept whole and has its own")
        return
    if config.get("fusion", "in_context") != "in_context":
        raise InvalidInputError(
            f"fusion={config['fusion']!r} needs towers: give vision= and text=, or choose fusion='in_context'"
        )
    if idle := [name for name in OF_TOWERS if name in config]:
        raise InvalidInputError(f"{idle[0]}={config[idle[0]]!r} is of towers, and none came: give vision= and text=")


def make_config(**fields: Any) -> RavlmConfig:
    """[`RavlmConfig`], whose mistakes are `InvalidInputError` in one line."""
    try:
        return RavlmConfig(**fields)
    except StrictDataclassError as error:
        raise InvalidInputError(" ".join(str(error).split())) from error


def _load_language_model(generator: Backbone, kind: str, given: Settings) -> PreTrainedModel:
    """The generator, which a causal language model becomes only if it keeps the laws of reading."""
    language_model = load_generator(generator, **given.reader, **given.access["generator"])
    if kind == "causal":
        check_state(language_model, given.config.get("marginalization", "none"))
        probe_language_model(language_model)
    return language_model


def _load_reading(
    generator: Backbone,
    language_model: PreTrainedModel,
    tokenizer: Any,
    processor: Any,
    given: Settings,
    has_towers: bool,
) -> tuple[Any, Any, dict[str, int]]:
    """Tokenizer and processor of a generator, and the ids of our marks, which a causal one may gain."""
    if reader_kind(language_model.config) == "image_text":
        processor = processor or _load_for(
            load_generator_processor, generator, "generator_processor", given, kind=language_model.config
        )
        image_token = getattr(language_model.config, "image_token_id", None)
        return processor.tokenizer, processor, {} if image_token is None else {"image_token_id": image_token}
    tokenizer = tokenizer or _load_for(AutoTokenizer.from_pretrained, generator, "tokenizer", given)
    layout = given.processor.get("layout") or layout_for(tokenizer, has_towers)
    given.processor["layout"] = layout
    if layout != "marks":
        return tokenizer, None, {}
    add_marks(tokenizer)
    add_embeddings(language_model, len(tokenizer))
    marks = {name: tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[name]) for name in ("image", "evidence")}
    return tokenizer, None, {f"{name}_token_id": id for name, id in marks.items()}


def _load_towers(
    sources: dict[str, Backbone | None],
    image_processor: Any,
    text_tokenizer: Any,
    language_model: PreTrainedModel,
    given: Settings,
) -> tuple[dict[str, PreTrainedModel], Any, Any]:
    """Both towers in the type and on the device of the language model, and what prepares their inputs."""
    place: dict[str, Any] = {"device": language_model.device, "dtype": language_model.dtype}
    roles = ("encoder",) if sources["encoder"] is not None else ("vision", "text")
    images, words = sources[roles[0]], sources[roles[-1]]
    text_tokenizer = text_tokenizer or _load_for(
        AutoTokenizer.from_pretrained, words, "text_tokenizer", given, roles[-1]
    )
    image_processor = image_processor or _load_for(_load_image_processor, images, "image_processor", given, roles[0])
    loaders = {"encoder": load_whole_encoder, "vision": load_vision_tower, "text": load_text_encoder}
    towers = {
        PARTS[role]: loaders[role](sources[role], dtype=place["dtype"], **given.access[role]).to(**place)
        for role in roles
    }
    return towers, image_processor, text_tokenizer


def from_encoder(
    encoder: Backbone,
    *,
    image_processor: Any = None,
    text_tokenizer: Any = None,
    dtype: str | torch.dtype = "auto",
    **settings: Any,
) -> tuple[RavlmModel, RavlmProcessor]:
    """A pretrained dual encoder as [`RavlmModel`], kept whole, without a reader: for training it further.

    Args:
        encoder (`str`, `os.PathLike` or `PreTrainedModel`):
            a name on the Hub, a folder, or a model object of CLIP, SigLIP, MetaCLIP 2, ALIGN, ..., which then becomes
            a part of the model (no copy).
        image_processor, text_tokenizer (*optional*): needed only for an object that came from no folder.
        dtype (`str` or `torch.dtype`, *optional*): `"auto"` is that of the checkpoint.
        settings: `text_weight_init` of [`RavlmConfig`], and `token`, `cache_dir`, `revision`, ... of the Hub.

    Returns:
        [`RavlmModel`] in eval mode, whose features are those of the encoder, normalised, and [`RavlmProcessor`].

    Raises:
        `InvalidInputError`, `HubUnavailableError`: as `from_backbones`.

    >>> model, processor = from_encoder("google/siglip2-base-patch16-224")  # doctest: +SKIP
    """
    encoder = at_home(encoder)
    named = {f"encoder_{name}" if name in OF_A_REPOSITORY else name: value for name, value in settings.items()}
    given = sort_settings(named, {"encoder": encoder}, dtype, False)
    part = load_whole_encoder(encoder, dtype=given.reader["dtype"], **given.access["encoder"])
    image_processor = image_processor or _load_for(_load_image_processor, encoder, "image_processor", given, "encoder")
    text_tokenizer = text_tokenizer or _load_for(
        AutoTokenizer.from_pretrained, encoder, "text_tokenizer", given, "encoder"
    )
    config = make_config(encoder_config=_part_config(part), **given.config)
    config.dtype = part.dtype
    with torch.device("meta"):
        model = RavlmModel(config)
    put_in_place(model, {"encoder": part})
    texts = {**_text_settings(config, text_tokenizer), **given.processor}
    tokenizer = copy.deepcopy(text_tokenizer)  # of a reader that is not there; it gains the marks of prompts
    return model.eval(), RavlmProcessor(image_processor, tokenizer, text_tokenizer, **texts)


def _text_settings(config: RavlmConfig, tokenizer: Any) -> dict[str, Any]:
    limits = {"max_text_length": text_limit(config.text_config, tokenizer)}
    return limits | ({} if config.encoder_config is None else text_settings(config.encoder_config, tokenizer))


def put_together(config: RavlmConfig, parts: dict[str, PreTrainedModel]) -> RavlmForConditionalGeneration:
    """A reader with `parts` in their places and the rest initialised; the parts' own weights are never touched."""
    with torch.device("meta"):  # so that what is loaded already is not made a second time
        model = RavlmForConditionalGeneration(config)
    put_in_place(model, parts)
    if getattr(model.language_model, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(model.language_model.generation_config)
    return model.eval()


def add_embeddings(language_model: PreTrainedModel, num_tokens: int) -> None:
    """Grows the vocabulary to `num_tokens`, if it is smaller; every new row is the mean of the old ones."""
    before = language_model.get_input_embeddings().num_embeddings
    if num_tokens <= before:
        return
    language_model.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if tensor is not None and len(tensor) == num_tokens:
                    tensor[before:] = tensor[:before].float().mean(dim=0).to(tensor.dtype)


def layout_for(tokenizer: Any, has_towers: bool) -> str:
    """In which layout a causal generator is asked: ours if it knows our marks or sees by a tower, else its own."""
    if has_towers or SPECIAL_TOKENS["passage"] in tokenizer.get_vocab():
        return "marks"
    return "chat" if tokenizer.chat_template else "plain"


def prompt_limit(config: PreTrainedConfig, at_most: int) -> int:
    """Tokens of a prompt; an eighth of what the generator can hold is left for the answer.

    >>> from transformers import GPT2Config
    >>> prompt_limit(GPT2Config(), 8192)
    896
    """
    holds = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(at_most, holds - holds // 8) if holds else at_most


_SHIFTED = ("camembert", "mpnet", "longformer", "altclip_text_model")


def text_limit(config: PreTrainedConfig, tokenizer: Any) -> int:
    """Tokens of a question or passage that the text encoder can hold (77 of CLIP), at most 256."""
    holds = getattr(config, "max_position_embeddings", None) or 256
    if "roberta" in config.model_type or config.model_type in _SHIFTED:
        holds -= config.pad_token_id + 1  # their positions count from there
    return min(256, holds, tokenizer.model_max_length)


def _part_config(part: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of a part, without where it came from."""
    config = copy.deepcopy(part.config)
    config._name_or_path = ""
    if hasattr(config, "quantization_config"):  # the whole reader's says it; one of GGUF was unpacked
        del config.quantization_config
    return config


def _load_for(
    load: Any, source: Backbone, argument: str, given: Settings, part: str = "generator", **more: Any
) -> Any:
    """What prepares the inputs of a backbone, from where it came from."""
    folder, access = _home_of_part(source, argument, given.access[part])
    if argument in FILES_OF:
        with loading_errors(argument.replace("_", " "), folder):
            folder, access = home_of(folder, access, FILES_OF[argument])
    access = pin_revision(folder, access)
    with loading_errors(argument.replace("_", " "), folder):
        found = load(folder, **more, **access)
    if argument != "image_processor":  # which is a few lines of its own
        remember(found, folder, access)
    return found


def unless_at_home(given: Any, language_model: Any, argument: str) -> Any:
    """What prepares the inputs of a reader, or `None` if it is as it lies where the reader came from.

    `pipeline` of transformers loads it beside the reader and notes no commit, and of adapters takes that of the base.
    Where it is left out, `from_backbones` loads it by the commit of the reader, which a saved system can refer to.
    """
    loaded = vars(language_model).get("loaded_from")
    name = getattr(getattr(given, "tokenizer", given), "name_or_path", None)
    if given is None or loaded is None or not name:
        return given
    homes = [(loaded.reference.get(f"{of}name"), loaded.reference.get(f"{of}revision")) for of in ("", "base_")]
    if (commit := dict(homes).get(name)) is None:
        return given
    is_tokenizer = argument == "tokenizer"
    load = (
        AutoTokenizer.from_pretrained
        if is_tokenizer
        else partial(load_generator_processor, kind=language_model.config)
    )
    try:
        there = load(name, revision=commit, **loaded.access)
    except (OSError, ValueError):  # nothing lies there, or it needs code of its own
        return given
    return None if processor_state(there) == processor_state(given) else given


def _load_image_processor(folder: Any, **access: Any) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(folder, **access)
    except ImportError:  # some (DINOv3) need torchvision, and do what this one does without it
        return ViTImageProcessorPil.from_pretrained(folder, **access)


def _chosen(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _is_folder(source: Backbone | None) -> bool:
    return isinstance(source, (str, os.PathLike)) and os.path.isdir(source)


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """What `from_pretrained` takes as `dtype`.

    Raises:
        `InvalidInputError`: if there is no such type.
    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise InvalidInputError(f"dtype={dtype!r}: expected 'auto', 'float32', 'bfloat16', 'float16' or a torch.dtype")
    return found


def _home_of_part(source: Backbone, argument: str, access: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Where a backbone came from, and the access to it, to load what belongs to it: of an object as it was loaded.

    Args:
        argument: what a user gives where there is none.
    """
    if not isinstance(source, nn.Module):
        return source, access
    if (loaded := vars(source).get("loaded_from")) is not None:
        names = ("revision", "subfolder", "base_name", "base_revision")
        of_repository = {name: loaded.reference[name] for name in names if name in loaded.reference}
        return loaded.reference["name"], {**access, **loaded.access, **of_repository}
    if not source.name_or_path:
        raise InvalidInputError(
            f"a {type(source).__name__} object that came from no folder does not tell what prepares its inputs; give "
            f"{argument}="
        )
    return os.fspath(source.name_or_path), access
