"""An encoder of texts behind a server: `/v1/embeddings`, as vLLM, TEI, Ollama, llama.cpp and OpenAI serve it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...errors import InvalidInputError, RemoteServerError
from ...servers import RefusedError, Server
from ..unit_vectors import unit_or_zero
from .encoders import Images, Texts, require_batch_size, require_texts


EMBEDDINGS = "/embeddings"


class RemoteEncoder:
    """Encodes texts by a model that a server has; images are ignored where there is a text.

    A knowledge base does not name the address, for a folder must not make the machine that opens it ask a server: give
    the encoder again. That the model is the same is seen by its name and by the vectors of a few passages.

    Args:
        address: Such as `"http://localhost:8000/v1"`; a key is taken from `HF_RAVLM_API_KEY`.
        model: Which of its models encodes; may be left out where it lists one alone.
        query_prompt, passage_prompt: Put before every query or passage.
        batch_size: Texts in a request.
        parallel: Requests at once.
        timeout, retries: Of a request, see `Server`.

    Raises:
        InvalidInputError: If an argument is out of range, or the server lists no model or several and none is named.
        RemoteServerError: If it cannot be reached.
    """

    modalities = ("text",)
    reference = None

    def __init__(
        self,
        address: str,
        model: str | None = None,
        *,
        query_prompt: str = "",
        passage_prompt: str = "",
        batch_size: int = 64,
        parallel: int = 4,
        timeout: float = 120.0,
        retries: int = 3,
    ) -> None:
        require_batch_size(batch_size)
        require_batch_size(parallel)
        self.server = Server(address, timeout, retries)
        self.model = self._only_model() if model is None else model
        self.query_prompt, self.passage_prompt = query_prompt, passage_prompt
        self.batch_size, self.parallel = batch_size, parallel
        self.folder_name = self.model  # for messages

    @property
    def name(self) -> str:
        """The model, for messages."""
        return f"{self.model} behind a server"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's name and the prompts; the server does not tell its weights."""
        said = json.dumps([EMBEDDINGS, self.model, self.query_prompt, self.passage_prompt])
        return hashlib.sha256(said.encode()).hexdigest()

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of queries, which need texts."""
        return self._encode([self.query_prompt + text for text in require_texts(images, texts)])

    def encode_passages(self, texts: Texts, images: Images | None = None) -> np.ndarray:
        """Returns unit vectors (n, D) of passages, which need texts."""
        return self._encode([self.passage_prompt + text for text in require_texts(images, texts)])

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, 0), np.float32)
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        if len(batches) == 1:
            return self._vectors(batches[0])
        with ThreadPoolExecutor(min(self.parallel, len(batches)), "hf_ravlm-remote-encoder") as threads:
            coming = [threads.submit(self._vectors, batch) for batch in batches]
            try:
                found = [future.result() for future in coming]
            except BaseException:
                for future in coming:
                    future.cancel()
                raise
        widths = sorted({vectors.shape[1] for vectors in found})
        if len(widths) > 1:
            raise RemoteServerError(f"{self.server.address}: it gave vectors of different widths, {widths}")
        return np.concatenate(found)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        try:
            reply = self.server.ask(EMBEDDINGS, body)
        except RefusedError as error:
            raise RefusedError(f"{error} (the model is {self.model!r}, {len(texts)} texts)", error.status) from error
        rows = reply.get("data")
        try:
            ordered = sorted(rows, key=lambda row: row["index"])  # type: ignore[arg-type]
            vectors = np.array([row["embedding"] for row in ordered], dtype=np.float32)
            places = [row["index"] for row in ordered]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise RemoteServerError(f"{self.server.address}: it gave no vectors ({type(error).__name__})") from error
        if vectors.ndim != 2 or places != list(range(len(texts))) or not vectors.shape[1]:
            raise RemoteServerError(
                f"{self.server.address}: it gave vectors of the shape {vectors.shape} for {len(texts)} texts"
            )
        return unit_or_zero(vectors)

    def _only_model(self) -> str:
        found = self.server.models()
        if len(found) != 1:
            choices = ", ".join(sorted(found)[:20]) or "none"
            raise InvalidInputError(
                f"{self.server.address}: which model encodes? It lists {choices}. Name one: {self.server.address}#NAME"
            )
        return found[0]


def load_remote_encoder(name: str, **prompts: Any) -> RemoteEncoder:
    """The encoder of an address, behind which a `#` and the name of its model may stand.

    Raises:
        InvalidInputError, RemoteServerError: As `RemoteEncoder`.

    >>> load_remote_encoder("http://localhost:8000/v1#BAAI/bge-m3").name
    'BAAI/bge-m3 behind a server'
    """
    address, _, model = name.partition("#")
    given = {side: prompt for side, prompt in prompts.items() if prompt is not None}
    return RemoteEncoder(address, model or None, **given)
