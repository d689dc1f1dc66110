"""References: a pretrained part that is as it was loaded is saved by its name on the Hub and its commit.

What is loaded by name remembers where it came from, with a checksum of every tensor. When the model is saved with
`base="reference"`, parts whose checksums are still the same become entries of `config.references`, and only weights
of our own are written; of a vocabulary that grew, the new rows. A part that was trained, merged or cast since is
copied.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.hub import resolve_revision

from ...errors import InvalidInputError, RavlmError


logger = logging.getLogger(__name__)

PARTS = {
    "generator": "language_model",
    "encoder": "model.encoder",
    "vision": "model.vision_tower",
    "text": "model.text_encoder",
    "detector": "detector",
}
ADAPTERS = "reader_adapters"  # a folder of a saved system, for adapters that are on no Hub
ADDED_ROWS = "added_rows."  # before the name of a tensor: of a vocabulary that grew, what is behind the old rows
_OF_A_REFERENCE = ("name", "revision", "subfolder", "kind", "base_name", "base_revision", "adapters")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Loaded:
    """Where a part or its processor came from, and what it was then."""

    reference: dict[str, Any]  # name, revision, perhaps subfolder and quantization_config: arguments to load it again
    checksums: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)  # of adapters in it that are on no Hub
    access: dict[str, Any] = field(default_factory=dict, repr=False)  # `token`, ..., in memory alone

    def __reduce__(self):
        return Loaded, (self.reference, self.checksums, self.files)


def pin_revision(source: Any, access: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of access with the commit that a name on the Hub stands for now, so that all files are of one."""
    if isinstance(source, nn.Module) or os.path.isdir(source):
        return dict(access)
    hub = {name: access[name] for name in ("token", "cache_dir", "local_files_only") if name in access}
    pinned = resolve_revision(os.fspath(source), access.get("revision"), **hub)
    return {**access, "revision": pinned} if pinned is not None else dict(access)


def reference_to(source: Any, access: Mapping[str, Any]) -> dict[str, Any] | None:
    """Name and commit of what was loaded; `None` for a folder, and where the commit is not known.

    >>> reference_to("Qwen/Qwen3-0.6B", {"revision": "0" * 40})["name"]
    'Qwen/Qwen3-0.6B'
    """
    revision = access.get("revision")
    revision = getattr(revision, "resolved", revision)
    if os.path.isdir(source) or not _COMMIT.fullmatch(revision or ""):
        return None
    given = {"name": os.fspath(source), "revision": str(revision), "subfolder": access.get("subfolder")}
    return {name: value for name, value in given.items() if value}


def remember(part: Any, source: Any, access: Mapping[str, Any], **more: Any) -> None:
    """Notes on a part that was loaded by name where it came from; `more` is what it was loaded with."""
    reference = reference_to(source, access)
    if reference is not None:
        checksums = tensor_checksums(part) if isinstance(part, nn.Module) else {}
        part.loaded_from = Loaded({**reference, **more}, checksums, access=hub_access(access))


def hub_access(access: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of loading those that say how repositories are reached."""
    return {name: access[name] for name in ("token", "cache_dir", "local_files_only") if access.get(name) is not None}


def tensor_checksums(part: nn.Module) -> dict[str, tuple]:
    """Shape, type and the sum of the bits of every tensor: of a gigabyte in about a tenth of a second.

    >>> tensor_checksums(nn.Embedding.from_pretrained(torch.zeros(2, 3)))
    {'weight': ((2, 3), torch.float32, 0)}
    """
    tensors = part.state_dict().items()
    return {name: _checksum(tensor) for name, tensor in tensors if isinstance(tensor, torch.Tensor)}


def _checksum(tensor: torch.Tensor) -> tuple:
    described = (tuple(tensor.shape), tensor.dtype)
    if tensor.device.type == "meta":  # offloaded: nothing trains it there
        return (*described, None)
    if hasattr(tensor, "__tensor_flatten__"):  # quantized by torchao: several tensors as one
        names, _ = tensor.__tensor_flatten__()
        return (*described, *(_checksum(getattr(tensor, name)) for name in names))
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    whole = flat.numel() - flat.numel() % 8  # which is a whole number of 64-bit words in any type
    words, rest = flat[:whole], flat[whole:]
    total = int(words.view(torch.int64).sum()) if whole else 0
    return (*described, total + sum(rest.view(torch.uint8).tolist()))


def grown_rows(part: nn.Module, before: Mapping[str, tuple]) -> dict[str, torch.Tensor] | None:
    """The rows that a part's tensors have gained since `before`, by name; `None` if anything else has changed."""
    now = part.state_dict()
    if set(now) != set(before):
        return None
    grown = {}
    for name, known in before.items():
        tensor, rows = now[name], known[0][:1]
        if _checksum(tensor) == known:
            continue
        if not rows or len(tensor) <= rows[0] or _checksum(tensor[: rows[0]]) != known:
            return None
        grown[name] = tensor[rows[0] :]
    return grown


def parts_of(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Role, path and module of the pretrained parts in a reader, a dual encoder or a model with one."""
    for role, path in PARTS.items():
        for place in (path, path.removeprefix("model.")):
            try:
                part = model.get_submodule(place)
            except AttributeError:
                continue
            is_half = role in ("vision", "text") and not any(name == place for name, _ in model.named_modules())
            if part is not None and not is_half:  # of an encoder that is kept whole
                yield role, place, part
            break


def split_weights(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """What a save by reference writes: the references by role, and the weights that are not in what they refer to."""
    references: dict[str, dict[str, Any]] = {}
    own = dict(model.state_dict() if state_dict is None else state_dict)
    for role, path, part in parts_of(model):
        loaded = getattr(part, "loaded_from", None)
        grown = None if loaded is None else grown_rows(part, loaded.checksums)
        if loaded is None:
            logger.warning("The %s came from no repository on the Hub, or no commit is known: it is copied.", role)
        elif grown is None:
            name = loaded.reference["name"]
            logger.warning("The %s has changed since it was loaded from %s: it is copied.", role, name)
        if loaded is None or grown is None:
            continue
        references[role] = loaded.reference
        own = {name: tensor for name, tensor in own.items() if not name.startswith(f"{path}.")}
        kept: dict[int, str] = {}  # of tied tensors one
        for name, rows in grown.items():
            if kept.setdefault(rows.data_ptr(), name) == name:
                own[f"{ADDED_ROWS}{path}.{name}"] = rows.clone()
    return references, own


def write_adapters(model: nn.Module, folder: str | os.PathLike[str], roles: Collection[str]) -> None:
    """Writes adapters that are on no Hub into a saved folder, beside the references to their bases."""
    for role, _, part in parts_of(model):
        for name, content in part.loaded_from.files.items() if role in roles else ():
            place = Path(folder, ADAPTERS, name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)


def saved_references(references: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """References as they stand in a configuration: JSON values alone."""

    def plain(value: Any) -> Any:
        return value.to_dict() if hasattr(value, "to_dict") else value

    return {role: {name: plain(value) for name, value in entry.items()} for role, entry in references.items()}


def check_reference(role: str, reference: Any, roles: Collection[str] = PARTS) -> dict[str, Any]:
    """A reference as it was read from a folder, which may say anything; returns how the part is loaded.

    Raises:
        `InvalidInputError`: if it is no name on the Hub at a commit.
    """
    named = isinstance(reference, Mapping) and {"name", "revision"} <= set(reference)
    known = named and set(reference) <= {*_OF_A_REFERENCE, "quantization_config"}
    texts = [reference.get(name, "") for name in _OF_A_REFERENCE] if known else [None]
    if not all(isinstance(text, str) for text in texts) or ".." in "".join(texts):
        raise InvalidInputError(f"the reference to the {role} is {reference!r}: expected name and revision on the Hub")
    name, revision, *_ = texts
    names = [name, *([reference["base_name"]] if "base_name" in reference else [])]
    commits = [revision, *([reference["base_revision"]] if "base_revision" in reference else [])]
    fitting = all(map(_HUB_ID.fullmatch, names)) and all(map(_COMMIT.fullmatch, commits))
    if role not in roles or not fitting or reference.get("adapters", ADAPTERS) != ADAPTERS:
        raise InvalidInputError(
            f"the reference to the {role} names {' with '.join(map(repr, names))} at {revision!r}: expected one of "
            f"{', '.join(roles)}, a name on the Hub, and a commit of 40 hexadecimal digits"
        )
    if any(os.path.exists(beside := place) for place in names):
        raise InvalidInputError(
            f"the {role} is {beside!r} on the Hub, and something of this name lies in the working directory, which "
            "would be read instead: work in another directory"
        )
    return {**reference, "name": name}


def load_pinned(load: Callable[..., Any], name: str, loading: Mapping[str, Any]) -> Any:
    """Loads from a repository at a commit, which does not change: where the cache holds it, the Hub is not asked."""
    if not (loading.get("local_files_only") or loading.get("force_download")):
        try:
            return load(name, **{**loading, "local_files_only": True})
        except RavlmError:  # not all of it is there
            pass
    return load(name, **loading)


def note_states(processors: Iterable[Any]) -> None:
    """Notes how tokenizers and processors from the Hub are now that our marks are in them, where it is not noted."""
    for processor in processors:
        loaded = getattr(processor, "loaded_from", None)
        if loaded is not None and not loaded.checksums:
            loaded.checksums = {"state": processor_state(processor)}


def unchanged_reference(processor: Any) -> dict[str, Any] | None:
    """Where a tokenizer or processor came from, if it is as it was then."""
    loaded = getattr(processor, "loaded_from", None)
    if loaded is None or loaded.checksums != {"state": processor_state(processor)}:
        return None
    return loaded.reference


def processor_state(processor: Any) -> str:
    """A digest of the settings of a processor, and of all in a tokenizer that can be changed: its words cannot."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = [
        repr(getattr(backend, step, None)) for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    ]
    added = {str(id): repr(token) for id, token in tokenizer.added_tokens_decoder.items()}
    settings = None if tokenizer is processor else [processor.to_dict(), processor.chat_template]
    roles = [tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.truncation_side, tokenizer.chat_template]
    state = json.dumps([len(tokenizer), steps, added, roles, settings], sort_keys=True, default=str)
    return hashlib.sha256(state.encode()).hexdigest()


__all__ = ["Loaded", "parts_of", "remember", "split_weights"]
