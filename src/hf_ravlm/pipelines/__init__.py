"""Pipelines: the retriever and the reader joined behind the calls that users of transformers know."""

from __future__ import annotations

from .answering import Answer, answer_questions
from .image_text_to_text import RavlmImageTextToTextPipeline
from .image_to_text import ImageCaptionPipeline, RavlmImageToTextPipeline, find_retriever


__all__ = [
    "Answer",
    "ImageCaptionPipeline",
    "RavlmImageTextToTextPipeline",
    "RavlmImageToTextPipeline",
    "answer_questions",
    "find_retriever",
]
