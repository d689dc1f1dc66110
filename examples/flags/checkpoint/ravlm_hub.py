"""The code of this model: pip install hf_ravlm"""

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration, RavlmForImageClassification, RavlmForObjectDetection, RavlmForPreTraining, RavlmForVisualQuestionAnswering, RavlmModel, RavlmProcessor  # noqa: F401
