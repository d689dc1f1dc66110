"""Backbones: the models of transformers that can be a vision tower, a text encoder or a generator of ours.

What does not fit a role is refused by name, and weights that a checkpoint lacks are an error, not random numbers.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal, Union

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForObjectDetection,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import InvalidInputError
from ..saving.reaching import OFFLINE
from .loading import loading_errors
from .parts.adapters import OF_BASE, adapter_base, has_adapters, merged, with_noted_adapters
from .parts.references import pin_revision, remember
from .parts.whole_encoder import check_whole_encoder


Backbone = Union[str, "os.PathLike[str]", PreTrainedModel]
Reader = Literal["image_text", "causal"]

OF_ANY_SOURCE = ("trust_remote_code", "token", "cache_dir", "local_files_only", "force_download")
_EXPECTED = (
    "expected a type of AutoModelForCausalLM (llama, qwen3, gpt2, gemma3_text, opt, ...) or of "
    "AutoModelForImageTextToText (qwen2_5_vl, llava, smolvlm, gemma3, ...)"
)
MAPPINGS: dict[Reader, Any] = {
    "image_text": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING,
}
AUTO_READERS: dict[str, Any] = {"image_text": AutoModelForImageTextToText, "causal": AutoModelForCausalLM}


def reader_kind(config: PreTrainedConfig) -> Reader:
    """How a generator reads: `"image_text"` sees images by itself, `"causal"` sees those that we project for it.

    A type that is in both mappings of transformers (Gemma 3, Llama 4) is an image-text-to-text model.

    Raises:
        `InvalidInputError`: for a type in neither mapping, for encoder-decoders, and for what writes otherwise than
            token by token.

    >>> from transformers import Gemma3Config, LlamaConfig
    >>> reader_kind(LlamaConfig()), reader_kind(Gemma3Config())
    ('causal', 'image_text')
    """
    if config.model_type == "ravlm":
        raise InvalidInputError(
            "the generator is a whole reader of ours: load it with AutoModelForImageTextToText.from_pretrained, and "
            "its processor with AutoProcessor"
        )
    if config.is_encoder_decoder:
        raise InvalidInputError(
            f"the generator is a {config.model_type!r} model, an encoder-decoder; expected a decoder: a causal "
            "language model (llama, qwen3, gpt2, gemma3_text, opt, ...) or an image-text-to-text model (qwen2_5_vl, "
            "llava, smolvlm, gemma3, ...)"
        )
    of_images, of_words = (_class_in(mapping, config) for mapping in MAPPINGS.values())
    kind: Reader
    if of_images is not None and "image" in of_images.input_modalities:  # not so Mistral 4, which is of words alone
        kind, found = "image_text", of_images
    elif of_words is not None and getattr(config, "vision_config", None) is None:  # not so Phi-4-multimodal
        kind, found = "causal", of_words
    else:
        why = "neither generates text nor reads images" if of_images is None else "reads no images"
        if of_words is not None:
            why = "sees images by itself, but is for transformers a language model of words alone"
        raise InvalidInputError(f"the generator is a {config.model_type!r} model, which {why}; {_EXPECTED}")
    if not issubclass(found, GenerationMixin):
        raise InvalidInputError(
            f"the generator is a {config.model_type!r} model, which does not write token by token as GenerationMixin "
            f"does; {_EXPECTED}"
        )
    return kind


def _class_in(mapping: Any, config: PreTrainedConfig) -> Any:
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def check_fusion(
    generator_config: PreTrainedConfig, fusion: str = "in_context", marginalization: str = "none", **_: Any
) -> None:
    """Refuses ways of giving evidence that a generator of this configuration cannot take.

    Raises:
        `InvalidInputError`: for an image-text-to-text model and anything but one prompt with all passages.
    """
    if (fusion, marginalization) != ("in_context", "none") and reader_kind(generator_config) == "image_text":
        raise InvalidInputError(
            f"fusion={fusion!r} and marginalization={marginalization!r} with a {generator_config.model_type!r} "
            "generator: an image-text-to-text model reads its passages in one prompt; choose fusion='in_context' and "
            "marginalization='none', or a causal language model"
        )


def load_generator(source: Backbone, **loading: Any) -> PreTrainedModel:
    """The generator: a causal language model, or an image-text-to-text model with its own vision tower.

    Adapters of peft, in a `PeftModel` or in a folder or repository of their own, are merged into its weights.

    Args:
        source (`str`, `os.PathLike` or `PreTrainedModel`): name on the Hub, folder, or the model itself.
        loading: passed to `from_pretrained` (`dtype`, `quantization_config`, `trust_remote_code`, `revision`, ...).

    Raises:
        `InvalidInputError`: if it is no generator, its checkpoint lacks weights, or it came as an object and
            `loading` asks for what only loading can do.
    """
    if not isinstance(source, nn.Module):
        loading = pin_revision(source, loading)
        of_base = {name: loading.pop(name) for name in OF_BASE if name in loading}
        with loading_errors("generator", source):
            found = adapter_base(source, {**loading, **of_base})
        if found is not None:
            return _load_adapted(source, *found, loading)
        config = read_config(source, "generator", **loading)
        model = _load(AUTO_READERS[reader_kind(config)], source, config, "generator", **loading)
        return merged(model) if has_adapters(model) else model
    source = merged(source) if has_adapters(source) else source
    kind = reader_kind(source.config)
    if not isinstance(source, expected := MAPPINGS[kind][type(source.config)]):
        raise InvalidInputError(
            f"the generator came as a {type(source).__name__}, which has no head that writes; expected a "
            f"{expected.__name__}: load it with {AUTO_READERS[kind].__name__}"
        )
    _apply_loading(source, **loading)
    return source


def _load_adapted(source: Any, base: str, of_base: dict[str, Any], loading: dict[str, Any]) -> PreTrainedModel:
    """The base that adapters name, with these in its weights; it remembers both commits."""
    model = load_generator(base, **of_base)
    with loading_errors("adapters", source):
        return with_noted_adapters(model, source, loading)


def _apply_loading(
    model: PreTrainedModel, dtype: str | torch.dtype = "auto", attn_implementation: Any = None, **loading: Any
) -> None:
    """Does to a generator that came as an object what loading would have done, or says that it cannot be done."""
    late = [name for name, value in loading.items() if value is not None and name not in OF_ANY_SOURCE]
    if dtype != "auto" and dtype != model.dtype:
        late.append("dtype")
    if late:
        raise InvalidInputError(
            f"{late[0]}= is of loading, and the generator came as an object: load it with {late[0]}=, or give its "
            "name or folder"
        )
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)


def load_vision_tower(source: Backbone, **loading: Any) -> PreTrainedModel:
    """The vision tower: any model that turns images into patch features; the vision half of a dual tower.

    Raises:
        `InvalidInputError`: if it takes no fixed-size images, or its checkpoint lacks weights.
    """
    tower = _load_half(source, "vision", **loading)
    if tower.config.model_type == "vit_mae":
        raise InvalidInputError(
            "the vision tower is a ViT-MAE, which leaves out patches by chance and shuffles the rest; choose a ViT, "
            "DINOv2, CLIP or SigLIP, or let it find images from beside the reader (`load_encoder`)"
        )
    if tower.config.model_type == "siglip2_vision_model":
        raise InvalidInputError(
            "the vision tower is a SigLIP 2 of flexible resolution (NaFlex), which takes patches with their shapes "
            "and no images; choose a SigLIP 2 of fixed resolution (siglip2-base-patch16-224, ...), which loads as "
            "SigLIP"
        )
    if tower.main_input_name != "pixel_values":
        raise InvalidInputError(
            f"the vision tower is a {type(tower).__name__}, which reads {tower.main_input_name}; expected a model "
            "that reads pixel_values (ViT, CLIP, SigLIP, DINOv2, DINOv3, ConvNeXt, ResNet, ...)"
        )
    return tower


def load_text_encoder(source: Backbone, **loading: Any) -> PreTrainedModel:
    """The text encoder: any model that turns tokens into states of `hidden_size`; the text half of a dual tower.

    Raises:
        `InvalidInputError`: for an encoder-decoder or a model without texts, or if its checkpoint lacks weights.
    """
    encoder = _load_half(source, "text", **loading)
    if encoder.main_input_name != "input_ids" or encoder.config.is_encoder_decoder:
        raise InvalidInputError(
            f"the text encoder is a {type(encoder).__name__}, which reads {encoder.main_input_name}"
            f"{' and has a decoder' if encoder.config.is_encoder_decoder else ''}; expected a model of texts alone "
            "(BERT, MiniLM, RoBERTa, ModernBERT, the text half of CLIP, ...)"
        )
    return encoder


def read_config(source: Backbone, role: str = "backbone", **loading: Any) -> PreTrainedConfig:
    """The configuration of a backbone that may not be loaded yet; of `loading` the access to its repository counts.

    Raises:
        `InvalidInputError`, `HubUnavailableError`: if there is none.
    """
    if isinstance(source, nn.Module):
        return source.config
    if os.fspath(source) == OFFLINE and not os.path.isdir(source):
        raise InvalidInputError(
            f"{source!r} is no {role} that can be a part of a model: it is what stands beside one, "
            "`load_encoder('offline')`, and a reader, `hf_ravlm.offline_reader()`. Name a folder or a Hub id."
        )
    access = {name: loading[name] for name in (*OF_ANY_SOURCE, "revision", "subfolder") if name in loading}
    with loading_errors(role, source):
        found = adapter_base(source, access) if role == "generator" else None
    if found is not None:
        return read_config(found[0], role, **found[1])
    with loading_errors(role, source):
        return AutoConfig.from_pretrained(source, **access)


def _load_half(source: Backbone, half: Literal["vision", "text"], **loading: Any) -> PreTrainedModel:
    loading = pin_revision(source, loading)
    config = read_config(source, f"{half} part", **loading)
    config = getattr(config, f"{half}_config", config)
    if type(config) not in MODEL_MAPPING and not loading.get("trust_remote_code"):
        raise InvalidInputError(
            f"the {half} part is of type {config.model_type!r}, which AutoModel does not know; choose another "
            + ("vision tower (ViT, CLIP, SigLIP, ...)" if half == "vision" else "text encoder (BERT, CLIP, ...)")
            + "; a dual encoder is kept whole with encoder="
        )
    if not isinstance(source, nn.Module):
        return _load(AutoModel, source, config, f"{half} part", **loading)
    for module in source.modules():  # the model itself, the base of a model with a head, or half of a dual tower
        if isinstance(module, MODEL_MAPPING[type(config)]):
            return module
    raise InvalidInputError(
        f"the {half} part came as a {type(source).__name__}, in which there is no "
        f"{MODEL_MAPPING[type(config)].__name__}; give its folder, or that part itself"
    )


def _load(auto: Any, source: Any, config: PreTrainedConfig, role: str, **loading: Any) -> PreTrainedModel:
    """The model, which remembers its repository, if it came from one."""
    lookup = {name: loading[name] for name in ("cache_dir", "local_files_only", "force_download") if name in loading}
    quantization = loading.get("quantization_config")
    try:
        with loading_errors(role, source):
            model, report = auto.from_pretrained(
                source, config=config, output_loading_info=True, adapter_kwargs=lookup, **loading
            )
    except (RuntimeError, NotImplementedError) as error:
        if quantization is None:
            raise
        raise InvalidInputError(
            f"the {role} {os.fspath(source)!r} cannot be quantized by {type(quantization).__name__} here: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    missing = [key for key in report["missing_keys"] if "pooler" not in key]  # we pool ourselves
    if missing or report["mismatched_keys"]:
        misshapen = [str(entry[0]) for entry in report["mismatched_keys"]]
        raise InvalidInputError(
            f"the {role} {os.fspath(source)!r} lacks {len(missing)} weights of a {type(model).__name__}, and "
            f"{len(misshapen)} have another shape ({', '.join([*sorted(missing), *misshapen][:3])}, ...): they would "
            "start from random numbers; give a checkpoint of this architecture"
        )
    remember(model, source, loading, **({} if quantization is None else {"quantization_config": quantization}))
    return model


def load_whole_encoder(source: Backbone, **loading: Any) -> PreTrainedModel:
    """A dual encoder with all that it was trained with: towers, pooling, projections, scale.

    Raises:
        `InvalidInputError`: if it is none, or its checkpoint lacks weights.
    """
    if isinstance(source, nn.Module):
        check_whole_encoder(source.config)
        return source
    loading = pin_revision(source, loading)
    config = read_config(source, "encoder", **loading)
    check_whole_encoder(config)
    return _load(AutoModel, source, config, "encoder", **loading)


def check_detector(config: PreTrainedConfig, model: nn.Module | None = None) -> None:
    """Refuses what proposes no boxes by queries, each with scores of the classes.

    Raises:
        `InvalidInputError`: with what it is.
    """
    found = _class_in(MODEL_FOR_OBJECT_DETECTION_MAPPING, config)
    fits = found is not None and not config.model_type.startswith("pp_ocr")
    if not fits or (model is not None and not isinstance(model, found)):
        what = "model" if model is None else f"model that came as a {type(model).__name__}"
        raise InvalidInputError(
            f"the detector is a {config.model_type!r} {what}, which has no queries with boxes and class scores; "
            "expected a model of AutoModelForObjectDetection (detr, rt_detr, d_fine, yolos, deformable_detr, ...)"
        )


def load_detector(source: Backbone, **loading: Any) -> PreTrainedModel:
    """A detector with all that it was trained with.

    Raises:
        `InvalidInputError`: if it is none, or its checkpoint lacks weights.
    """
    if isinstance(source, nn.Module):
        check_detector(source.config, source)
        return source
    loading = pin_revision(source, loading)
    config = read_config(source, "detector", **loading)
    check_detector(config)
    return _load(AutoModelForObjectDetection, source, config, "detector", **loading)


LOADERS = {
    "detector": load_detector,
    "encoder": load_whole_encoder,
    "generator": load_generator,
    "vision": load_vision_tower,
    "text": load_text_encoder,
}  # by role


def patch_grid(features: torch.Tensor, grid: int, raster: tuple[int, int] | None = None) -> torch.Tensor:
    """Averages patch features over a raster of `grid` times `grid` cells.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)` or `(B, T, C)`):
            A feature map, or tokens of which the last are the patches (class and register tokens come first).
        grid (`int`): cells per side.
        raster (`(int, int)`, *optional*): rows and columns of the patches, see `patch_raster`; `None` for a square.

    Returns:
        `torch.Tensor` of shape `(B, grid * grid, C)`, row by row.

    >>> tokens = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])  # a class token and 2 x 2 patches
    >>> patch_grid(tokens, 1).tolist(), patch_grid(tokens, 2).flatten().tolist()
    ([[[2.5]]], [1.0, 2.0, 3.0, 4.0])
    >>> patch_grid(tokens, 2, (1, 4)).flatten().tolist()  # one row of four patches
    [1.5, 3.5, 1.5, 3.5]
    """
    if features.dim() == 3:
        rows, columns = raster or patch_raster(features.shape[1])
        features = features[:, -rows * columns :].mT.unflatten(-1, (rows, columns))  # (B, C, rows, columns)
    return F.adaptive_avg_pool2d(features, grid).flatten(2).mT  # (B, grid * grid, C)


def patch_raster(
    num_tokens: int, size: tuple[int, int] | torch.Size | None = None, config: Any = None
) -> tuple[int, int]:
    """Rows and columns of the patches among the tokens of an image.

    Args:
        num_tokens (`int`): `T`, those before the patches included.
        size (`(int, int)`, *optional*): height and width of the image in pixels.
        config (*optional*): of the vision tower, which tells its `patch_size`; without, the patches form a square.

    >>> from types import SimpleNamespace
    >>> patch_raster(9, (16, 32), SimpleNamespace(patch_size=8)), patch_raster(10)
    ((2, 4), (3, 3))
    """
    patch = getattr(config, "patch_size", None)
    if size is not None and patch is not None:
        sides = patch if isinstance(patch, (tuple, list)) else (patch, patch)
        rows, columns = size[0] // sides[0], size[1] // sides[1]
        while rows * columns > num_tokens and max(rows, columns) > 1:  # towers that merge patches as they go (Swin)
            rows, columns = -(-rows // 2), -(-columns // 2)
        if 0 < rows * columns <= num_tokens:
            return rows, columns
    side = math.isqrt(num_tokens)
    return side, side


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the token states `(B, L, C)` that `mask` `(B, L)` keeps; zeros where it keeps none.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[True, True, False]])).item()
    2.0
    """
    kept = mask.to(states.dtype).unsqueeze(-1)
    return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
