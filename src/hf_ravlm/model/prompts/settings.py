"""How a prompt is written: settings of the processor, saved with it, and overridden in a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ...errors import InvalidInputError


Layout = Literal["marks", "chat", "plain"]
Order = Literal["best_last", "best_first"]

# Of a reader that sees images by itself; 1,280 tokens of the image asked about, where 28 x 28 pixels are one.
MAX_IMAGE_PIXELS = 1_048_576
MAX_PASSAGE_IMAGE_PIXELS = 262_144


@dataclass(frozen=True)
class PromptSettings:
    """What a user may say about prompts.

    Args:
        system_message (`str`, *optional*): what the reader is told first; `None` leaves the chat template's own.
        number_passages (`bool`): passages are shown as `[1] ...`, numbered as `Answer.evidence` lists them.
        passage_titles (`bool`): the title of a passage stands before its text, `Title: text`.
        passage_order (`str`): `"best_last"`, next to the question, or `"best_first"`.
        passage_images (`bool`): the reader sees the images of passages.
        max_length (`int`): tokens of a prompt.
        max_passage_length (`int`): tokens of one passage.
        max_image_pixels, max_passage_image_pixels (`int`, *optional*):
            larger images, of a question or of a passage, are shrunk to that many pixels; `None` leaves their size.
        drop_duplicates (`bool`): of passages with the same words the best one is read alone.
        enable_thinking (`bool`, *optional*): passed to a chat template that knows it; `None` is as the template does.
        chat_template (`str`, *optional*): Jinja template in place of the reader's own.
        cite (`bool`): passages are numbered, and the reader is asked to cite them by number.

    Raises:
        `InvalidInputError`: for a value that a setting does not take.
    """

    system_message: str | None = None
    number_passages: bool = False
    passage_titles: bool = False
    passage_order: Order = "best_last"
    passage_images: bool = False
    max_length: int = 1024
    max_passage_length: int = 256
    max_image_pixels: int | None = None
    max_passage_image_pixels: int | None = None
    drop_duplicates: bool = False
    enable_thinking: bool | None = None
    chat_template: str | None = None
    cite: bool = False

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not _fits(name, value):
                raise InvalidInputError(f"{name}={value!r}: expected {_expected(name)}")

    @property
    def numbered(self) -> bool:
        """Whether passages have numbers, which citations need."""
        return self.number_passages or self.cite

    def changed(self, given: Mapping[str, Any]) -> PromptSettings:
        """These settings with others for one call; a setting that may not be `None` is left alone by `None`.

        Raises:
            `InvalidInputError`: for a name that is no setting, or a value that it does not take.

        >>> PromptSettings().changed({"cite": True}).numbered
        True
        >>> PromptSettings().changed({"numbered": True})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hf_ravlm.errors.InvalidInputError: prompt has no setting 'numbered'; it takes system_message, ...
        """
        if unknown := [name for name in given if name not in SETTINGS]:
            raise InvalidInputError(f"prompt has no setting {unknown[0]!r}; it takes {', '.join(SETTINGS)}")
        return replace(
            self, **{name: value for name, value in given.items() if value is not None or name in _MAY_BE_NONE}
        )

    def different(self) -> list[str]:
        """Names of the settings that are not as by default."""
        return [name for name in SETTINGS if getattr(self, name) != getattr(PromptSettings, name)]


SETTINGS = tuple(field.name for field in fields(PromptSettings))
_MAY_BE_NONE = tuple(field.name for field in fields(PromptSettings) if "None" in str(field.type))


def split_settings(given: Mapping[str, Any], not_direct: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt settings among keywords, named directly or in `prompt={...}`, and the other keywords.

    Args:
        not_direct (`Sequence[str]`): names that mean something else where they stand directly.

    Raises:
        `InvalidInputError`: for a setting that came both ways, or a `prompt` that is no dictionary.

    >>> split_settings({"prompt": {"cite": True}, "max_length": 99, "k": 3})
    ({'cite': True, 'max_length': 99}, {'k': 3})
    """
    inside = given.get("prompt")
    inside = {} if inside is None else inside
    if not isinstance(inside, Mapping):
        raise InvalidInputError(
            f"prompt= came as {type(inside).__name__}: expected a dictionary of settings: {', '.join(SETTINGS)}"
        )
    names = {*SETTINGS} - {*not_direct}
    direct = {name: value for name, value in given.items() if name in names}
    if twice := [name for name in direct if name in inside]:
        raise InvalidInputError(f"{twice[0]} came twice, directly and in prompt={{...}}; give it once")
    rest = {name: value for name, value in given.items() if name not in names and name != "prompt"}
    return {**inside, **direct}, rest


def check_settings(settings: PromptSettings, layout: Layout, fusion: str) -> None:
    """Refuses what a reader of this layout and fusion would not apply.

    Raises:
        `InvalidInputError`: naming the setting.
    """
    wrong = {}
    if layout != "chat":
        wrong["enable_thinking"] = f"a reader of layout={layout!r} has no chat template that could switch it"
    if layout == "marks":
        wrong["chat_template"] = "a reader of layout='marks' was trained in its own layout and uses no chat template"
    if fusion != "in_context":
        reads = f"fusion={fusion!r} reads states of passages, no words of the prompt"
        wrong |= dict.fromkeys(("number_passages", "passage_titles", "passage_order", "cite"), reads)
    for name in settings.different():
        if name in wrong:
            raise InvalidInputError(f"{name}={getattr(settings, name)!r} has no effect here: {wrong[name]}")


def _fits(name: str, value: Any) -> bool:
    if value is None:
        return name in _MAY_BE_NONE
    if name == "passage_order":
        return value in get_args(Order)
    if name in ("system_message", "chat_template"):
        return isinstance(value, str) and bool(value.strip())
    if name.startswith("max_"):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return isinstance(value, bool)


def _expected(name: str) -> str:
    if name == "passage_order":
        return " or ".join(map(repr, get_args(Order)))
    kind = "text" if name in ("system_message", "chat_template") else "True or False"
    kind = "a whole number of at least 1" if name.startswith("max_") else kind
    return f"{kind} or None" if name in _MAY_BE_NONE else kind
