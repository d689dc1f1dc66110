"""What `import hf_ravlm` tells transformers: our classes to the Auto classes, our tasks to the pipelines."""

from __future__ import annotations

import transformers.pipelines as transformers_pipelines
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from ..model import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmModel,
    RavlmProcessor,
)
from ..pipelines import RavlmImageTextToTextPipeline, RavlmImageToTextPipeline


TASK = "image-to-text"


def register_auto_classes() -> None:
    """Makes `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText` and `AutoProcessor` load our folders."""
    AutoConfig.register(RavlmConfig.model_type, RavlmConfig, exist_ok=True)
    AutoModel.register(RavlmConfig, RavlmModel, exist_ok=True)
    AutoModelForImageTextToText.register(RavlmConfig, RavlmForConditionalGeneration, exist_ok=True)
    AutoModelForMultimodalLM.register(RavlmConfig, RavlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(RavlmConfig, RavlmProcessor, exist_ok=True)
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)


def register_pipelines() -> None:
    """Serves `pipeline("image-to-text")` again and gives `pipeline("image-text-to-text")` evidence for our models.

    transformers 5 rewrites the first name before it looks into its registry, so the rewriting function is wrapped for
    this one name; where a later version has no such function, the registration alone is enough. Both classes hand
    models that are not ours to a class that knows nothing of us. Twice is harmless.
    """
    tasks = transformers_pipelines.PIPELINE_REGISTRY.supported_tasks
    if TASK not in tasks:
        transformers_pipelines.PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=RavlmImageToTextPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
        )
        del RavlmImageToTextPipeline._registered_impl  # else saving a pipeline would copy its module
    if "image-text-to-text" in tasks:
        tasks["image-text-to-text"]["impl"] = RavlmImageTextToTextPipeline
    original = getattr(transformers_pipelines, "_resolve_deprecated_task", None)
    if original is None or getattr(original, "serves_image_to_text", False):
        return

    def resolve(task: str) -> str:
        return task if task == TASK else original(task)

    resolve.serves_image_to_text = True
    transformers_pipelines._resolve_deprecated_task = resolve
