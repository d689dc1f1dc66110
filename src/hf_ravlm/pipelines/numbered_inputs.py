"""What a pipeline is given, one by one: each knows its place, and one that cannot be used does not lose the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Literal, NamedTuple, get_args

from torch.utils.data import Dataset
from transformers.pipelines.pt_utils import KeyDataset

from ..errors import InvalidInputError, RavlmError


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


def check_on_error(on_error: Any) -> None:
    """Refuses an unknown setting of `on_error`.

    Raises:
        InvalidInputError: With the choices.
    """
    if on_error not in get_args(OnError):
        raise InvalidInputError(f"on_error={on_error!r}: expected one of {list(get_args(OnError))}.")


class Numbered(NamedTuple):
    """An input and its place among the others, from 0."""

    place: int
    value: Any


class NumberedInputs:
    """A mixin before `Pipeline`: errors name the input, and `on_error="skip"` goes on with the others.

    Its classes have `read_input(value, **settings)`, which gives what `_forward` takes, and
    `unread_input(value, error)`, which gives the same for an input that cannot be used, with what is wrong.
    """

    def get_iterator(self, inputs, *options):
        return super().get_iterator(numbered(inputs), *options)

    def preprocess(self, inputs, on_error="raise", **settings):
        place, value = inputs if isinstance(inputs, Numbered) else (None, inputs)
        try:
            return self.read_input(value, **settings)
        except RavlmError as error:
            if on_error == "raise":
                if place is None:
                    raise
                hint = 'on_error="skip" answers the others.'
                raise type(error)(f"input {place} (the first is 0): {error} {hint}") from error
            logger.warning("input %s cannot be used, and gets no answer: %s", place or 0, error)
            return self.unread_input(value, str(error))


def numbered(inputs: Any) -> Any:
    """Inputs that know their places; of a data set, images stay encoded, so that a broken one stops nothing else.

    >>> list(numbered(name for name in ["a.png", "b.png"]))
    [Numbered(place=0, value='a.png'), Numbered(place=1, value='b.png')]
    """
    inputs = still_encoded(inputs)
    return _Numbered(inputs) if isinstance(inputs, Sized) else _counted(inputs)


def still_encoded(inputs: Any) -> Any:
    """A data set of `datasets`, or a `KeyDataset` of one, whose images stay encoded; anything else as it is."""
    from ..retrieval.sources.image_files import undecoded  # FAISS and pyarrow come only when needed

    if isinstance(inputs, KeyDataset):
        return KeyDataset(undecoded(inputs.dataset), inputs.key)
    return undecoded(inputs)


def _counted(inputs: Iterable[Any]) -> Iterator[Numbered]:
    return (Numbered(place, value) for place, value in enumerate(inputs))


class _Numbered(Dataset):
    def __init__(self, inputs: Any):
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> Numbered:
        return Numbered(place, self.inputs[place])
