"""How our objects are written to a folder: whole or not at all, with the one-file shim that lets strangers load them.

A published folder carries no copy of our modules. `ravlm_hub.py` imports the installed package and `auto_map` points
to it, so `trust_remote_code=True` works where the package is installed but not imported, and where it is missing
transformers names the package to install. Files are first written to a staging folder beside their place and then
renamed one by one: an interrupted save leaves what was there before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME


SHIM_NAME = "ravlm_hub"
AUTO_MAP = {
    "AutoConfig": "RavlmConfig",
    "AutoModel": "RavlmModel",
    "AutoModelForImageTextToText": "RavlmForConditionalGeneration",
    "AutoModelForMultimodalLM": "RavlmForConditionalGeneration",
    "AutoProcessor": "RavlmProcessor",
}
STAGING_PREFIX = ".ravlm-saving-"
HUB_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class PublishMixin:
    """First base of the config, the models and the processor; overrides how transformers saves remote code."""

    @classmethod
    def register_for_auto_class(cls, auto_class=None) -> None:
        """Does nothing: the loader of `auto_map` calls it on installed classes, and saving would then copy modules."""

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, repo_id: str | None = None, **kwargs
    ):
        """Saves to `save_directory`, atomically per file, and writes the shim and the complete `auto_map`.

        Args:
            save_directory (`str` or `os.PathLike`): created if missing; files of the same names are replaced.
            push_to_hub (`bool`, *optional*, defaults to `False`): also upload, to `repo_id` or the folder's name.
            repo_id (`str`, *optional*): repository on the Hub.
            kwargs: passed to the `save_pretrained` of transformers, and those of `push_to_hub` to the upload.

        Returns:
            What the `save_pretrained` of transformers returns: paths of saved files, or `None`.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"cannot save to {os.fspath(save_directory)!r}: it is a file; give a folder")
        if not kwargs.get("is_main_process", True):  # takes part in gathering the weights, but writes nothing
            return super().save_pretrained(save_directory, **kwargs)
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for leftover in target.glob(f"{STAGING_PREFIX}*"):  # of a save that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=target))
        try:
            saved = super().save_pretrained(staging, **kwargs)
            write_shim(staging)
            _move_into(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if push_to_hub:
            self.push_to_hub(repo_id or target.name, **hub)
        if not isinstance(saved, (list, tuple)):
            return saved
        return [os.fspath(target / Path(path).relative_to(staging)) for path in saved]


def write_shim(folder: str | os.PathLike) -> None:
    """Writes `ravlm_hub.py` and adds the complete `auto_map` to the JSON files that Auto classes read."""
    names = ", ".join(sorted(set(AUTO_MAP.values())))
    shim = f'"""The code of this model: pip install hf_ravlm"""\n\nfrom hf_ravlm import {names}  # noqa: F401\n'
    Path(folder, f"{SHIM_NAME}.py").write_text(shim, encoding="utf-8")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        path = Path(folder, name)
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        content["auto_map"] = {
            auto: f"{SHIM_NAME}.{cls}"
            for auto, cls in AUTO_MAP.items()
            if name == "config.json" or auto == "AutoProcessor"
        }
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _move_into(staging: Path, target: Path) -> None:
    """Renames every staged file to its place, weights before the small files; drops shards of an older save.

    Weights of another name (a variant, or the base model beside a saved adapter) stay.
    """
    staged = sorted((path for path in staging.rglob("*") if path.is_file()), key=lambda path: path.suffix == ".json")
    new_weights = {path.name for path in staged if path.suffix == ".safetensors"}
    mode = (staging / f"{SHIM_NAME}.py").stat().st_mode
    for path in staged:
        path.chmod(mode)  # safetensors writes files that only their owner may read
        _fsync(path)
        place = target / path.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    names = {_without_shard(name) for name in new_weights}
    for old in target.glob("*.safetensors"):
        if old.name not in new_weights and _without_shard(old.name) in names:
            old.unlink()
    if "model.safetensors" in new_weights:  # whole, not in shards
        (target / SAFE_WEIGHTS_INDEX_NAME).unlink(missing_ok=True)


def _without_shard(name: str) -> str:
    return re.sub(r"-\d{5}-of-\d{5}", "", name)


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
