"""Retrieval-augmented vision-language models for the Hugging Face stack.

`import hf_ravlm` registers the models with the Auto classes and serves `pipeline("image-to-text")`; it brings torch,
transformers and `hf_ravlm.model`. The retriever (FAISS, pyarrow) and the trainers come when they are first used.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    HubUnavailableError,
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseIncompleteError,
    KnowledgeBaseLockedError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
    RavlmError,
    RemoteServerError,
    StorageError,
    UnsafeInputError,
)


if TYPE_CHECKING:
    from .model import (
        ConflictAwareLogitsProcessor,
        RavlmConfig,
        RavlmForConditionalGeneration,
        RavlmForImageClassification,
        RavlmForImageTextRetrieval,
        RavlmForObjectDetection,
        RavlmForPreTraining,
        RavlmForVisualQuestionAnswering,
        RavlmModel,
        RavlmPreTrainedModel,
        RavlmProcessor,
        from_backbones,
        from_encoder,
    )
    from .pipelines import RemoteReader, offline_reader
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
        ClassificationCollator,
        ClosedAnswerCollator,
        DetectionCollator,
        EvidenceMix,
        JointSettings,
        MemoryTraining,
        MineNegativesCallback,
        RavlmJointTrainer,
        RavlmPreTrainer,
        RavlmPreTrainingArguments,
        RavlmTrainer,
        RetrievalCollator,
        RowsWithNeighbors,
        mine_hard_negatives,
    )


__version__ = "0.1.0"

# What comes from each folder when it is first used.
_LAZY = {
    "model": "ConflictAwareLogitsProcessor RavlmConfig RavlmForConditionalGeneration RavlmForImageClassification "
    "RavlmForImageTextRetrieval RavlmForObjectDetection RavlmForPreTraining RavlmForVisualQuestionAnswering "
    "RavlmModel RavlmPreTrainedModel RavlmProcessor from_backbones from_encoder",
    "pipelines": "RemoteReader offline_reader",
    "retrieval": "Chunking Evidence KnowledgeBase Passage RavlmEncoder RavlmRetriever embed_corpus load_encoder",
    "training": "AnswerCollator ClassificationCollator ClosedAnswerCollator DetectionCollator EvidenceMix "
    "JointSettings MemoryTraining MineNegativesCallback RavlmJointTrainer RavlmPreTrainer RavlmPreTrainingArguments "
    "RavlmTrainer RetrievalCollator RowsWithNeighbors mine_hard_negatives",
}
_ROOM_OF = {name: room for room, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str):
    if name in _ROOM_OF:
        return getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF})


def register() -> None:
    """Tells transformers and peft of our models and pipelines; `import hf_ravlm` does it. Twice is harmless."""
    from .hub.lora_targets import register_lora_targets
    from .hub.registration import (
        register_addresses,
        register_auto_classes,
        register_loader,
        register_pipelines,
        register_with_server,
    )

    register_addresses()
    register_loader()
    register_auto_classes()
    register_pipelines()
    register_with_server()
    register_lora_targets()


def _is_command_line() -> bool:
    """Whether this process was started as `hf-ravlm ...` or `python -m hf_ravlm ...`; not so its children."""
    program, started = sys.argv[0], sys.orig_argv
    if program == "-m":  # so it reads while Python looks for the module
        return ("-m", "hf_ravlm") in zip(started, started[1:], strict=False)
    return os.path.basename(program).removesuffix(".exe") == "hf-ravlm" and program in started


# `hf-ravlm` does it itself when a command runs: --help, --version and mistakes are answered without torch.
if not _is_command_line():
    register()


__all__ = [
    "AnswerCollator",
    "Chunking",
    "ClassificationCollator",
    "ClosedAnswerCollator",
    "ConflictAwareLogitsProcessor",
    "DetectionCollator",
    "Evidence",
    "EvidenceMix",
    "HubUnavailableError",
    "InvalidInputError",
    "JointSettings",
    "KnowledgeBase",
    "KnowledgeBaseCorruptError",
    "KnowledgeBaseIncompleteError",
    "KnowledgeBaseLockedError",
    "KnowledgeBaseMismatchError",
    "KnowledgeBaseNotFoundError",
    "MemoryTraining",
    "MineNegativesCallback",
    "Passage",
    "RavlmConfig",
    "RavlmEncoder",
    "RavlmError",
    "RavlmForConditionalGeneration",
    "RavlmForImageClassification",
    "RavlmForImageTextRetrieval",
    "RavlmForObjectDetection",
    "RavlmForPreTraining",
    "RavlmForVisualQuestionAnswering",
    "RavlmJointTrainer",
    "RavlmModel",
    "RavlmPreTrainedModel",
    "RavlmPreTrainer",
    "RavlmPreTrainingArguments",
    "RavlmProcessor",
    "RavlmRetriever",
    "RavlmTrainer",
    "RemoteReader",
    "RemoteServerError",
    "RetrievalCollator",
    "RowsWithNeighbors",
    "StorageError",
    "UnsafeInputError",
    "embed_corpus",
    "from_backbones",
    "from_encoder",
    "load_encoder",
    "mine_hard_negatives",
    "offline_reader",
]
