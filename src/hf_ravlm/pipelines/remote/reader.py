"""A reader behind a server of OpenAI's kind, in the place of a model: any pipeline takes it.

It is sent the image, the question and the passages that the retriever found on this machine, and answers in words.
What needs its weights is not to be had: attribution to passages, policies, heat maps, training, saving.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig

from ...errors import InvalidInputError, RemoteServerError
from ...model.configuration_ravlm import DESCRIBE_PROMPT
from ...model.prompts.evidence import listed, read_evidence
from ...servers import RefusedError, Server
from ..answer import Answer, answer_of, parted
from ..streaming import tell_evidence
from .messages import RemotePrompts, write_prompt


CHAT = "/chat/completions"
# What a call may say beside the settings of the prompt, and the fields of a request that it becomes.
_FIELDS = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
_OTHERS = ("do_sample", "stop_strings", "num_return_sequences", "logprobs", "streamer", "extra_body")
_WHATEVER = {"num_beams": 1, "pad_token_id": RemotePrompts.tokenizer.pad_token_id}  # true of any reader


@strict
class RemoteReaderConfig(PreTrainedConfig):
    """What a pipeline asks of the settings of a reader; arguments as of [`RavlmConfig`]."""

    model_type = "ravlm_remote_reader"

    num_passages: int = 4
    default_prompt: str = DESCRIBE_PROMPT


class RemoteReader:
    """A reader by the address of its server: vLLM, SGLang, TGI, Ollama, llama.cpp, or any other of OpenAI's kind.

    Args:
        address (`str`): Such as `"http://localhost:8000/v1"`. A key is taken from `HF_RAVLM_API_KEY`.
        name (`str`, *optional*): Which of its models reads; may be left out where it lists one alone.
        sees_images (`bool`): Whether images are sent to it; `False` for a reader of words alone, for which images are
            for the search.
        timeout (`float`): Seconds that one answer may take in all.
        retries (`int`): How often a question is asked again, while the server is away or busy.
        parallel (`int`): How many questions of a batch are asked at once.

    Raises:
        InvalidInputError: If the address is none, or a setting is out of range.

    >>> reader = RemoteReader("http://localhost:8000/v1", "Qwen/Qwen3-VL-2B-Instruct")
    >>> pipeline("image-to-text", model=reader, encoder=ENCODER, knowledge="my_folder")  # doctest: +SKIP
    """

    device, dtype = torch.device("cpu"), None
    input_modalities, output_modalities = ("image", "text"), ("text",)
    hf_device_map = None

    def __init__(
        self,
        address: str,
        name: str | None = None,
        *,
        sees_images: bool = True,
        timeout: float = 120.0,
        retries: int = 3,
        parallel: int = 8,
    ):
        self.server = Server(address, timeout, retries)
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise InvalidInputError(f"reader_name={name!r}: expected the name of a model as the server lists it")
        if not isinstance(parallel, int) or isinstance(parallel, bool) or parallel < 1:
            raise InvalidInputError(f"parallel={parallel!r}: expected a whole number from 1")
        self.name, self.sees_images, self.parallel = name, sees_images, parallel
        self.config, self.generation_config = RemoteReaderConfig(), GenerationConfig()

    def opened(self, name: str | None = None) -> RemoteReader:
        """This reader, its server asked once whether it is there, and with a name.

        Raises:
            InvalidInputError: There is no name, and the server lists none or several; or it wants a key.
            RemoteServerError: It cannot be reached.
        """
        if name is not None and self.name not in (None, name):
            raise InvalidInputError(f"reader_name={name!r} came with a reader that is named {self.name!r}; give one")
        self.name = self.name or name
        try:
            listed_names = self.server.models()
        except RefusedError as error:  # not every server lists its models
            if self.name is None or error.status in (401, 403):
                raise
            return self
        if self.name is None:
            if len(listed_names) != 1:
                choices = f"it has {', '.join(sorted(listed_names)[:20])}" if listed_names else "it lists no model"
                raise InvalidInputError(f"{self.server.address}: which model is to read? Give reader_name=; {choices}")
            self.name = listed_names[0]
        return self

    def to(self, *_: Any, **__: Any) -> RemoteReader:
        """Itself: it is where its server is."""
        return self

    def can_generate(self) -> bool:
        """Yes."""
        return True

    @cached_property
    def gives_logprobs(self) -> bool:
        """Whether the server says how probable its tokens were; it is asked once."""
        body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1, "temperature": 0, "logprobs": True}
        try:
            reply = self.server.ask(CHAT, {"model": self.name, **body})
            return bool(_written(reply, 1, self.server.address)[0].logprobs)
        except RefusedError:
            return False

    def write(self, body: dict[str, Any]) -> list[Written]:
        """What the model writes to one request, as many answers as it asks for."""
        with self._refusals(body):
            return _written(self.server.ask(CHAT, {"model": self.name, **body}), body.get("n", 1), self.server.address)

    def stream(self, body: dict[str, Any], streamer: Any) -> list[Written]:
        """As `write`, for one answer, of which the streamer is told every piece of text."""
        asked = {"model": self.name, **body, "stream": True, "stream_options": {"include_usage": True}}
        written, ended = Written(), False
        with self._refusals(body):
            for event in self._stream_events(asked):
                ended |= written.add(event)
                if piece := written.news():
                    streamer.on_finalized_text(piece, stream_end=False)
        if not ended:
            raise RemoteServerError(
                f"{self.server.address}: the stream ended before the answer did, after {len(written.text):,} letters"
            )
        streamer.on_finalized_text("", stream_end=True)
        return [written]

    def _stream_events(self, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Servers that do not count tokens of a stream are asked without."""
        events = self.server.events(CHAT, asked)
        try:
            first = next(events, None)
        except RefusedError as error:
            if "stream_options" not in str(error):
                raise
            asked = {name: value for name, value in asked.items() if name != "stream_options"}
            events = self.server.events(CHAT, asked)
            first = next(events, None)
        if first is not None:
            yield first
            yield from events

    @contextmanager
    def _refusals(self, body: Mapping[str, Any]) -> Iterator[None]:
        """Says what to do where the server refuses a request."""
        try:
            yield
        except RefusedError as error:
            advice = self._advice(error.status, body)
            raise RefusedError(f"{error} ({advice})" if advice else str(error), error.status) from error

    def _advice(self, status: int, body: Mapping[str, Any]) -> str:
        if status == 404:
            try:
                names = self.server.models()
            except (InvalidInputError, RemoteServerError):
                names = []
            has = f"it has {', '.join(sorted(names)[:20])}" if names else "does its address end in /v1?"
            return f"reader_name={self.name!r}: {has}"
        advice = []
        if status in (400, 413, 415, 422) and _has_images(body):
            advice.append("if this reader sees no images, say sees_images=False; max_image_pixels= makes smaller ones")
        if status in (400, 422) and body.get("logprobs"):
            advice.append("it may not know logprobs=")
        return "; ".join(advice)


@dataclass
class Written:
    """One answer of a server: its words, what was thought before them, the log-probability of each token if given."""

    content: str = ""
    reasoning: str = ""
    logprobs: list[float] = field(default_factory=list)
    usage: dict[str, int] | None = None  # tokens read and written
    finish_reason: str | None = None
    _told: str = ""

    def add(self, event: Mapping[str, Any]) -> bool:
        """Takes an event of a stream in; whether it ends the answer."""
        self._count(event)
        choice = next(iter(event.get("choices") or []), None)
        if not isinstance(choice, Mapping):
            return False
        self.take(choice, choice.get("delta"))
        return self.finish_reason is not None

    def take(self, choice: Mapping[str, Any], message: Any) -> None:
        """Takes a message, or a piece of one, in."""
        message = message if isinstance(message, Mapping) else {}
        for name in ("reasoning_content", "reasoning"):
            if isinstance(message.get(name), str) and message[name]:
                self.reasoning += message[name]
                break
        content = message.get("content")
        if isinstance(content, list):  # parts
            content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
        self.content += content if isinstance(content, str) else ""
        tokens = (choice.get("logprobs") or {}).get("content") or []
        self.logprobs += [
            float(token["logprob"]) for token in tokens if isinstance(token.get("logprob"), (int, float))
        ]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _count(self, reply: Mapping[str, Any]) -> None:
        usage = reply.get("usage")
        if isinstance(usage, Mapping) and isinstance(usage.get("total_tokens"), int):
            self.usage = {name: value for name, value in usage.items() if isinstance(value, int)}

    def split(self) -> tuple[str, str | None]:
        """The answer, and what was thought before it or `None`."""
        text, thoughts = self.content, self.reasoning.strip()
        begins = text.lstrip().startswith("<think>")
        if begins or (not thoughts and "</think>" in text):
            before, _, text = text.replace("<think>", "", 1).partition("</think>")
            thoughts = thoughts or before.strip()
        return text.strip(), thoughts or None

    @property
    def text(self) -> str:
        """The answer alone."""
        return self.split()[0]

    def news(self) -> str:
        """What has been added to the answer since this was asked last."""
        text = self.text
        if not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece


def read_remotely(
    reader: RemoteReader,
    prompts: RemotePrompts,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    prompt: Mapping[str, Any] | None = None,
    **generate_kwargs: Any,
) -> list[list[Answer]]:
    """Answers questions from the evidence that is given, see `read_answers`; several at once.

    Raises:
        InvalidInputError: For an argument that servers do not take, a question without words, or what the server
            refuses.
        RemoteServerError: If it is away, too slow, breaks off or answers nonsense.
    """
    settings, asked = prompts.settings_of(prompt), request_fields(generate_kwargs)
    if settings.enable_thinking is not None:
        asked["chat_template_kwargs"] = {"enable_thinking": settings.enable_thinking}
    asked |= generate_kwargs.get("extra_body") or {}
    streamer = generate_kwargs.get("streamer")
    if streamer is not None and (len(questions) > 1 or asked.get("n", 1) > 1):
        raise InvalidInputError("streamer= came with several answers: it is told one, of one question")
    shown = [[]] * len(questions) if images is None or not reader.sees_images else list(map(_images, images))
    written = [
        write_prompt(settings, question, row, passages)
        for question, row, passages in zip(questions, shown, read_evidence(evidence, len(questions)), strict=True)
    ]

    def answers(row: int) -> list[Answer]:
        body = {"messages": written[row].messages, **asked}
        kept = [place in written[row].read for place in range(len(evidence[row]))]
        tell_evidence(streamer, *parted([evidence[row]], [kept]))
        told = reader.write(body) if streamer is None else reader.stream(body, streamer)
        cited = questions[row] if settings.cite else None
        found = [answer_of(*one.split(), evidence[row], kept, cited) for one in told]
        for answer, one in zip(found, told, strict=True):
            answer.logprobs, answer.usage = one.logprobs or None, one.usage
        return found

    if len(questions) == 1:
        return [answers(0)]
    with ThreadPoolExecutor(min(reader.parallel, len(questions)), "hf_ravlm-remote-reader") as threads:
        coming = [threads.submit(answers, row) for row in range(len(questions))]
        try:
            return [future.result() for future in coming]
        except BaseException:
            for future in coming:
                future.cancel()
            raise


def request_fields(generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` as fields of a request; greedy unless they ask for more.

    Raises:
        InvalidInputError: For one that servers of this kind do not take.

    >>> request_fields({"max_new_tokens": 32, "do_sample": False})
    {'max_tokens': 32, 'temperature': 0}
    """
    for name, value in generate_kwargs.items():
        if name not in _FIELDS and name not in _OTHERS and value is not None and value != _WHATEVER.get(name, ...):
            known = ", ".join((*_FIELDS, *_OTHERS))
            raise InvalidInputError(
                f"{name}= is not applied by a reader behind a server, which takes {known}; what it alone knows goes "
                "into extra_body={...}"
            )
    fields = {_FIELDS[name]: value for name, value in generate_kwargs.items() if name in _FIELDS and value is not None}
    number = generate_kwargs.get("num_return_sequences") or 1
    if not generate_kwargs.get("do_sample"):
        fields = {name: value for name, value in fields.items() if name != "top_p"} | {"temperature": 0}
        if number > 1:
            raise InvalidInputError(f"num_return_sequences={number} came without do_sample=True: all would be alike")
    if number > 1:
        fields["n"] = number
    if stop := generate_kwargs.get("stop_strings"):
        fields["stop"] = listed(stop)
    if generate_kwargs.get("logprobs"):
        fields["logprobs"] = True
    return fields


def mean_probability(logprobs: Sequence[float] | None) -> float | None:
    """The geometric mean of the probabilities of an answer's tokens; `None` where they are not known.

    >>> mean_probability([math.log(0.5), math.log(0.5)])
    0.5
    """
    return min(math.exp(sum(logprobs) / len(logprobs)), 1.0) if logprobs else None


def _written(reply: Mapping[str, Any], number: int, address: str) -> list[Written]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != number or not all(isinstance(one, Mapping) for one in choices):
        came = f"{len(choices)} answers" if isinstance(choices, list) else "no answer"
        raise RemoteServerError(f"{address}: {came} came, expected {number}; is this a server of OpenAI's kind?")
    found = []
    for choice in choices:
        if not isinstance(choice.get("message"), Mapping):
            raise RemoteServerError(f"{address}: an answer came without its message")
        one = Written()
        one._count(reply)
        one.take(choice, choice["message"])
        found.append(one)
    return found


def _images(image: Any) -> list[Any]:
    return [] if image is None else listed(image)


def _has_images(body: Mapping[str, Any]) -> bool:
    contents = [message["content"] for message in body["messages"]]
    return any(isinstance(content, list) for content in contents)


__all__ = ["RemoteReader", "mean_probability", "read_remotely", "request_fields"]
