"""What writes a reader's prompts beside ours: the processor of an image-text-to-text model, or a tokenizer alone.

Qwen-VL, SmolVLM and others take videos too, for which alone transformers needs torchvision; without it the processor
is loaded without its video part.
"""

from __future__ import annotations

import copy
import os
from types import SimpleNamespace
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoProcessor, PreTrainedConfig
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from ...errors import InvalidInputError


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


class WithoutVideos:
    """Put before a processor class, leaves out its video processor."""

    video_processor = SimpleNamespace(num_frames=None, fps=None)  # some chat templates ask for these, and use neither

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]

    @classmethod
    def from_args_and_dict(cls, args: list, processor_dict: dict[str, Any], **kwargs: Any) -> ProcessorMixin:
        return super().from_args_and_dict(args, {**processor_dict, "video_processor": None}, **kwargs)


def without_videos(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class without its video part, if it has one; the name, which saved folders hold, stays.

    >>> from transformers import LlavaProcessor, Qwen2VLProcessor
    >>> without_videos(LlavaProcessor) is LlavaProcessor, without_videos(Qwen2VLProcessor).get_attributes()
    (True, ['image_processor', 'tokenizer'])
    """
    if "video_processor" not in cls.get_attributes():
        return cls
    return type(cls.__name__, (WithoutVideos, cls), {"__module__": cls.__module__})


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
