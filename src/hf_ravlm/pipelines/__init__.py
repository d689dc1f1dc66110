"""Pipelines: the retriever and the reader joined behind the calls that users of transformers know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .answering import Answer, answer_questions
from .image_text_to_text import RavlmImageTextToTextPipeline
from .image_to_text import ImageCaptionPipeline, RavlmImageToTextPipeline, find_retriever


if TYPE_CHECKING:
    from .encoded_knowledge import EncodedKnowledge


def __getattr__(name: str):
    if name == "EncodedKnowledge":  # brings the retriever's libraries, which `import hf_ravlm` leaves alone
        from .encoded_knowledge import EncodedKnowledge

        return EncodedKnowledge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Answer",
    "EncodedKnowledge",
    "ImageCaptionPipeline",
    "RavlmImageTextToTextPipeline",
    "RavlmImageToTextPipeline",
    "answer_questions",
    "find_retriever",
]
