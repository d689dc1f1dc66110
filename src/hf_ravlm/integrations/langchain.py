"""Our retriever as one of LangChain's, for its chains and agents: pip install "hf_ravlm[langchain]"."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ..errors import InvalidInputError
from ..images import ImageSource
from ..retrieval import Evidence


try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables.config import run_in_executor
except ImportError as error:
    raise ImportError('Retrieving for LangChain needs: pip install "hf_ravlm[langchain]"') from error


class RavlmLangchainRetriever(BaseRetriever):
    """Finds passages for LangChain by words, by an image, or by both.

    Args:
        retriever: The knowledge base, a `RavlmRetriever` or `MilvusRetriever`.
        k: How many documents a call returns.
        options: Other arguments of `RavlmRetriever.retrieve`, such as `{"where": {"licence": "CC0-1.0"}}`.
        tags, metadata: As in every retriever of LangChain, for tracing.

    `invoke`, `ainvoke`, `batch` and `abatch` take `k`, `image` and the other arguments of `RavlmRetriever.retrieve`
    for one call, too. Each document has the text and the id of its passage; its metadata hold `score` (the cosine),
    `rank`, `source`, `licence`, `url`, `revision`, `title` and the passage's own `metadata`.

    Example:

    ```python
    >>> retriever = RavlmLangchainRetriever(retriever=RavlmRetriever.from_pretrained("birds"))  # doctest: +SKIP
    >>> retriever.invoke("a small loud bird", k=1)[0].metadata["licence"]  # doctest: +SKIP
    'CC0-1.0'
    >>> retriever.invoke("Which bird is it?", image="kite.png")  # doctest: +SKIP

    ```
    """

    retriever: Any
    k: int = 5
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("retriever")
    @classmethod
    def validate_retriever(cls, retriever: Any) -> Any:
        """Refuses what is no retriever of ours; pydantic reports it."""
        if not callable(getattr(retriever, "retrieve", None)):
            raise InvalidInputError(
                f"retriever is a {type(retriever).__name__} without the method `retrieve`. Pass a RavlmRetriever."
            )
        return retriever

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        image: ImageSource | None = None,
        **options: Any,
    ) -> list[Document]:
        found = self.retriever.retrieve(
            None if image is None else [image], [query], k=self.k if k is None else k, **{**self.options, **options}
        )
        return [document_of(evidence) for evidence in found[0]]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        manager = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=manager, **options)


def document_of(evidence: Evidence) -> Document:
    """A passage that was found as a document of LangChain; a passage without text has empty content.

    >>> from hf_ravlm import Evidence
    >>> document = document_of(Evidence("wren", "The wren is small.", licence="CC0-1.0", score=0.5))
    >>> document.id, document.page_content, document.metadata["licence"], document.metadata["score"]
    ('wren', 'The wren is small.', 'CC0-1.0', 0.5)
    """
    names = ("score", "ranking_score", "rank", "source", "licence", "url", "revision", "title", "metadata")
    return Document(
        id=evidence.id, page_content=evidence.text or "", metadata={name: getattr(evidence, name) for name in names}
    )


__all__ = ["RavlmLangchainRetriever", "document_of"]
