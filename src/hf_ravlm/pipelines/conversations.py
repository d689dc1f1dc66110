"""A conversation as chat clients write it: the question, the images that go with it, what the reader is told first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidInputError


ROLES = ("system", "developer", "user", "assistant")
IMAGE_KINDS = ("image", "image_url")
_IMAGE_KEYS = ("image", "url", "path", "image_url")
_MOST_SHOWN = 100  # letters of what came, in messages


class Conversation(NamedTuple):
    """What is asked.

    Args:
        question (`str`): The words of the last user message.
        images (`list`): Those of the last user message that has any; anything that `safe_image` takes.
        system (`str`, *optional*): The words of all system messages.
    """

    question: str
    images: list[Any]
    system: str | None = None


def read_conversation(messages: Any, image_of: Callable[[Mapping[str, Any]], Any] | None = None) -> Conversation:
    """Reads messages strictly: a part that is not understood is refused, never left out.

    Args:
        messages: Dictionaries with `role` and `content`, which is text or a list of parts.
        image_of: What makes an image of its part; by default any key that transformers knows.

    Raises:
        InvalidInputError: If the user says nothing, or anything in it is of another kind than expected.

    Example:

    >>> parts = [{"type": "image", "url": "a.png"}, {"type": "text", "text": "Who?"}]
    >>> read_conversation([{"role": "user", "content": parts}])
    Conversation(question='Who?', images=['a.png'], system=None)
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise InvalidInputError(f"messages came as {type(messages).__name__}: expected a list of messages")
    question, images, system = "", list[Any](), list[str]()
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        if not isinstance(message, Mapping):
            raise InvalidInputError(
                f"{name} came as {type(message).__name__}: expected {{'role': ..., 'content': ...}}"
            )
        role = message.get("role")
        if role not in ROLES:
            raise InvalidInputError(f"{name} has the role {_shown(role)}: expected {', '.join(ROLES)}")
        words, shown = _parts(message.get("content"), name, role, image_of or _image_of_part)
        if role in ("system", "developer"):
            system += [words] if words.strip() else []
        elif role == "user":
            question, images = words, shown or images
    if not question.strip():
        raise InvalidInputError(
            "the conversation has no words from the user; add a text part to the last user message"
        )
    return Conversation(question, images, "\n\n".join(system) or None)


def _parts(content: Any, name: str, role: str, image_of: Callable[[Mapping[str, Any]], Any]) -> tuple[str, list[Any]]:
    """Words and images of a message."""
    if content is None and role == "assistant":
        return "", []
    if isinstance(content, str):
        return content, []
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidInputError(f"{name}: content came as {type(content).__name__}: expected text or a list of parts")
    texts, images = [], []
    for place, part in enumerate(content):
        where = f"{name}.content[{place}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "text":
            raise InvalidInputError(f"{where}: a text part has no text: expected {{'type': 'text', 'text': '...'}}")
        elif kind in IMAGE_KINDS and role == "user":
            images.append(image_of(part))
        else:
            kinds = "text or image_url" if role == "user" else "text"
            raise InvalidInputError(f"{where}: a part of the type {_shown(kind)} is not read here: expected {kinds}")
    return " ".join(texts), images


def _image_of_part(part: Mapping[str, Any]) -> Any:
    if isinstance(part.get("base64"), str):
        return f"data:image/any;base64,{part['base64'].rpartition(',')[2]}"
    for key in _IMAGE_KEYS:
        if part.get(key) is not None:
            found = part[key].get("url") if key == "image_url" and isinstance(part[key], Mapping) else part[key]
            if found is not None:
                return found
    raise InvalidInputError(
        f"an image part of the conversation has no image: it has the keys {_shown(sorted(map(str, part)))}, expected "
        "one of image, url, path, base64 or image_url"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
