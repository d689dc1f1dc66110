"""One system behind the chat server: requests that wait are answered together, each told its own words as they come.

While a batch is written, the next requests gather; none is held back for others for more than a few milliseconds.
Those that sample are answered alone, and so are all where a reader writes from one prompt per passage. A reader behind
another server gets every request at once: that server makes batches of its own.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..images import safe_image
from ..pipelines.answering import answer_questions
from ..pipelines.parts import is_remote
from ..pipelines.streaming import StreamLeftError, Writing, decoder_for, streamer_for
from .chat_requests import ChatRequest


if TYPE_CHECKING:
    from ..pipelines.answer import Answer

MAX_BATCH = 32
GATHER_SECONDS = 0.004  # that the first request of a batch waits for others
_AT_ONCE = 32  # requests to a reader behind another server


@dataclass(eq=False)
class Waiting:
    """A request that waits for its answer."""

    asked: ChatRequest
    images: list[Any]
    writing: Writing
    future: Future[Answer] = field(default_factory=Future)

    @property
    def samples(self) -> bool:
        """Whether it is answered by chance."""
        return bool(self.asked.generate_kwargs().get("do_sample"))

    def kind(self, with_length: bool) -> tuple[Any, ...]:
        """What is alike in requests that one batch answers."""
        asked = self.asked
        length = asked.max_new_tokens if with_length else None
        return (asked.k, asked.system, sorted(asked.prompt.items()), bool(self.images), self.samples, length)

    def is_ready(self) -> bool:
        """Opens its images; whether somebody still waits for an answer that can be given."""
        try:
            self.writing.check()
            self.images = [safe_image(image) for image in self.images]
        except Exception as error:
            self.future.set_exception(error)
            return False
        return True

    def finish(self, answer: Answer) -> None:
        """Tells what is left to be told."""
        if self.writing.is_left:
            self.future.set_exception(StreamLeftError())
            return
        self.writing.finish(answer.text)
        self.future.set_result(answer)


class Reader:
    """One system behind the server.

    Args:
        name: What clients call it.
        pipe: The pipeline: `model`, `processor`, `retriever`, `policy`.
        k: Passages per question; `None` for as many as the model's config says.
        default_seed: Where a request that samples gives none.
        max_batch: Requests that are answered together; 1 for one at a time.
    """

    def __init__(
        self, name: str, pipe: Any, k: int | None = None, default_seed: int | None = None, max_batch: int = MAX_BATCH
    ) -> None:
        self.name, self.pipe, self.k, self.default_seed = name, pipe, k, default_seed
        self.is_remote = is_remote(pipe.model)
        alone = self.is_remote or getattr(pipe.model.config, "marginalization", "none") != "none"
        self.max_batch = 1 if alone else max_batch
        # Where nothing ends an answer by itself, one that is over is written on until the longest is.
        self._same_length = not streamer_for(pipe, []).end_ids
        self._waiting: list[Waiting] = []
        self._answering: set[Waiting] = set()
        self._changed, self._is_open = threading.Condition(), True
        for _ in range(_AT_ONCE if self.is_remote else 1):
            # Nobody waits for another server at the end: what it still writes is for nobody.
            threading.Thread(target=self._work, name="hf_ravlm-reader", daemon=True).start()

    def writing_for(self, asked: ChatRequest, tell: Any, tell_evidence: Any = None) -> Writing:
        """What a request is written through."""
        return Writing(
            tell,
            decoder_for(self.pipe, asked.prompt),
            asked.stop,
            at_once=self.pipe.policy is not None,
            max_tokens=asked.max_new_tokens,
            tell_evidence=tell_evidence,
        )

    def submit(self, asked: ChatRequest, images: list[Any], writing: Writing) -> Future[Answer]:
        """A request in the queue."""
        request = Waiting(asked, images, writing)
        with self._changed:
            if not self._is_open:
                request.future.cancel()
                return request.future
            self._waiting.append(request)
            self._changed.notify_all()
        return request.future

    def close(self) -> None:
        """Ends what is being written, and takes no more."""
        with self._changed:
            self._is_open = False
            waiting, self._waiting = self._waiting, []
            for request in self._answering:
                request.writing.leave()
            self._changed.notify_all()
        for request in waiting:
            request.future.cancel()

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until nothing waits and nothing is being written; whether it came so far within these seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._answering, seconds)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                self._answer_all(batch)
            finally:
                with self._changed:
                    self._answering -= set(batch)
                    self._changed.notify_all()

    def _next_batch(self) -> list[Waiting] | None:
        """The first request that waits, with those that go with it; `None` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._is_open)
        if self.max_batch > 1:
            time.sleep(GATHER_SECONDS)
        with self._changed:
            if not self._is_open:
                return None
            batch = self._waiting[:1]
            if batch and not batch[0].samples:
                kind = batch[0].kind(self._same_length)
                batch = [one for one in self._waiting if one.kind(self._same_length) == kind][: self.max_batch]
            self._waiting = [one for one in self._waiting if one not in batch]
            self._answering |= set(batch)
            return batch

    def _answer_all(self, batch: list[Waiting]) -> None:
        batch = [request for request in batch if request.is_ready()]
        if not batch:
            return
        try:
            answers = self._answers(batch)
        except BaseException as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for request in batch:  # one of them cannot be answered, and will be told so alone
                self._answer_all([request])
            return
        for request, answer in zip(batch, answers, strict=True):
            request.finish(answer)

    def _answers(self, batch: list[Waiting]) -> list[Answer]:
        pipe, asked = self.pipe, batch[0].asked
        prompt = dict(asked.prompt)
        if asked.system is not None:
            prompt["system_message"] = asked.system
        rows = answer_questions(
            *(pipe.model, pipe.processor, pipe.retriever),
            [request.images for request in batch] if batch[0].images else None,
            [request.asked.question for request in batch],
            k=self.k if asked.k is None else asked.k,
            policy=pipe.policy,
            prompt=prompt,
            streamer=streamer_for(pipe, [request.writing for request in batch]),
            **self._settings(batch),
        )
        return [answer for (answer,) in rows]

    def _settings(self, batch: list[Waiting]) -> dict[str, Any]:
        """How the answers are written, as arguments of `generate`."""
        asked = batch[0].asked
        seed = self.default_seed if asked.seed is None else asked.seed
        settings = asked.generate_kwargs() | {"max_new_tokens": max(one.asked.max_new_tokens for one in batch)}
        if self.is_remote:
            settings = {name: value for name, value in settings.items() if name != "top_k"}
            return settings | {"seed": seed, "stop_strings": list(asked.stop) or None}
        if settings.get("do_sample") and seed is not None:
            torch.manual_seed(seed)
        return settings | {"with_posterior": False}


__all__ = ["Reader"]
