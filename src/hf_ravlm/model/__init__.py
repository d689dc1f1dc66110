"""The network and its processor. Knows no retriever, no index and no trainer."""

from __future__ import annotations

from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .configuration_ravlm import RavlmConfig
from .efficientnet_lite import EfficientNetLiteModel
from .from_backbones_ravlm import from_backbones
from .modeling_ravlm import RavlmModel, RavlmPreTrainedModel
from .processing_ravlm import RavlmProcessor
from .reader_ravlm import RavlmForConditionalGeneration


__all__ = [
    "EfficientNetLiteConfig",
    "EfficientNetLiteModel",
    "RavlmConfig",
    "RavlmForConditionalGeneration",
    "RavlmModel",
    "RavlmPreTrainedModel",
    "RavlmProcessor",
    "from_backbones",
]
