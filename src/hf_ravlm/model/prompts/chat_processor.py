"""What writes a reader's prompts beside ours: the processor of an image-text-to-text model, or a tokenizer alone.

Qwen-VL, SmolVLM and others take videos too, for which alone transformers needs torchvision; without it the processor
is loaded without its video part.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from ...errors import InvalidInputError
from ..loading import loading_errors
from ..parts.references import check_reference, load_pinned, remember


PROCESSORS = ("generator_processor", "tokenizer", "text_tokenizer")  # what may be saved by reference
FOLDER = "generator_processor"  # of a saved processor
HUB_ACCESS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code")
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '\nAnswer:' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


class WordsProcessor:
    """A tokenizer in the place of a processor, for readers of words alone.

    Args:
        tokenizer: of the language model.
        plain (`bool`): whether prompts are plain words (`Passage: ... Question: ... Answer:`), for a language model
            that was taught no chat; else they are in the tokenizer's chat template.
    """

    def __init__(self, tokenizer: Any, plain: bool):
        self.tokenizer = tokenizer
        self.chat_template = PLAIN_TEMPLATE if plain else tokenizer.chat_template
        self.labels_questions = plain

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The tokenizer's template for messages that are words alone."""
        flat = [{**message, "content": _words_of(message["content"])} for message in messages]
        written: str = self.tokenizer.apply_chat_template(flat, tokenize=False, **options)
        return written

    def __call__(self, text: list[str], images: None = None, **options: Any) -> Any:
        return self.tokenizer(text, **options)


def _words_of(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class NoVideos:
    """In the place of a video processor: chat templates and processors ask it for settings, and use none."""

    font = ""  # a file that is saved along
    model_input_names: list[str] = []

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class WithoutVideos:
    """Put before a processor class, `complete`, leaves out its video processor."""

    complete: type[ProcessorMixin]
    video_processor = NoVideos()

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in cls.complete.get_attributes() if name != "video_processor"]

    @classmethod
    def from_args_and_dict(cls, args: list, processor_dict: dict[str, Any], **kwargs: Any) -> ProcessorMixin:
        parts = dict(zip(cls.get_attributes(), args, strict=False))
        settings = {**processor_dict, **kwargs, **parts}
        taken = inspect.signature(cls.complete.__init__).parameters
        return cls(**{name: value for name, value in settings.items() if name in taken and name != "video_processor"})


def without_videos(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class without its video part, if it has one; the name, which saved folders hold, stays.

    >>> from transformers import LlavaProcessor, Qwen2VLProcessor
    >>> without_videos(LlavaProcessor) is LlavaProcessor, without_videos(Qwen2VLProcessor).get_attributes()
    (True, ['image_processor', 'tokenizer'])
    """
    if "video_processor" not in cls.get_attributes():
        return cls

    @functools.wraps(cls.__init__)  # with its signature, by which transformers saves settings
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs).arguments
        given |= given.pop("kwargs", {}) | {"video_processor": self.video_processor}
        self.get_attributes = cls.get_attributes  # with the video processor, while the class sets itself up
        cls.__init__(**given)
        del self.get_attributes
        self.__dict__.pop("video_processor", None)

    members = {"__init__": make, "__module__": cls.__module__, "complete": cls}
    return type(cls.__name__, (WithoutVideos, cls), members)


def load_generator_processor(
    source: str | os.PathLike, kind: PreTrainedConfig | str, **loading: Any
) -> ProcessorMixin:
    """The processor of an image-text-to-text model.

    Args:
        source (`str` or `os.PathLike`): name on the Hub or folder.
        kind (`PreTrainedConfig` or `str`): the model's configuration, or the name of its processor's class.
        loading: passed to `from_pretrained` (`subfolder`, `trust_remote_code`, ...).

    Raises:
        `InvalidInputError`: if what is there is no processor of images and texts.
    """
    cls = processor_class_from_name(kind) if isinstance(kind, str) else PROCESSOR_MAPPING.get(type(kind), None)
    if cls is None and not is_torchvision_available():
        cls = _named_class(source, loading)
    if cls is None or is_torchvision_available():
        processor = AutoProcessor.from_pretrained(source, **loading)
    else:
        processor = without_videos(cls).from_pretrained(source, **loading)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InvalidInputError(
            f"{os.fspath(source)!r} holds a {type(processor).__name__}; expected a processor with a tokenizer and an "
            "image processor, as every image-text-to-text model has: give generator_processor="
        )
    return processor


def _named_class(source: str | os.PathLike, loading: dict[str, Any]) -> type[ProcessorMixin] | None:
    """The class that a saved processor names, if transformers has it."""
    try:
        settings, _ = ProcessorMixin.get_processor_dict(source, **loading)
    except OSError:
        return None
    return processor_class_from_name(settings.get("processor_class") or "")


class GeneratorProcessorMixin:
    """Base of our processor; keeps the processor of an image-text-to-text generator in a folder of its own."""

    generator_processor: ProcessorMixin | None

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """As every processor; the generator's goes to a folder in it."""
        saved = super().save_pretrained(save_directory, **kwargs)
        if self.generator_processor is not None:
            self.generator_processor.save_pretrained(os.path.join(save_directory, FOLDER))
        return saved

    def to_dict(self) -> dict[str, Any]:
        """The settings; of the generator's processor its class alone."""
        light = copy.copy(self)
        for name in ("generator_processor", "with_slots"):
            light.__dict__.pop(name, None)
        settings = super(GeneratorProcessorMixin, light).to_dict()
        if self.generator_processor is not None:
            settings[FOLDER] = type(self.generator_processor).__name__
        return settings

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> tuple[dict, dict]:
        """The saved settings, with the generator's processor in place of its class."""
        access = {name: kwargs[name] for name in HUB_ACCESS if kwargs.get(name) is not None}
        settings, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get(FOLDER):
            folder = os.path.join(kwargs.get("subfolder") or "", FOLDER)
            settings[FOLDER] = load_generator_processor(
                pretrained_model_name_or_path, settings[FOLDER], subfolder=folder, **access
            )
        return settings, rest


def load_processors(references: Any, access: dict[str, Any]) -> dict[str, Any]:
    """Tokenizers and processors from the repositories that a saved processor refers to, by their names in it.

    Args:
        access: to all repositories (`token`, `cache_dir`, `local_files_only`, ...); no revision.
    """
    found = {}
    for name, reference in dict(references).items():
        given = check_reference(name, reference, PROCESSORS)
        load = load_generator_processor if name == "generator_processor" else AutoTokenizer.from_pretrained

        def load_it(source: str, load=load, name=name, **loading: Any) -> Any:
            with loading_errors(name.replace("_", " "), source):
                return load(source, **loading)

        source = given.pop("name")
        found[name] = load_pinned(load_it, source, {**access, **given})
        remember(found[name], source, given)
    return found
