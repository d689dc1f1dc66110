"""`load_encoder`: an encoder by the name of its repository or by its folder, of whatever kind it is.

It says how it was loaded (`reference`), so that a knowledge base keeps it and loads it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from ...errors import InvalidInputError, RavlmError
from ...images import is_address
from ...saving.commit import hub_errors, hub_failure
from ...saving.reaching import check_spelling
from ...saving.safe_paths import at_home
from .dual_encoder import DualEncoder, ImageEncoder
from .encoders import Encoder, RavlmEncoder
from .inference_model import resolve_dtype
from .late_interaction_encoder import LateInteractionEncoder
from .offline_encoder import load_offline_encoder
from .reference import ENCODER_KINDS, OFFLINE, describe_reference
from .remote_encoder import load_remote_encoder
from .sentence_transformer_encoder import SentenceTransformerEncoder, load_sentence_transformer
from .text_model_encoder import TextModelEncoder, read_json, sentence_transformers_settings


_WITH_PROMPTS = ("dual", "text", "sentence-transformers")
# Texts are read from left to right, but by faster kernels both ways where no row of a batch needs padding.
_EAGER = ("aimv2",)
# Of families that have features of images and texts, but none in one space.
_NOT_IN_ONE_SPACE = {
    "blip-2": "its texts are those of a language model, not in one space with its images",
    "pe_video": "it reads videos",
    "videoprism": "it reads videos",
    "xclip": "it reads videos",
    "clap": "it reads sounds",
    "clvp": "it reads sounds",
}


def load_encoder(
    name: str | os.PathLike[str],
    *,
    kind: str = "auto",
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    hub_kwargs: dict[str, Any] | None = None,
) -> Encoder:
    """Loads a model and returns the encoder of its kind.

    Args:
        name: Folder or Hub id of a model of images and texts (CLIP, SigLIP 2, a `RavlmModel`, ...), of images
            (DINOv2, ...), of texts (E5, Qwen3-Embedding, ...), of any model of sentence-transformers, or of a
            late-interaction model (ColQwen2, ...); `"offline"` for the one that Python packages carry; or the address
            of a server with `/v1/embeddings`, `"http://localhost:8000/v1"`, or `"http://localhost:8000/v1#NAME"` where
            it has several models.
        kind: One of `ENCODER_KINDS`; `"auto"` looks at the model's settings.
        query_prompt, passage_prompt: Put before the text of every query or passage; `None` for what the model says in
            its own `config_sentence_transformers.json`, and `""` for none.
        dtype: See `RavlmEncoder`.
        device: Such as `"cuda"`; `None` leaves the model on the CPU.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ... for the Hub.

    Returns:
        An encoder. Its `reference` is a JSON dictionary that says how to load it again (name, commit, kind, prompts,
        dtype), which a knowledge base keeps; `None` for a folder, of which `folder_name` is kept for messages.

    Raises:
        InvalidInputError: If there is no such kind or model, it cannot encode, or takes no prompts.
        HubUnavailableError: If the Hub does not give the model.
        ImportError: If a package is missing that the model needs.

    >>> load_encoder("google/siglip2-base-patch16-224", dtype="auto").name  # doctest: +SKIP
    'SiglipModel dtype=bfloat16'
    """
    if name == OFFLINE["name"] and not os.path.isdir(name):
        return load_offline_encoder(device)
    if is_address(name):
        if kind != "auto" or dtype is not None:
            raise InvalidInputError(f"{name}: a server's encoder takes no kind= and no dtype=; prompts it takes.")
        return load_remote_encoder(str(name), query_prompt=query_prompt, passage_prompt=passage_prompt)
    name = at_home(name)
    check_spelling(os.fspath(name))
    if kind not in ENCODER_KINDS:
        raise InvalidInputError(f"kind={kind!r} is not known. Choose one of {ENCODER_KINDS}.")
    resolve_dtype(dtype, device or "cpu")  # refused before a large model is loaded for nothing
    name, hub_kwargs = os.fspath(name), dict(hub_kwargs or {})
    with encoder_errors(name):
        commit = None if os.path.isdir(name) else _commit_of(name, hub_kwargs)
        if commit is not None:
            hub_kwargs["revision"] = commit  # everything comes from it, though a branch may move meanwhile
        found = _kind_of(name, hub_kwargs) if kind == "auto" else kind
        prompts = {"query_prompt": query_prompt, "passage_prompt": passage_prompt}
        given = {side: prompt for side, prompt in prompts.items() if prompt is not None}
        if given and found not in _WITH_PROMPTS:
            raise InvalidInputError(
                f"{next(iter(given))}={next(iter(given.values()))!r}: {name} is an encoder of the kind {found!r}, "
                f"which takes no prompts. Kinds that do: {_WITH_PROMPTS}."
            )
        encoder: Any = _LOADERS[found](name, dtype, device, hub_kwargs, given)
    encoder.folder_name = None if commit is not None else os.path.basename(os.path.abspath(name))
    encoder.reference = None
    if commit is not None:
        settings = {**prompts, "dtype": resolve_dtype(dtype, device or "cpu")}
        encoder.reference = {"name": name, "revision": commit, "kind": found, **settings}
    loaded: Encoder = encoder
    return loaded


def load_recorded_encoder(
    reference: dict[str, Any], where: Any, hub_kwargs: dict[str, Any], device: str | None = None
) -> Encoder:
    """Loads the encoder that a knowledge base names.

    Args:
        reference: As `checked_reference` returned it.
        where: The knowledge base, for messages.
        hub_kwargs: `token`, `cache_dir`, ...; another `revision` is that of the knowledge base and does not count.
        device: See `load_encoder`.

    Raises:
        InvalidInputError, HubUnavailableError, ImportError: As `load_encoder`, saying who needs the encoder.
    """
    if reference["name"] == OFFLINE["name"]:
        return load_offline_encoder(device)
    access: dict[str, Any] = {
        key: hub_kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in hub_kwargs
    }
    options = {key: reference[key] for key in ("kind", "query_prompt", "passage_prompt", "dtype")}
    try:
        resolve_dtype(options["dtype"], device or "cpu")
    except InvalidInputError:  # built on another device; the probes of the knowledge base tell whether it is as good
        options["dtype"] = None
    access["revision"] = reference["revision"]
    try:
        return load_encoder(reference["name"], **options, device=device, hub_kwargs=access)
    except (RavlmError, ImportError) as error:
        raise type(error)(
            f"{where}: the knowledge base was built by {describe_reference(reference)}, and it cannot be loaded "
            f"again: {error} Or pass `encoder=`, a copy of it that you have."
        ) from error


@contextmanager
def encoder_errors(name: str) -> Iterator[None]:
    """Turns whatever goes wrong while an encoder is loaded into one line that says which, and what to do.

    Raises:
        HubUnavailableError: If the Hub does not give it.
        ImportError: If a package is missing.
        InvalidInputError: For everything else.
    """
    try:
        yield
    except RavlmError:
        raise
    except Exception as error:  # whatever libraries raise for what is not theirs
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__)[:300]
        if isinstance(error, ImportError):
            raise ImportError(
                f"The encoder {name!r} needs a package that is missing: {' '.join(lines)[:300]}"
            ) from error
        if hub_failure(error) is not None:
            with hub_errors(f"loading the encoder {name!r} (there is no folder of this name here)"):
                raise
        raise InvalidInputError(
            f"The encoder {name!r} cannot be loaded: {reason} Expected the folder or Hub id of a model of images, "
            "texts or both."
        ) from error


def _commit_of(name: str, hub_kwargs: dict[str, Any]) -> str:
    """The commit that a name stands for now, by the first file that every kind of model has one of."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    for file in ("config.json", "modules.json"):
        try:
            path = hf_hub_download(name, file, **hub_kwargs)
        except LocalEntryNotFoundError:  # the Hub is away
            raise
        except EntryNotFoundError:
            continue
        except HFValidationError as error:
            raise InvalidInputError(f"{name}: there is no such folder, and this is no name on the Hub.") from error
        return os.path.basename(str(path)[: -len(file) - 1])
    raise InvalidInputError(f"{name}: the repository holds no model (no config.json). Check the name.")


def _kind_of(name: str, hub_kwargs: dict[str, Any]) -> str:
    """The kind of a model by its settings; `InvalidInputError` for what encodes nothing."""
    from transformers import AutoConfig

    settings = read_json(name, "config.json", hub_kwargs) or {}
    modules = read_json(name, "modules.json", hub_kwargs)
    if modules is not None:
        foreign = [m["type"] for m in modules if not str(m["type"]).startswith("sentence_transformers.")]
        if foreign:
            raise InvalidInputError(
                f"{name}: the model brings code of its own ({foreign[0]}), which is not run. Choose one without, or "
                "wrap it yourself in an object with `encode_queries`, `encode_passages` and `fingerprint`."
            )
        try:
            sentence_transformers_settings(name, hub_kwargs)
        except InvalidInputError:
            return "sentence-transformers"
    if "auto_map" in settings and "model_type" not in settings:
        raise InvalidInputError(f"{name}: the model brings code of its own, which is not run. Choose another encoder.")
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    kind = _kind_of_config(config, settings)
    if kind is None:
        raise InvalidInputError(f"{name}: {_why_not(config)}. Expected a model of images, texts or both.")
    return "sentence-transformers" if modules is not None and kind not in ("text", "dual") else kind


def _kind_of_config(config: Any, settings: dict[str, Any]) -> str | None:
    from transformers import MODEL_FOR_IMAGE_MAPPING, MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_MAPPING

    if config.model_type == "ravlm":
        return "ravlm"
    architecture = (settings.get("architectures") or [""])[0]
    if architecture.endswith("ForRetrieval"):
        return "late-interaction"
    if config.model_type in _NOT_IN_ONE_SPACE or type(config) not in MODEL_MAPPING:
        return None
    model = MODEL_MAPPING[type(config)]
    model = model[0] if isinstance(model, tuple) else model
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return "dual"
    if model.main_input_name == "pixel_values":
        sees = type(config) in MODEL_FOR_IMAGE_MAPPING and type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING
        return "image" if sees or config.model_type.endswith("_vision_model") else None
    is_text = model.main_input_name == "input_ids" and not hasattr(config, "vision_config")
    is_half = config.model_type.endswith("_text_model")
    return "text" if is_text and not is_half and not config.is_encoder_decoder else None


def _why_not(config: Any) -> str:
    reason = _NOT_IN_ONE_SPACE.get(config.model_type)
    if reason is None and hasattr(config, "vision_config"):
        reason = "it is an image-text-to-text model, which answers and does not encode"
    if reason is None and getattr(config, "is_encoder_decoder", False) and hasattr(config, "vocab_size"):
        reason = "it has a decoder; load it through sentence-transformers, kind='sentence-transformers'"
    if config.model_type.endswith("_text_model"):
        reason = "it is the text half of a dual encoder; name the whole model"
    return f"the model is of the type {config.model_type!r}: {reason or 'it gives no vectors of images or texts'}"


def _load_ravlm(name: str, dtype: Any, device: Any, hub_kwargs: dict[str, Any], prompts: dict[str, str]) -> Encoder:
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(name, trust_remote_code=False, **hub_kwargs).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    return RavlmEncoder(_on(model, device), processor, dtype=dtype)


def _load_dual(name: str, dtype: Any, device: Any, hub_kwargs: dict[str, Any], prompts: dict[str, Any]) -> Encoder:
    model = _load_whole(name, hub_kwargs)
    return DualEncoder(_on(model, device), _load_processor(name, hub_kwargs), dtype=dtype, **prompts)


def _load_image(name: str, dtype: Any, device: Any, hub_kwargs: dict[str, Any], prompts: dict[str, str]) -> Encoder:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # of training
    cls = _with_projection(name, hub_kwargs) or AutoModel
    model, report = cls.from_pretrained(name, config=config, output_loading_info=True, **hub_kwargs)
    _require_weights(name, model, [key for key in report["missing_keys"] if "pooler" not in key])
    pooled = False if any("pooler" in key for key in report["missing_keys"]) else None
    return ImageEncoder(_on(model.eval(), device), _load_image_processor(name, hub_kwargs), dtype=dtype, pooled=pooled)


def _load_text(name: str, dtype: Any, device: Any, hub_kwargs: dict[str, Any], prompts: dict[str, str]) -> Encoder:
    return TextModelEncoder.from_pretrained(name, dtype=dtype, device=device, hub_kwargs=hub_kwargs, **prompts)


def _load_sentences(
    name: str, dtype: Any, device: Any, hub_kwargs: dict[str, Any], prompts: dict[str, Any]
) -> Encoder:
    if dtype is not None:
        raise InvalidInputError(f"dtype={dtype!r}: a sentence-transformers model keeps its own number type.")
    return SentenceTransformerEncoder(load_sentence_transformer(name, device=device or "cpu", **hub_kwargs), **prompts)


def _load_late(name: str, dtype: Any, device: Any, hub_kwargs: dict[str, Any], prompts: dict[str, str]) -> Any:
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    architecture = _class_named((config.architectures or [""])[0])
    if architecture is None:
        raise InvalidInputError(
            f"{name}: transformers knows no late-interaction model of the type {config.model_type!r}."
        )
    model, report = architecture.from_pretrained(name, output_loading_info=True, **hub_kwargs)
    _require_weights(name, model, report["missing_keys"])
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    return LateInteractionEncoder(_on(model.eval(), device), processor, dtype=dtype)


_LOADERS: dict[str, Callable[..., Any]] = {
    "ravlm": _load_ravlm,
    "dual": _load_dual,
    "image": _load_image,
    "text": _load_text,
    "sentence-transformers": _load_sentences,
    "late-interaction": _load_late,
}


def _load_whole(name: str, hub_kwargs: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    options = {"attn_implementation": "eager"} if config.model_type in _EAGER else {}
    model, report = AutoModel.from_pretrained(
        name, trust_remote_code=False, output_loading_info=True, **options, **hub_kwargs
    )
    _require_weights(name, model, report["missing_keys"])
    return model.eval()


def _require_weights(name: str, model: Any, missing: Any) -> None:
    if missing:
        raise InvalidInputError(
            f"The encoder {name!r} lacks {len(missing)} weights of a {type(model).__name__} "
            f"({', '.join(sorted(missing)[:3])}, ...), which would be random numbers. Choose another checkpoint."
        )


def _load_processor(name: str, hub_kwargs: dict[str, Any]) -> Any:
    """The processor of a dual encoder, or its two parts where there is none that holds both."""
    from transformers import AutoProcessor, AutoTokenizer

    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    except (ImportError, ValueError):
        processor = None
    if hasattr(processor, "image_processor") and hasattr(processor, "tokenizer"):
        return processor
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    return SimpleNamespace(image_processor=_load_image_processor(name, hub_kwargs), tokenizer=tokenizer)


def _load_image_processor(name: str, hub_kwargs: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    except ImportError:  # some (DINOv3) need torchvision, and do what this one does without it
        return ViTImageProcessorPil.from_pretrained(name, **hub_kwargs)


def _with_projection(name: str, hub_kwargs: dict[str, Any]) -> Any:
    """The class of a tower that was saved with its projection, such as `CLIPVisionModelWithProjection`."""
    architecture = ((read_json(name, "config.json", hub_kwargs) or {}).get("architectures") or [""])[0]
    return _class_named(architecture) if architecture.endswith("WithProjection") else None


def _class_named(architecture: str) -> Any:
    import transformers

    return getattr(transformers, architecture, None) if architecture else None


def _on(model: Any, device: str | None) -> Any:
    return model if device is None else model.to(device)
