"""Answers told while they are written, several at once: the evidence first, then the words, piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from .answer import passage_record


class StreamLeftError(Exception):
    """Nobody waits for these answers any longer."""


class Writing:
    """One answer while it is written.

    Args:
        tell: Gets each new piece of text.
        decode: Makes text of a list of token ids; not needed for a reader behind a server.
        stop: Words before which the text ends.
        at_once: Whether the text is told when it is whole only, because it may yet be withheld.
        max_tokens: How many tokens it may have; as the call says by default.
        tell_evidence: Gets the passages that are read and those that are not, before the first word.
    """

    def __init__(
        self,
        tell: Callable[[str], Any],
        decode: Callable[[list[int]], str] | None = None,
        stop: Sequence[str] = (),
        at_once: bool = False,
        max_tokens: int | None = None,
        tell_evidence: Callable[[list[Any], list[Any]], Any] | None = None,
    ) -> None:
        self._tell, self._decode, self._stop, self._at_once = tell, decode, tuple(stop), at_once
        self.max_tokens, self._tell_evidence = max_tokens, tell_evidence
        self._left = threading.Event()
        self._tokens: list[int] = []
        self._told = self.text = ""
        self.stopped = self.is_over = False
        self.prompt_tokens = self.num_tokens = 0

    def leave(self) -> None:
        """Nobody waits any longer: the next token ends it."""
        self._left.set()

    @property
    def is_left(self) -> bool:
        return self._left.is_set()

    def check(self) -> None:
        """Raises `StreamLeftError` if nobody waits any longer."""
        if self.is_left:
            raise StreamLeftError

    def begin(self, prompt_tokens: int) -> None:
        """A reader begins to write; again, if it was asked twice."""
        self._tokens, self.num_tokens, self.prompt_tokens = [], 0, prompt_tokens
        self.stopped = self.is_over = False

    def put_evidence(self, read: list[Any], unread: list[Any]) -> None:
        if self._tell_evidence is not None and not self._at_once:
            self._tell_evidence(read, unread)

    def add_token(self, token: int, is_last: bool = False) -> None:
        """Takes the next token in, unless the answer is over."""
        if self.is_over or self.is_left:
            self.is_over = True
            return
        self._tokens.append(token)
        self.num_tokens += 1
        if self._decode is not None and (self._stop or not self._at_once):
            self.add_text(self._decode(self._tokens))
        self.is_over = is_last or self.stopped or self.num_tokens == self.max_tokens

    def add_text(self, text: str) -> None:
        """The text so far."""
        text = self._until_stop(text)
        # The end of a text may still become a stop word, another letter or a space that is stripped.
        kept = max([len(word) - 1 for word in self._stop], default=0)
        self._more(text if self.stopped else text[: max(len(text) - kept, 0)].rstrip("\ufffd"))

    def finish(self, text: str) -> None:
        """The whole text."""
        self._at_once = False
        self.text = self._until_stop(text)
        self._more(self.text)

    def _until_stop(self, text: str) -> str:
        places = [place for word in self._stop if (place := text.find(word)) >= 0]
        self.stopped = self.stopped or bool(places)
        return text[: min(places)] if places else text

    def _more(self, text: str) -> None:
        if not self._at_once and len(text) > len(self._told) and text.startswith(self._told):
            piece, self._told = text[len(self._told) :], text
            self._tell(piece)


class AnswerStreamer:
    """A streamer of `generate` for the answers of a batch, each told apart; of readers behind servers, too.

    Args:
        writings: One of each question, in their order.
        end_ids: Tokens that end an answer.
        pad_id: What fills up shorter prompts.
    """

    def __init__(self, writings: Sequence[Writing], end_ids: Sequence[int] = (), pad_id: int | None = None) -> None:
        self.writings, self.end_ids, self._pad_id = list(writings), frozenset(end_ids), pad_id
        self._begun = False
        self._text = ""

    def of_rows(self, rows: Sequence[int]) -> AnswerStreamer:
        """For one call of `generate` with these questions."""
        return AnswerStreamer([self.writings[row] for row in rows], sorted(self.end_ids), self._pad_id)

    @property
    def stopping_criteria(self) -> StoppingCriteriaList:
        """What ends each answer by itself; all end with a `StreamLeftError` when nobody waits for any."""
        return StoppingCriteriaList([_EachByItself(self.writings)])

    def put_evidence(self, read: Sequence[list[Any]], unread: Sequence[list[Any]]) -> None:
        """Told before the first word: what stands in the prompts, and what was found and does not."""
        for writing, *passages in zip(self.writings, read, unread, strict=True):
            writing.put_evidence(*passages)

    def put(self, value: torch.Tensor) -> None:
        """The prompts, and then token by token of each answer."""
        if all(writing.is_left for writing in self.writings):
            raise StreamLeftError
        rows = value.reshape(len(self.writings), -1).tolist()
        if not self._begun:
            self._begun = True
            for writing, row in zip(self.writings, rows, strict=True):
                writing.begin(sum(token != self._pad_id for token in row))
            return
        for writing, row in zip(self.writings, rows, strict=True):
            for token in row:
                writing.add_token(token, is_last=token in self.end_ids)

    def end(self) -> None:
        """Part of a streamer; whole texts come to `Writing.finish`."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """A piece of one answer, of a reader behind a server."""
        (writing,) = self.writings
        writing.check()
        writing.num_tokens += bool(text)  # a piece is a token, as a rule; the server may say it better
        self._text += text
        writing.add_text(self._text)


class _EachByItself(StoppingCriteria):  # type: ignore[misc]  # its base is not followed
    def __init__(self, writings: Sequence[Writing]) -> None:
        self.writings, self._start, self._last = writings, 0, -1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        width = input_ids.shape[1]
        if self._last != width - 1:  # another call of `generate`
            self._start = width - 1
        self._last = width
        # Tokens come to the streamer one step late: lengths are counted here.
        over = [one.is_over or width - self._start == one.max_tokens for one in self.writings]
        return torch.tensor(over, device=input_ids.device)


def streamer_for(pipe: Any, writings: Sequence[Writing]) -> AnswerStreamer:
    """A streamer for the reader of a pipeline."""
    end = getattr(pipe.model.generation_config, "eos_token_id", None)
    end_ids = [] if end is None else list(end) if isinstance(end, (list, tuple)) else [end]
    return AnswerStreamer(writings, end_ids, getattr(pipe.processor.tokenizer, "pad_token_id", None))


def decoder_for(pipe: Any, prompt: Mapping[str, Any] | None = None) -> Callable[[list[int]], str] | None:
    """What makes an answer, without thoughts, of the tokens of a pipeline's reader; `None` for one behind a server."""
    decode = getattr(pipe.processor, "decode_answers", None)
    return None if decode is None else lambda tokens: str(decode([tokens], prompt)[0][0])


def for_rows(generate_kwargs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Arguments of `generate` for some of the questions that a streamer is for."""
    streamer = generate_kwargs.get("streamer")
    if not isinstance(streamer, AnswerStreamer):
        return dict(generate_kwargs)
    return {**generate_kwargs, "streamer": streamer.of_rows(rows)}


def told_apart(generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of one call of `generate`, with what ends each answer by itself where a streamer tells them apart."""
    streamer = generate_kwargs.get("streamer")
    if not isinstance(streamer, AnswerStreamer):
        return dict(generate_kwargs)
    streamer = streamer.of_rows(range(len(streamer.writings)))  # which has not begun
    criteria = StoppingCriteriaList([*(generate_kwargs.get("stopping_criteria") or ()), *streamer.stopping_criteria])
    return {**generate_kwargs, "streamer": streamer, "stopping_criteria": criteria}


def tell_evidence(streamer: Any, read: Sequence[list[Any]], unread: Sequence[list[Any]]) -> None:
    """Tells a streamer that takes it (`put_evidence`) which passages are read, before the first word."""
    if hasattr(streamer, "put_evidence"):
        streamer.put_evidence(read, unread)


def stream_answer(ask: Callable[..., Any], writing_of: Callable[..., Writing], pipe: Any) -> Iterator[dict[str, Any]]:
    """What `ask(streamer=...)` tells, as it comes: `evidence`, pieces of `text`, and at the end what it returned.

    Leaving the iterator ends the answer.
    """
    events: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def tell_evidence(read: list[Any], unread: list[Any]) -> None:
        events.put({"evidence": list(map(passage_record, read)), "unread": list(map(passage_record, unread))})

    writing = writing_of(lambda piece: events.put({"text": piece}), tell_evidence=tell_evidence)

    def work() -> None:
        try:
            (record,) = ask(streamer=streamer_for(pipe, [writing]))
            writing.finish(record["answer"] if "answer" in record else record["generated_text"])
            events.put({"answer": record})
            events.put(None)
        except BaseException as error:
            events.put(error)

    thread = threading.Thread(target=work, name="hf_ravlm-stream", daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        writing.leave()
        thread.join()


__all__ = ["AnswerStreamer", "StreamLeftError", "Writing", "decoder_for", "stream_answer", "streamer_for"]
