"""The network and its processor. Knows no retriever, no index and no trainer."""

from __future__ import annotations

from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .configuration_ravlm import RavlmConfig
from .conflict_aware_ravlm import ConflictAwareLogitsProcessor
from .efficientnet_lite import EfficientNetLiteModel
from .from_backbones_ravlm import from_backbones
from .heads_ravlm import RavlmForImageTextRetrieval, RavlmForPreTraining
from .modeling_ravlm import RavlmModel, RavlmPreTrainedModel
from .processing_ravlm import RavlmProcessor
from .reader_ravlm import RavlmForConditionalGeneration


__all__ = [
    "ConflictAwareLogitsProcessor",
    "EfficientNetLiteConfig",
    "EfficientNetLiteModel",
    "RavlmConfig",
    "RavlmForConditionalGeneration",
    "RavlmForImageTextRetrieval",
    "RavlmForPreTraining",
    "RavlmModel",
    "RavlmPreTrainedModel",
    "RavlmProcessor",
    "from_backbones",
]
