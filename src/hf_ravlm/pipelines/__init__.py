"""Pipelines of transformers that answer with evidence: retriever, processor and reader behind one call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .answer import Answer, Decision
from .answering import answer_questions
from .image_classification import RavlmImageClassificationPipeline
from .image_text_to_text import RavlmImageTextToTextPipeline
from .image_to_text import ImageCaptionPipeline, RavlmImageToTextPipeline
from .model_folder import find_policy, find_retriever
from .object_detection import RavlmObjectDetectionPipeline, boxed_entries
from .offline_reader import offline_reader
from .remote.reader import RemoteReader
from .visual_question_answering import RavlmVisualQuestionAnsweringPipeline


if TYPE_CHECKING:
    from .encoded_knowledge import EncodedKnowledge
    from .policy.answer_policy import AnswerPolicy

# These bring libraries that `import hf_ravlm` leaves alone.
_LAZY = {"AnswerPolicy": "policy.answer_policy", "EncodedKnowledge": "encoded_knowledge"}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Answer",
    "AnswerPolicy",
    "Decision",
    "EncodedKnowledge",
    "ImageCaptionPipeline",
    "RavlmImageClassificationPipeline",
    "RavlmImageTextToTextPipeline",
    "RavlmImageToTextPipeline",
    "RavlmObjectDetectionPipeline",
    "RavlmVisualQuestionAnsweringPipeline",
    "RemoteReader",
    "answer_questions",
    "boxed_entries",
    "find_policy",
    "find_retriever",
    "offline_reader",
]
