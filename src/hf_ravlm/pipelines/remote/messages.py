"""Prompts as messages for a server, which fills the chat template itself: the words and order of local prompts.

The server turns all text into tokens by its own rules, and may take the control tokens in it for what they say. What
looks like one is therefore broken up, `<|im_end|>` to `< |im_end|>`: passages are data here, too.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from PIL import Image

from ...errors import InvalidInputError
from ...images import safe_image, shrunk
from ...model.prompts.chat import WORD, message_parts
from ...model.prompts.chat_inputs import CITE, PASSAGE, QUESTION
from ...model.prompts.evidence import EvidenceItem, chosen_passages
from ...model.prompts.settings import MAX_IMAGE_PIXELS, MAX_PASSAGE_IMAGE_PIXELS, PromptSettings
from ...text import clean_text, without_controls


_MARKS = "/?(?:s|img|think|tool_call|tool_response)|pad|unk|bos|eos|mask|image|video|audio"
_CONTROL = re.compile(
    rf"<(?=\|[^>\n]{{1,60}}?\|?>|｜[^>\n]{{1,60}}?｜>|(?:{_MARKS})>|(?:start|end)_of_\w{{1,20}}>"
    r"|/?(?:unused|reserved|extra|vision|fake|row|global|box|ref|point)[\w-]{0,40}>|<SYS>|</SYS>)"
    r"|\[(?=/?(?:INST|IMG|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|CLS|SEP|MASK)\])",
    re.IGNORECASE,
)
_WORD = re.compile(WORD.format(r"(\d+)"))


class RemotePrompts:
    """What writes the prompts of a reader behind a server: the place of its processor.

    Args:
        settings: Those of [`PromptSettings`], but a template, which is the server's own. Tokens are counted as four
            ASCII letters or one other, for the server alone knows its tokenizer; images are not counted.

    Raises:
        InvalidInputError: For a setting that is none, or is the server's.
    """

    layout = "chat"
    tokenizer = SimpleNamespace(pad_token_id=0, padding_side="left")  # for pipelines, which batch by one

    def __init__(self, **settings: Any):
        defaults = {
            "max_length": 8192,
            "passage_titles": True,
            "max_image_pixels": MAX_IMAGE_PIXELS,
            "max_passage_image_pixels": MAX_PASSAGE_IMAGE_PIXELS,
        }
        self.prompt_settings = PromptSettings(**defaults).changed(settings)

    def settings_of(self, prompt: Any) -> PromptSettings:
        """The settings of one call."""
        settings = self.prompt_settings.changed(prompt or {})
        if settings.chat_template is not None:
            raise InvalidInputError("chat_template= has no effect here: the server writes prompts by its own template")
        return settings


@dataclass
class RemotePrompt:
    """The messages of one question, and the places of the passages that stand in them."""

    messages: list[dict[str, Any]]
    read: list[int]


def write_prompt(
    settings: PromptSettings, question: str, images: Sequence[Any], passages: Sequence[EvidenceItem]
) -> RemotePrompt:
    r"""The messages of one question with its images and passages, best first.

    Raises:
        InvalidInputError: The question is empty, or longer than `max_length`.
        UnsafeInputError: An image cannot be used.

    >>> prompt = write_prompt(PromptSettings(), "Who sings?", [], [EvidenceItem("The wren is loud.")])
    >>> prompt.messages, prompt.read
    ([{'role': 'user', 'content': 'Passage: The wren is loud.\n\nQuestion: Who sings?'}], [0])
    """
    asked = _literal(question, "the question")
    if not asked:
        raise InvalidInputError("the question has no words; ask something, or leave it out for a description")
    shown = [shrunk(safe_image(image), settings.max_image_pixels) for image in images]
    system = None if settings.system_message is None else _literal(settings.system_message, "system_message")
    room = settings.max_length - num_tokens(asked) - num_tokens(system or "")
    if room < 0:
        raise InvalidInputError(
            f"the question has about {num_tokens(asked)} tokens, which with the system message do not fit into "
            f"max_length={settings.max_length}; shorten it, or give a larger max_length"
        )
    texts, pictures, read = _passages(settings, passages, room)
    if texts:
        asked = f"{CITE}\n\n{QUESTION} {asked}" if settings.cite else f"{QUESTION} {asked}"
    parts, sent = message_parts(shown, pictures, settings.passage_order == "best_first")
    texts.append(asked)
    content = _content(parts, texts, iter(sent))
    told = [] if system is None else [{"role": "system", "content": system}]
    return RemotePrompt([*told, {"role": "user", "content": content}], read)


def num_tokens(text: str) -> int:
    """About how many tokens a text has, rather too many than too few.

    >>> num_tokens("The wren"), num_tokens("鹪鹩")
    (2, 2)
    """
    ascii_letters = len(text.encode("ascii", "ignore"))
    return -(-ascii_letters // 4) + len(text) - ascii_letters


def without_control_tokens(text: str) -> str:
    """A text in which nothing looks like a control token.

    >>> without_control_tokens("a <b>bold</b> end<|im_end|></s>")
    'a <b>bold</b> end< |im_end|>< /s>'
    """
    return _CONTROL.sub(lambda found: f"{found.group()} ", text)


def _literal(text: str, name: str) -> str:
    return without_control_tokens(clean_text(without_controls(text), name))


def _passages(
    settings: PromptSettings, passages: Sequence[EvidenceItem], room: int
) -> tuple[list[str], list[Image.Image | None], list[int]]:
    """Texts, images and places of the passages that fit, best first."""
    chosen = chosen_passages(passages, settings.passage_titles, settings.passage_images, settings.drop_duplicates)
    texts: list[str] = []
    pictures: list[Image.Image | None] = []
    read: list[int] = []
    for number, place in enumerate(chosen, start=1):
        label = f"[{number}]" if settings.numbered else PASSAGE
        room -= num_tokens(label) + 1
        words = _literal(passages[place].words(settings.passage_titles), "a passage")
        cut = _cut(words, min(settings.max_passage_length, room))
        image = passages[place].image if settings.passage_images else None
        if room < 0 or (words and not cut):
            break
        room -= num_tokens(cut)
        texts.append(f"{label} {cut}\n\n")
        pictures.append(None if image is None else shrunk(safe_image(image), settings.max_passage_image_pixels))
        read.append(place)
    return texts, pictures, read


def _cut(text: str, room: int) -> str:
    """The beginning of a text that has so many tokens."""
    if num_tokens(text) <= room:
        return text
    taken, quarters = 0, 4 * max(room, 0)
    for letter in text:
        quarters -= 1 if letter.isascii() else 4
        if quarters < 0:
            break
        taken += 1
    return text[:taken]


def _content(parts: list[dict[str, str]], texts: list[str], images: Any) -> str | list[dict[str, Any]]:
    """The parts of a message with its texts and images; words alone as one string, which all servers take."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return _WORD.sub(lambda found: texts[int(found.group(1))], parts[0]["text"])
    content: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "text":
            text = _WORD.sub(lambda found: texts[int(found.group(1))], part["text"])
            content.append({"type": "text", "text": text})
        else:
            content.append({"type": "image_url", "image_url": {"url": image_data(next(images))}})
    return content


def image_data(image: Image.Image) -> str:
    """An image as servers take it: in the request itself, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


__all__ = ["RemotePrompt", "RemotePrompts", "image_data", "write_prompt"]
