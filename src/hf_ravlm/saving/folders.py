"""Saving to a folder whole or not at all, with a one-file shim that lets the Auto classes load it anywhere.

The shim `ravlm_hub.py` imports the installed package and `auto_map` points to it, so `trust_remote_code=True` works
where the package is installed but not imported; where it is missing, transformers names the package to install. Files
are written to a staging folder, with a manifest of their checksums (`checksums.py`). When all are on the disk the
folder gets another name, and from then on the save counts: the files are renamed to their places one by one, and a
save that is interrupted there is finished by whoever loads the folder, or saves to it, next.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..errors import InvalidInputError, RavlmError, UnsafeInputError, storage_errors
from .bounds import check_setting_types, check_tokenizer
from .cards import card_of_folder, first_card, with_tags
from .checksums import MANIFEST, check_files, entries_of, manifest_text, read_entries
from .commit import Destination, commit_files
from .durable import disk_errors, sync_file, sync_folder, temporary_folder, try_lock
from .safe_paths import absolute_folder


SHIM_NAME = "ravlm_hub"
AUTO_MAP = {
    "AutoConfig": "RavlmConfig",
    "AutoModel": "RavlmModel",
    "AutoModelForImageClassification": "RavlmForImageClassification",
    "AutoModelForImageTextToText": "RavlmForConditionalGeneration",
    "AutoModelForMultimodalLM": "RavlmForConditionalGeneration",
    "AutoModelForObjectDetection": "RavlmForObjectDetection",
    "AutoModelForPreTraining": "RavlmForPreTraining",
    "AutoModelForVisualQuestionAnswering": "RavlmForVisualQuestionAnswering",
    "AutoProcessor": "RavlmProcessor",
}
STAGING_PREFIX = ".ravlm-saving-"
SAVED = ".ravlm-saved"  # a staging folder that is complete
_MOVE_SECONDS = 60.0
_NUM_ATTEMPTS = 5
_Loaded = TypeVar("_Loaded")
_ACCESS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
HUB_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class PublishMixin:
    """First base of the config, the models and the processor; overrides how transformers saves remote code."""

    _published_as = "model"  # the config and the processor say otherwise

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Does nothing: the loader of `auto_map` calls it on installed classes, and saving would then copy modules."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        repo_id: str | None = None,
        base: str = "copy",
        **kwargs: Any,
    ) -> Any:
        """Saves to `save_directory`, whole or not at all, and writes the shim and the complete `auto_map`.

        Args:
            save_directory (`str` or `os.PathLike`): created if missing; files of the same names are replaced.
            push_to_hub (`bool`, *optional*, defaults to `False`): also upload, to `repo_id` or the folder's name.
            repo_id (`str`, *optional*): repository on the Hub.
            base (`str`, *optional*, defaults to `"copy"`):
                `"copy"` writes the weights and tokenizers of pretrained parts; `"reference"` the names and revisions
                of those that came from the Hub and are as they were loaded.
            kwargs: passed to the `save_pretrained` of transformers, and those of `push_to_hub` to the upload.

        Returns:
            What the `save_pretrained` of transformers returns: paths of saved files, or `None`.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        check_base(base)
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"cannot save to {os.fspath(save_directory)!r}: it is a file; give a folder")
        if not kwargs.get("is_main_process", True):  # takes part in gathering the weights, but writes nothing
            return self.write_to(save_directory, base, **kwargs)
        target = absolute_folder(save_directory)
        with written_whole(target, self._published_as) as staging:
            saved = self.write_to(staging, base, **kwargs)
            write_shim(staging)
        if push_to_hub:
            self.push_to_hub(repo_id or target.name, **hub | ({} if base == "copy" else {"base": base}))
        if not isinstance(saved, (list, tuple)):
            return saved
        return [os.fspath(Path(save_directory) / Path(path).relative_to(staging)) for path in saved]

    def write_to(self, folder: str | os.PathLike[str], base: str, **kwargs: Any) -> Any:
        """Writes the files themselves; what has pretrained parts sees to `base`."""
        return super().save_pretrained(folder, **kwargs)  # type: ignore[misc]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base: str = "copy",
        beside: Sequence[Any] = (),
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = None,
        tags: list[str] | str | None = None,
    ) -> Any:
        """Publishes everything that `save_pretrained` writes in one commit; an interrupted push changes nothing.

        A model takes along the card of the folder it came from, or gets a first one; a card that is there stays.
        Weights of an earlier push that would be read instead of these are deleted in the same commit.

        Args:
            repo_id (`str`): a repository, such as `"owner/name"`; created if needed.
            base (`str`): `"copy"` or `"reference"`, as in `save_pretrained`.
            beside (`Sequence`): what goes into the same commit: a processor, a retriever, a policy.
            commit_message, commit_description (`str`, *optional*): of the commit.
            private (`bool`, *optional*): whether a new repository is private; `None` for the default of its owner.
            token (`str` or `bool`, *optional*): a Hub token; `None` for the stored one.
            revision (`str`, *optional*): the branch, made if needed; `None` for the main one.
            create_pr (`bool`): whether to open a pull request instead.
            max_shard_size (`int` or `str`, *optional*): of files of weights.
            tags (`list[str]`, *optional*): added to the card.

        Returns:
            The `huggingface_hub.CommitInfo`.

        Raises:
            InvalidInputError: `private=True`, and the repository is there and public.
            HubUnavailableError: The Hub cannot be reached, or broke off; what is here is as it was.
        """
        message = commit_message or f"Upload {self._published_as}"
        destination = Destination(
            repo_id, message, commit_description, private=private, token=token, revision=revision, create_pr=create_pr
        )
        all_tags = [tags] if isinstance(tags, str) else [*(tags or [])]
        all_tags += getattr(self, "model_tags", None) or []
        thing: Any = self

        def card(earlier: str | None) -> str | None:
            """The one that is there keeps its words; else the one of the model's folder; else a first one."""
            text = earlier
            if text is None and self._published_as == "model":  # a config or a processor is not yet a model
                text = card_of_folder(thing.name_or_path) or first_card(thing, repo_id, beside)
            if text is None or (text == earlier and not all_tags):
                return None
            return with_tags(text, all_tags) if all_tags else text

        with temporary_folder() as folder:
            thing.save_pretrained(
                folder, base=base, **({} if max_shard_size is None else {"max_shard_size": max_shard_size})
            )
            for part in beside:
                part.save_pretrained(folder, **({"base": base} if isinstance(part, PublishMixin) else {}))
            return commit_files(files_in(folder), destination, outdated_files, card)


def check_base(base: str) -> None:
    """Refuses an unknown way of saving pretrained parts.

    Raises:
        InvalidInputError: With the choices.
    """
    if base not in ("copy", "reference"):
        raise InvalidInputError(
            f"base={base!r}: expected 'copy' (the weights of pretrained parts are written) or 'reference' (their "
            "names and revisions, where they are as they were loaded)"
        )


def files_in(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """All files below a folder, by their names relative to it."""
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def outdated_weights(present: Collection[str], new: Collection[str]) -> list[str]:
    """Which weights of an earlier save would be read instead of, or beside, the new ones.

    Weights of another name (a variant, or the base model beside an adapter) are not touched.

    >>> outdated_weights(["model.safetensors", "model.fp16.safetensors"], ["model-00001-of-00002.safetensors"])
    ['model.safetensors']
    """

    def whole(name: str) -> str:
        return re.sub(r"-\d{5}-of-\d{5}", "", name)

    names = {whole(name) for name in new if name.endswith(".safetensors")}
    old = [name for name in present if name not in new]
    outdated = [name for name in old if name.endswith(".safetensors") and whole(name) in names]
    if SAFE_WEIGHTS_NAME in new and SAFE_WEIGHTS_INDEX_NAME in old:  # whole now, no longer in shards
        outdated.append(SAFE_WEIGHTS_INDEX_NAME)
    return outdated


def outdated_files(present: Collection[str], new: Collection[str]) -> list[str]:
    """Outdated weights, and of folders that come whole (a knowledge base, a tokenizer) the files that do not come.

    >>> outdated_files(["knowledge_base/old", "notes.md"], ["knowledge_base/CURRENT", "config.json"])
    ['knowledge_base/old']
    """
    folders = tuple({name.partition("/")[0] + "/" for name in new if "/" in name})
    return outdated_weights(present, new) + [n for n in present if folders and n.startswith(folders) and n not in new]


def write_shim(folder: str | os.PathLike[str]) -> None:
    """Writes `ravlm_hub.py` and adds the complete `auto_map` to the JSON files that Auto classes read."""
    names = ", ".join(sorted(set(AUTO_MAP.values())))
    shim = f'"""The code of this model: pip install hf_ravlm"""\n\nfrom hf_ravlm import {names}  # noqa: F401\n'
    Path(folder, f"{SHIM_NAME}.py").write_text(shim, encoding="utf-8")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        path = Path(folder, name)
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        known = AUTO_MAP if name == "config.json" else ["AutoProcessor"]
        content["auto_map"] = {auto: f"{SHIM_NAME}.{AUTO_MAP[auto]}" for auto in known}
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def written_whole(target: Path, part: str) -> Iterator[Path]:
    """Gives a folder to write files to, which are moved to their places in `target` when all are there.

    Args:
        target: Created if missing; what lies there under other names stays.
        part: Whose files they are, for the manifest: `"model"`, `"config"`, `"processor"`, `"policy"`.

    Raises:
        StorageError: If the disk refuses; what lies there is as it was.
    """
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        finish_save(target)
        for leftover in target.glob(f"{STAGING_PREFIX}*"):  # of a save that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=target))
        try:
            with disk_errors(target):
                yield staging
            _complete(staging, target, part)
            descriptor = _open_folder(staging)
            try:
                if descriptor is not None:
                    try_lock(descriptor)
                os.rename(staging, target / SAVED)  # from here on it counts
                sync_folder(target)
                _move_into(target)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _complete(staging: Path, target: Path, part: str) -> None:
    """Gives the staged files the rights of any file, adds the manifest of the whole, and flushes them."""
    entries = entries_of(staging, part)
    try:
        earlier = read_entries(target)
    except UnsafeInputError:  # a damaged one is replaced
        earlier = {}
    gone = {*outdated_weights([*earlier], [*entries]), *(name for name in earlier if not (target / name).exists())}
    kept = {name: entry for name, entry in earlier.items() if name not in gone}
    (staging / MANIFEST).write_text(manifest_text(kept | entries), encoding="utf-8")
    mode = (staging / MANIFEST).stat().st_mode
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors writes files that only their owner may read
            sync_file(path)


def finish_save(folder: Path) -> bool:
    """Finishes a save that was interrupted while its files went to their places; waits for one that is going on.

    Returns:
        Whether there was one.

    Raises:
        UnsafeInputError: If the folder may not be written.
    """
    if not (folder / SAVED).is_dir():
        return False
    try:
        descriptor = _open_folder(folder / SAVED)
    except FileNotFoundError:  # finished a moment ago
        return True
    try:
        deadline = time.monotonic() + _MOVE_SECONDS
        while descriptor is not None and not try_lock(descriptor) and time.monotonic() < deadline:
            time.sleep(0.02)
        if (folder / SAVED).is_dir():
            _move_into(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UnsafeInputError(
            f"{folder}: a save was interrupted here, and is finished when the folder is loaded by somebody who may "
            f"write to it ({error.strerror})."
        ) from error
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def _open_folder(folder: Path) -> int | None:
    return None if os.name == "nt" else os.open(folder, os.O_RDONLY)


def _move_into(target: Path) -> None:
    """Renames every file of a complete save to its place, the manifest last; drops shards of an older save.

    Weights of another name (a variant, or the base model beside a saved adapter) stay.
    """
    saved = target / SAVED
    staged = [path for path in saved.rglob("*") if path.is_file() and path != saved / MANIFEST]
    for path in sorted(staged):
        place = target / path.relative_to(saved)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    listed = [*read_entries(saved)]
    for name in outdated_weights([path.name for path in target.iterdir()], listed):
        (target / name).unlink()
    sync_folder(target)
    if (saved / MANIFEST).exists():
        os.replace(saved / MANIFEST, target / MANIFEST)
    shutil.rmtree(saved)
    sync_folder(target)


# What transformers and tokenizers raise over a setting or a file that is not what it should be, besides OSError and
# ValueError; the last are their own kinds.
_DAMAGE = (KeyError, AttributeError, IndexError, RecursionError, ArithmeticError, AssertionError)
_DAMAGED_CONTENT = (UnicodeError, json.JSONDecodeError, StrictDataclassError)
_DAMAGED_WORDS = ("ignore_mismatched_sizes", "not a valid JSON")


@contextmanager
def _damage_in_words(source: Any) -> Iterator[None]:
    """Says in one line that files of a folder are not what they should be, whatever a library makes of them.

    Raises:
        UnsafeInputError: In place of errors that say nothing to whom they meet.
    """
    try:
        yield
    except RavlmError:
        raise
    except Exception as error:
        is_damage = isinstance(error, (*_DAMAGE, *_DAMAGED_CONTENT)) or type(error) is Exception  # of tokenizers
        is_damage |= isinstance(error, TypeError) and "keyword argument" not in str(error)
        is_damage |= any(words in str(error) for words in _DAMAGED_WORDS)
        if not is_damage:
            raise
        reason = " ".join(str(error).split())[:300]
        if "ignore_mismatched_sizes" in reason:
            reason = "the weights have other shapes than the config says"
        raise UnsafeInputError(
            f"{source}: a file there is damaged or was edited, or an argument does not fit ({type(error).__name__}: "
            f"{reason}). Take it from a copy, or save it again."
        ) from error


def load_checked(
    source: Any, parts: Sequence[str], kwargs: dict[str, Any], load: Callable[[bool], _Loaded]
) -> _Loaded:
    """Loads something, and compares its files with the manifest beside them: weights meanwhile, all else before.

    Args:
        source: A folder, or the id of a repository, whose files are compared when they have come; `None` where all is
            given and no file is read.
        parts: Whose files are read: of the model, the config, the processor, the policy.
        kwargs: Of `from_pretrained`; `verify`, by default `True`, is taken out.
        load: Loads; it is told whether an interrupted save was finished, so that what was read before is out of date.
            Called again if somebody else saved to the folder meanwhile.

    Raises:
        UnsafeInputError: If a file is missing, not as it was written, or cannot be read; it is named where known.
    """
    verify, subfolder, variant = kwargs.pop("verify", True), kwargs.get("subfolder") or "", kwargs.get("variant")
    if source is None:
        return load(False)
    with _damage_in_words(source):
        if not os.path.isdir(source):
            return _load_from_hub(source, parts, kwargs, load) if verify else load(False)
        return _load_from_folder(absolute_folder(Path(source, subfolder)), parts, variant, load, verify)


def _load_from_folder(
    folder: Path, parts: Sequence[str], variant: str | None, load: Callable[[bool], _Loaded], verify: bool
) -> _Loaded:
    for attempt in range(_NUM_ATTEMPTS):
        was_finished = finish_save(folder)
        for place in [folder / "tokenizer.json", *folder.glob("*/tokenizer.json")]:
            check_tokenizer(place)
        check_setting_types(folder)
        if not verify:
            break
        before = read_entries(folder)
        try:
            check_files(folder, parts, variant, which="settings")
            with ThreadPoolExecutor(1) as pool:
                comparison = pool.submit(check_files, folder, parts, variant, which="weights")
                try:
                    loaded = load(was_finished)
                except Exception:
                    comparison.result()  # which says more, if that is why
                    raise
                comparison.result()
            return loaded
        except (UnsafeInputError, OSError):
            if attempt == _NUM_ATTEMPTS - 1 or (not finish_save(folder) and read_entries(folder) == before):
                raise
    return load(was_finished)


def _load_from_hub(
    source: Any, parts: Sequence[str], kwargs: dict[str, Any], load: Callable[[bool], _Loaded]
) -> _Loaded:
    folder, variant = _snapshot(source, kwargs), kwargs.get("variant")
    if folder is None:
        return load(False)
    try:
        check_files(folder, parts, variant, may_lack=True, which="settings")  # of those that are in the cache
        loaded = load(False)
        check_files(folder, parts, variant, may_lack=True)
    except UnsafeInputError as error:
        raise UnsafeInputError(f"{source}: {error}") from error
    return loaded


def _snapshot(source: Any, kwargs: dict[str, Any]) -> Path | None:
    """The folder of the cache into which a repository's files come, if there is a manifest among them."""
    access = {name: kwargs[name] for name in _ACCESS if kwargs.get(name) is not None}
    silent = {
        f"_raise_exceptions_for_{case}": False for case in ("missing_entries", "gated_repo", "connection_errors")
    }
    try:
        found = cached_file(os.fspath(source), MANIFEST, **access, **silent)
    except (OSError, ValueError):  # no such repository, ...: who loads it says so
        return None
    return None if found is None else Path(found).parent
