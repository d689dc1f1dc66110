"""A request to `/v1/chat/completions`, read once: what is accepted is applied, and what is not applied is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidInputError
from ..images.sources import shortened
from ..pipelines.conversations import read_conversation


MAX_LETTERS = 20_000  # of a question, and of what the reader is told first
MAX_PASSAGES = 100
MAX_NEW_TOKENS = 32_768
DEFAULT_NEW_TOKENS = 1_024
_LEAST = 0.001  # of temperature and top_p; closer to 0, scores have no finite quotient
MAX_STOPS, MAX_STOP_LETTERS = 16, 200
# Settings of the prompt that a request may say; a template of its own is none of them.
PROMPT_SETTINGS = ("number_passages", "passage_titles", "passage_order", "drop_duplicates", "enable_thinking", "cite")

_APPLIED = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream"),
    *("stream_options", "chat_template_kwargs"),
}
# What names a request for its sender and changes no answer.
_LABELS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# What is not applied here may say that it is not wanted.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class RequestError(InvalidInputError):
    """A request that cannot be answered, with the field that is wrong."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class ChatRequest:
    """What is asked, and how the answer is to be written.

    Args:
        question (`str`), images (`list[str]`): of the conversation; an image is a `data:` text, or an address.
        system (`str`, *optional*): what the reader is told first.
        k (`int`, *optional*): passages; as the server says by default.
        prompt (`dict`): settings of the prompt.
        max_new_tokens (`int`), temperature, top_p (`float`, *optional*), seed (`int`, *optional*): greedy without
            `temperature` and `top_p`, and with a temperature of 0.
        stop (`tuple[str]`): words before which the answer ends.
        stream, with_usage (`bool`): token by token, and with a last chunk that counts them.
    """

    question: str
    images: list[str] = field(default_factory=list)
    system: str | None = None
    k: int | None = None
    prompt: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": 1}
        asked = {name: value for name in ("temperature", "top_p") if (value := getattr(self, name)) is not None}
        if asked and asked.get("temperature") != 0:
            settings |= {"do_sample": True, "top_k": 0, **asked}
        return settings


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestError: If it is none.
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError("the request is nested too deep") from None
    except ValueError as error:  # broken JSON or UTF-8, numbers of thousands of digits
        raise RequestError(f"the request is no JSON: {shortened(str(error))}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the request came as {type(found).__name__}: expected a JSON object with `messages`")
    return found


def read_request(body: Mapping[str, Any], model: str, fetches: bool = False) -> ChatRequest:
    """Reads a request to the model of that name.

    Args:
        body: The JSON object.
        model: What is served.
        fetches: Whether images may come as addresses of the open network.

    Raises:
        RequestError: Naming the field, what came and what was expected.

    Example:

    >>> request = read_request({"messages": [{"role": "user", "content": "Who?"}], "stop": "."}, "my_model")
    >>> request.question, request.stop, request.generate_kwargs()
    ('Who?', ('.',), {'max_new_tokens': 1024, 'num_beams': 1})
    """
    named = body.get("model")
    if named is not None and named != model:
        raise RequestError(
            f"the model {_shown(named)} is not served here: this server answers as {model!r}",
            "model",
            "model_not_found",
        )
    for name in body:
        if name not in _APPLIED and name not in _LABELS and name not in _UNUSED:
            raise RequestError(f"{_shown(name)} is no field of this server's requests: {sorted(_APPLIED)}")
    for name, allowed in _UNUSED.items():
        value = body.get(name)
        if value is not None and not any(_same(value, one) for one in allowed):
            expected = " or ".join(["nothing", *map(repr, allowed)])
            raise RequestError(f"{name}={_shown(value)} is not applied by this server: expected {expected}", name)
    asked = _of_field("messages", lambda: read_conversation(body.get("messages"), lambda part: _image(part, fetches)))
    for text in (asked.question, asked.system or ""):
        if len(text) > MAX_LETTERS:
            raise RequestError(f"a text of {len(text):,} letters: at most {MAX_LETTERS:,} are read", "messages")
    k, prompt = _prompt(_object(body, "chat_template_kwargs"))
    longest = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    stream, options = _flag(body, "stream"), _object(body, "stream_options")
    if options and not stream:
        raise RequestError("stream_options came without stream: expected `stream` to be true", "stream_options")
    if unknown := sorted(set(options) - {"include_usage", "include_obfuscation"}):
        raise RequestError(f"stream_options has {_shown(unknown)}: expected include_usage", "stream_options")
    return ChatRequest(
        question=asked.question,
        images=asked.images,
        system=asked.system,
        k=k,
        prompt=prompt,
        max_new_tokens=_whole(body, longest, 1, MAX_NEW_TOKENS) or DEFAULT_NEW_TOKENS,
        temperature=_number(body, "temperature", _LEAST, 2),
        top_p=_number(body, "top_p", _LEAST, 1),
        seed=_whole(body, "seed", -(2**63), 2**63 - 1),
        stop=_stop(body.get("stop")),
        stream=stream,
        with_usage=_flag(options, "include_usage"),
    )


def _of_field(name: str, read: Any) -> Any:
    try:
        return read()
    except RequestError:
        raise
    except InvalidInputError as error:
        raise RequestError(str(error), name) from error


def _image(part: Mapping[str, Any], fetches: bool) -> str:
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if part.get("type") != "image_url" or not isinstance(url, str):
        raise RequestError(
            "an image part came without its image: expected {'type': 'image_url', 'image_url': {'url': "
            "'data:image/png;base64,...'}}",
            "messages",
        )
    if url[:11].lower() == "data:image/" or (fetches and url[:8].lower().startswith(("http://", "https://"))):
        return url
    # A client must not choose what this machine reads or fetches, nor learn what is there.
    raise RequestError("an image came as an address; send the image itself: data:image/png;base64,...", "messages")


def _prompt(given: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
    if unknown := sorted(set(given) - {"k", *PROMPT_SETTINGS}):
        choices = ", ".join(("k", *PROMPT_SETTINGS))
        raise RequestError(f"chat_template_kwargs has {_shown(unknown)}: expected {choices}", "chat_template_kwargs")
    k = given.get("k")
    if k is not None and not (_is_whole(k) and 0 <= k <= MAX_PASSAGES):
        raise RequestError(
            f"k={_shown(k)}: expected 0 (closed-book) to {MAX_PASSAGES} passages", "chat_template_kwargs"
        )
    return k, {name: given[name] for name in PROMPT_SETTINGS if given.get(name) is not None}


def _stop(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value or []
    fits = isinstance(given, list) and len(given) <= MAX_STOPS
    if not fits or not all(isinstance(word, str) and 0 < len(word) <= MAX_STOP_LETTERS for word in given):
        raise RequestError(
            f"stop={_shown(value)}: expected a text, or up to {MAX_STOPS} of them, of 1 to {MAX_STOP_LETTERS} letters",
            "stop",
        )
    return tuple(given)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name}={_shown(value)}: expected true or false", name)
    return bool(value)


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise RequestError(f"{name}={_shown(value)}: expected an object", name)
    return value or {}


def _whole(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is not None and not (_is_whole(value) and least <= value <= most):
        raise RequestError(f"{name}={_shown(value)}: expected a whole number from {least} to {most}", name)
    return value


def _number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """A number within its limits; 0 where they exclude it stands for greedy decoding, of the temperature alone."""
    value = body.get(name)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (least <= value <= most or (name == "temperature" and value == 0)):
        zero = "0 or " if name == "temperature" else ""
        raise RequestError(f"{name}={_shown(value)}: expected {zero}a number from {least:g} to {most:g}", name)
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return type(value).__name__
    return text if len(text) <= 100 else f"{text[:100]}..."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
