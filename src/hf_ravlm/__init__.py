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
from .hub.registration import register_auto_classes, register_pipelines, register_with_server
from .model import (
    ConflictAwareLogitsProcessor,
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmForImageTextRetrieval,
    RavlmForPreTraining,
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
    from .training import (
        AnswerCollator,
        EvidenceMix,
        JointSettings,
        MineNegativesCallback,
        RavlmJointTrainer,
        RavlmPreTrainer,
        RavlmPreTrainingArguments,
        RavlmTrainer,
        RetrievalCollator,
        mine_hard_negatives,
    )


__version__ = "0.1.0"

_LAZY = {  # name: the room that it comes from
    "AnswerCollator": "training",
    "Chunking": "retrieval",
    "Evidence": "retrieval",
    "EvidenceMix": "training",
    "JointSettings": "training",
    "KnowledgeBase": "retrieval",
    "MineNegativesCallback": "training",
    "Passage": "retrieval",
    "RavlmEncoder": "retrieval",
    "RavlmJointTrainer": "training",
    "RavlmPreTrainer": "training",
    "RavlmPreTrainingArguments": "training",
    "RavlmRetriever": "retrieval",
    "RavlmTrainer": "training",
    "RetrievalCollator": "training",
    "embed_corpus": "retrieval",
    "load_encoder": "retrieval",
    "mine_hard_negatives": "training",
}

register_auto_classes()
register_pipelines()
register_with_server()
register_lora_targets()


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "AnswerCollator",
    "Chunking",
    "ConflictAwareLogitsProcessor",
    "Evidence",
    "EvidenceMix",
    "HubUnavailableError",
    "InvalidInputError",
    "JointSettings",
    "KnowledgeBase",
    "KnowledgeBaseCorruptError",
    "KnowledgeBaseLockedError",
    "KnowledgeBaseMismatchError",
    "KnowledgeBaseNotFoundError",
    "MineNegativesCallback",
    "Passage",
    "RavlmConfig",
    "RavlmEncoder",
    "RavlmError",
    "RavlmForConditionalGeneration",
    "RavlmForImageTextRetrieval",
    "RavlmForPreTraining",
    "RavlmJointTrainer",
    "RavlmModel",
    "RavlmPreTrainedModel",
    "RavlmPreTrainer",
    "RavlmPreTrainingArguments",
    "RavlmProcessor",
    "RavlmRetriever",
    "RavlmTrainer",
    "RetrievalCollator",
    "UnsafeInputError",
    "embed_corpus",
    "from_backbones",
    "load_encoder",
    "mine_hard_negatives",
]
