"""The OpenAI-compatible server of transformers, answering with evidence: pip install "hf_ravlm[serve]".

`transformers serve FOLDER --trust-remote-code` serves our readers, too, but closed-book: that server has a processor
and a model, and no retriever. Here its processor retrieves from the model's folder before it writes the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError, RavlmError
from ..model import RavlmForConditionalGeneration, RavlmProcessor
from ..pipelines.answering import was_read
from ..pipelines.citations import check_citations
from ..pipelines.image_text_to_text import question_of_chat
from ..pipelines.model_folder import find_retriever


if TYPE_CHECKING:
    from transformers.feature_extraction_utils import BatchFeature

    from ..retrieval import RavlmRetriever

_MAX_PASSAGES = 100  # that a request may ask for
# Settings of the prompt that a request may say; a template of its own is none of them.
_OF_REQUESTS = ("number_passages", "passage_titles", "passage_order", "drop_duplicates", "enable_thinking", "cite")
_PASSAGE_FIELDS = ("id", "text", "score", "rank", "source", "licence", "url", "title")  # in a reply


def serve(model: str, k: int | None = None, **settings: Any) -> Any:
    """Serves a reader with the knowledge base of its folder; returns when the server is stopped.

    Of a conversation, the last user message is the question and the last image goes with it. A request may say how
    many passages it wants, 0 for none: `{"chat_template_kwargs": {"k": 0}}`, and there, too, settings of the prompt,
    such as `"cite": true`, for which the message has `citations`, each checked. Images come in the request, as `data:`
    URLs; nothing is fetched. The message of the reply has a field `evidence`, a list of the passages that were read,
    best first, and `unread`, those that had no room; a stream has none.

    Args:
        model: A folder or Hub id of a reader with its processor; clients name it in `model`.
        k: Passages per question; `None` for as many as the model's config says.
        **settings: Of the server: `host` (`"localhost"`), `port` (8000), `device`, `dtype`, `default_seed`, ...;
            `non_blocking=True` returns a running server, which `kill_server()` stops.

    Raises:
        ImportError: If the server's own requirements are missing.

    Example:

    ```python
    >>> server = serve("examples/flags/checkpoint", port=8000, non_blocking=True)  # doctest: +SKIP
    >>> client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none")  # doctest: +SKIP
    >>> client.chat.completions.create(model="examples/flags/checkpoint", messages=messages)  # doctest: +SKIP

    ```
    """
    from transformers.utils import import_utils

    if not import_utils.is_serve_available():
        raise ImportError('Serving needs: pip install "hf_ravlm[serve]"')
    from transformers.cli.serve import Serve

    with _server_with_evidence(k):
        return Serve(model, **{"host": "localhost", "port": 8000, "device": "cpu", **settings})


def with_evidence(
    processor: RavlmProcessor, model: RavlmForConditionalGeneration, retriever: RavlmRetriever | None, k: int | None
) -> RavlmProcessor:
    """Gives this one processor a chat template that retrieves; returns it.

    Args:
        processor: Of the model.
        model: The reader.
        retriever: Its knowledge base; `None` answers closed-book.
        k: Passages per question; `None` for as many as the model's config says.
    """
    default = model.config.num_passages if k is None else k

    def apply_chat_template(conversation: list[dict[str, Any]], k: int | None = None, **given: Any) -> BatchFeature:
        from fastapi import HTTPException

        prompt = {name: given[name] for name in _OF_REQUESTS if name in given}
        try:
            return _inputs_with_evidence(processor, retriever, conversation, default if k is None else k, prompt)
        except RavlmError as error:
            raise HTTPException(status_code=400, detail=str(error)) from error

    processor.apply_chat_template = apply_chat_template  # type: ignore[assignment,method-assign]  # of this one alone
    return processor


def _inputs_with_evidence(
    processor: RavlmProcessor,
    retriever: RavlmRetriever | None,
    conversation: list[dict[str, Any]],
    k: int,
    prompt: dict[str, Any],
) -> BatchFeature:
    if not isinstance(k, int) or not 0 <= k <= _MAX_PASSAGES:
        raise InvalidInputError(f"k={k!r}: expected 0 (closed-book) to {_MAX_PASSAGES} passages")
    image, question = question_of_chat(conversation)
    if image is not None and not str(image).startswith("data:"):
        # A client must not choose what this machine reads or fetches.
        raise InvalidInputError("an image came as an address; send the image itself: data:image/png;base64,...")
    images = None if image is None else [image]
    evidence = retriever.retrieve(images, [question], k=k) if retriever is not None and k > 0 else [[]]
    inputs = processor(images=images, text=[question], evidence=evidence, prompt=prompt)
    read = was_read(inputs, evidence)[0]
    inputs.found = [passage for passage, kept in zip(evidence[0], read, strict=True) if kept]
    inputs.unread = [passage for passage, kept in zip(evidence[0], read, strict=True) if not kept]
    inputs.asked = question if processor.prompt_settings.changed(prompt).cite else None  # to check citations by
    return inputs


def _fields(passages: list[Any]) -> list[dict[str, Any]]:
    return [{name: getattr(passage, name) for name in _PASSAGE_FIELDS} for passage in passages]


@contextmanager
def _server_with_evidence(k: int | None) -> Iterator[None]:
    """Makes servers that are created in this block answer with evidence."""
    from fastapi.responses import JSONResponse
    from transformers.cli.serving import chat_completion, model_manager

    class EvidenceModelManager(model_manager.ModelManager):
        def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            model, processor = super().load_model_and_processor(*args, **kwargs)
            if isinstance(processor, RavlmProcessor) and "apply_chat_template" not in vars(processor):
                with_evidence(processor, model, find_retriever(model, processor), k)
            return model, processor

    class EvidenceChatHandler(chat_completion.ChatCompletionHandler):
        async def _non_streaming(
            self, request_id: str, model: Any, processor: Any, model_id: str, inputs: Any, *args: Any, **kwargs: Any
        ) -> JSONResponse:
            response = await super()._non_streaming(request_id, model, processor, model_id, inputs, *args, **kwargs)
            reply = json.loads(response.body)
            found = getattr(inputs, "found", [])
            for choice in reply["choices"]:
                message = choice["message"]
                message["evidence"] = _fields(found)
                message["unread"] = _fields(getattr(inputs, "unread", []))
                if (question := getattr(inputs, "asked", None)) is not None:
                    message["citations"] = check_citations(message.get("content") or "", found, question)
            return JSONResponse(reply)

    plain = model_manager.ModelManager, chat_completion.ChatCompletionHandler
    model_manager.ModelManager, chat_completion.ChatCompletionHandler = EvidenceModelManager, EvidenceChatHandler
    try:
        yield
    finally:
        model_manager.ModelManager, chat_completion.ChatCompletionHandler = plain


__all__ = ["serve", "with_evidence"]
