"""The network and its processor: tensors only, no retriever, no index, no trainer."""

from __future__ import annotations

from .configuration_ravlm import RavlmConfig
from .from_backbones import from_backbones, from_encoder
from .heads.image_classification import RavlmForImageClassification
from .heads.matching import RavlmForImageTextRetrieval, RavlmForPreTraining
from .heads.object_detection import RavlmForObjectDetection
from .heads.visual_question_answering import RavlmForVisualQuestionAnswering
from .modeling_ravlm import RavlmModel, RavlmPreTrainedModel
from .processing_ravlm import RavlmProcessor
from .reader.conflict_aware import ConflictAwareLogitsProcessor
from .reader.reader import RavlmForConditionalGeneration


__all__ = [
    "ConflictAwareLogitsProcessor",
    "RavlmConfig",
    "RavlmForConditionalGeneration",
    "RavlmForImageClassification",
    "RavlmForImageTextRetrieval",
    "RavlmForObjectDetection",
    "RavlmForPreTraining",
    "RavlmForVisualQuestionAnswering",
    "RavlmModel",
    "RavlmPreTrainedModel",
    "RavlmProcessor",
    "from_backbones",
    "from_encoder",
]
