"""The network and its processor. Knows no retriever, no index and no trainer."""

from __future__ import annotations

from .configuration_ravlm import RavlmConfig
from .modeling_ravlm import RavlmModel, RavlmPreTrainedModel
from .processing_ravlm import RavlmProcessor
from .reader_ravlm import RavlmForConditionalGeneration


__all__ = ["RavlmConfig", "RavlmForConditionalGeneration", "RavlmModel", "RavlmPreTrainedModel", "RavlmProcessor"]
