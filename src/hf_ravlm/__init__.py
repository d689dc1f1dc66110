"""Retrieval-augmented vision-language models for the Hugging Face stack.

`import hf_ravlm` registers the models with the Auto classes and serves `pipeline("image-to-text")`; it brings torch,
transformers and `hf_ravlm.model`. The retriever (FAISS, pyarrow) and the trainers come when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    HubUnavailableError,
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseLockedError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
    RavlmError,
    UnsafeInputError,
)
from .hub.lora_targets import register_lora_targets
from .hub.registration import register_auto_classes, register_pipelines
from .model import (
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmModel,
    RavlmPreTrainedModel,
    RavlmProcessor,
    from_backbones,
)


if TYPE_CHECKING:
    from .retrieval import (
        Chunking,
        Evidence,
        KnowledgeBase,
        Passage,
        RavlmEncoder,
        RavlmRetriever,
        embed_corpus,
        load_encoder,
    )


__version__ = "0.1.0"

_LAZY = {
    "Chunking": "retrieval",
    "Evidence": "retrieval",
    "KnowledgeBase": "retrieval",
    "Passage": "retrieval",
    "RavlmEncoder": "retrieval",
    "RavlmRetriever": "retrieval",
    "embed_corpus": "retrieval",
    "load_encoder": "retrieval",
}

register_auto_classes()
register_pipelines()
register_lora_targets()


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "Chunking",
    "Evidence",
    "HubUnavailableError",
    "InvalidInputError",
    "KnowledgeBase",
    "KnowledgeBaseCorruptError",
    "KnowledgeBaseLockedError",
    "KnowledgeBaseMismatchError",
    "KnowledgeBaseNotFoundError",
    "Passage",
    "RavlmConfig",
    "RavlmEncoder",
    "RavlmError",
    "RavlmForConditionalGeneration",
    "RavlmModel",
    "RavlmPreTrainedModel",
    "RavlmProcessor",
    "RavlmRetriever",
    "UnsafeInputError",
    "embed_corpus",
    "from_backbones",
    "load_encoder",
]
