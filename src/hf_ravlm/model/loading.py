"""What we add to loading: where a model came from, new weights beside loaded ones, the model without its wrappers.

transformers remembers the name of the repository alone. With the name, a pinned model would get the processor and the
knowledge base of the default branch; with its `Origin` it gets those of its own commit, by the same right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import PreTrainedModel

from ..errors import InvalidInputError, RavlmError
from ..saving.commit import hub_errors, hub_failure


@dataclass(frozen=True)
class Origin:
    """How a repository was read.

    >>> Origin(revision="v1", token="secret").hub_kwargs()
    {'revision': 'v1', 'token': 'secret'}
    """

    revision: str | None = None  # the commit, where it is known, or what the caller named
    cache_dir: Any = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)  # never pickled or copied: no saved model gives it away
    folder: str | None = None  # absolute: the process may go elsewhere; not written anywhere

    def hub_kwargs(self) -> dict[str, Any]:
        """As arguments of `from_pretrained`; what is not set is left out."""
        given = {name: value for name, value in vars(self).items() if value is not None and name != "folder"}
        return given if self.local_files_only else {n: value for n, value in given.items() if n != "local_files_only"}

    def __reduce__(self):
        return Origin, (self.revision, self.cache_dir, self.local_files_only)


def remember_origin(loaded: Any, kwargs: dict[str, Any]) -> None:
    """Notes on a model, or on the first of what `from_pretrained` returned, with which arguments it was loaded."""
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    revision = kwargs.get("revision")
    model.origin = Origin(
        getattr(revision, "resolved", revision),  # transformers resolves a branch once and hands the commit along
        kwargs.get("cache_dir"),
        bool(kwargs.get("local_files_only")),
        kwargs.get("token"),
        os.path.abspath(model.name_or_path) if os.path.isdir(model.name_or_path or "") else None,
    )


def source_of(model: Any) -> str:
    """The folder or repository that a model was loaded from, as an absolute path or a name; empty if it was not."""
    return getattr(model, "origin", Origin()).folder or model.name_or_path


def origin_of(model: Any) -> dict[str, Any]:
    """The arguments to read the model's repository with; none for a model that was not loaded."""
    return getattr(model, "origin", Origin()).hub_kwargs()


@contextmanager
def loading_errors(what: str, source: Any) -> Iterator[None]:
    r"""Turns what goes wrong while `what` is loaded from a folder or the Hub into one line that says what to do.

    Raises:
        `HubUnavailableError`: if the Hub does not give it.
        `InvalidInputError`: for anything else that is not there, or is not what it should be.

    >>> with loading_errors("generator", "no/such/folder"):
    ...     raise OSError("no file named config.json\nand more")
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: the generator 'no/such/folder' cannot be loaded: no file named config.json
    """
    name = os.fspath(source)
    try:
        yield
    except RavlmError:
        raise
    except (ImportError, AttributeError, KeyError, TypeError) as error:  # a package, a token or a setting is missing
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidInputError(f"the {what} {name!r} cannot be loaded here: {reason}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, HFValidationError) or isinstance(error.__cause__, HFValidationError):
            raise InvalidInputError(f"{name}: there is no such folder, and this is no name on the Hub.") from error
        if hub_failure(error) is None:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InvalidInputError(f"the {what} {name!r} cannot be loaded: {reason}") from error
        with hub_errors(f"the {what} {name!r} (there is no folder of this name here)"):
            raise


def initialize_new(
    model: PreTrainedModel, loaded: Iterable[nn.Module], device: torch.device, dtype: torch.dtype
) -> None:
    """Gives every module of `model` outside the `loaded` parts memory and initial weights; the parts stay as they are.

    Args:
        model (`PreTrainedModel`): made on the meta device, with the `loaded` parts put in their places.
        device, dtype: of the new weights.
    """
    kept = {id(module) for part in loaded for module in part.modules()}
    for module in model.modules():
        module._is_hf_initialized = id(module) in kept  # what `initialize_weights` goes by
        if id(module) not in kept:
            module.to_empty(device=device, recurse=False)
    model.initialize_weights()
    for module in model.modules():
        if id(module) not in kept:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The floating type that a module computes in; quantized weights are of another one.

    >>> compute_dtype(nn.Linear(1, 1).bfloat16())
    torch.bfloat16
    """
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


def without_adapters(model: Any) -> Any:
    """The reader itself, where PEFT (`get_peft_model`) or joint training (its `reader`) wrapped it."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, "reader", model)
