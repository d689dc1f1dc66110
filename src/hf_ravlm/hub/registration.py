"""Registers our classes with the Auto classes and our tasks with the pipelines of transformers."""

from __future__ import annotations

from contextlib import nullcontext

import transformers.models.auto.modeling_auto as known_models
import transformers.pipelines as transformers_pipelines
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    VisionEncoderDecoderConfig,
)

from ..errors import RavlmError
from ..images import is_address
from ..model import (
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmForImageClassification,
    RavlmForObjectDetection,
    RavlmForPreTraining,
    RavlmForVisualQuestionAnswering,
    RavlmModel,
    RavlmProcessor,
)
from ..model.loading import loading_errors
from ..pipelines import (
    RavlmImageClassificationPipeline,
    RavlmImageTextToTextPipeline,
    RavlmImageToTextPipeline,
    RavlmObjectDetectionPipeline,
    RavlmVisualQuestionAnsweringPipeline,
)
from ..pipelines.parts import READERS, DetectorLoader, ReaderLoader
from ..pipelines.remote.reader import RemoteReaderConfig
from ..saving.safe_paths import at_home


# Tasks that transformers 5 removed.
SERVED_AGAIN = {
    "image-to-text": RavlmImageToTextPipeline,
    "visual-question-answering": RavlmVisualQuestionAnsweringPipeline,
}
# Tasks of transformers in which our models bring evidence, and others are served as before.
WITH_EVIDENCE = {
    "image-classification": RavlmImageClassificationPipeline,
    "image-text-to-text": RavlmImageTextToTextPipeline,
    "object-detection": RavlmObjectDetectionPipeline,
}
ALIASES = {"vqa": "visual-question-answering"}


def register_auto_classes() -> None:
    """Makes the Auto classes load our folders: config, processor, dual encoder, reader, and heads."""
    AutoConfig.register(RavlmConfig.model_type, RavlmConfig, exist_ok=True)
    AutoModel.register(RavlmConfig, RavlmModel, exist_ok=True)
    AutoModelForImageClassification.register(RavlmConfig, RavlmForImageClassification, exist_ok=True)
    AutoModelForImageTextToText.register(RavlmConfig, RavlmForConditionalGeneration, exist_ok=True)
    AutoModelForMultimodalLM.register(RavlmConfig, RavlmForConditionalGeneration, exist_ok=True)
    AutoModelForObjectDetection.register(RavlmConfig, RavlmForObjectDetection, exist_ok=True)
    AutoModelForPreTraining.register(RavlmConfig, RavlmForPreTraining, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(RavlmConfig, RavlmForVisualQuestionAnswering, exist_ok=True)
    AutoProcessor.register(RavlmConfig, RavlmProcessor, exist_ok=True)


def register_with_server() -> None:
    """Lets `transformers serve` load our readers: it looks in a table of names that `register` does not fill."""
    names = getattr(known_models, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", None)
    if isinstance(names, dict):
        names.setdefault(RavlmConfig.model_type, RavlmForConditionalGeneration.__name__)


def register_pipelines() -> None:
    """Serves the tasks of `SERVED_AGAIN`, and gives those of `WITH_EVIDENCE` evidence for our models.

    transformers 5 rewrites or refuses their names before it looks into its registry, so the function that does so is
    wrapped for these names; where a later version has no such function, the registration alone is enough. Twice is
    harmless.
    """
    registry = transformers_pipelines.PIPELINE_REGISTRY
    tasks = registry.supported_tasks
    for task, served in SERVED_AGAIN.items():
        if task not in tasks:
            registry.register_pipeline(task, pipeline_class=served, pt_model=ReaderLoader, type="multimodal")
            del served._registered_impl  # else saving a pipeline would copy its module
    for alias, task in ALIASES.items():
        registry.task_aliases.setdefault(alias, task)
    for task, pipeline_class in WITH_EVIDENCE.items():
        if task in tasks:
            tasks[task]["impl"] = pipeline_class
    if "object-detection" in tasks:
        tasks["object-detection"]["pt"] = (DetectorLoader,)
    original = getattr(transformers_pipelines, "_resolve_deprecated_task", None)
    if original is None or getattr(original, "serves_removed_tasks", False):
        return

    def resolve(task: str) -> str:
        return ALIASES.get(task, task) if task in SERVED_AGAIN or task in ALIASES else original(task)

    resolve.serves_removed_tasks = True
    transformers_pipelines._resolve_deprecated_task = resolve


def register_loader() -> None:
    """Lets `pipeline` note where a reader came from, and say why one is refused.

    Its own loader goes on from any error to the class that the checkpoint names, and would give a reader without what
    we note of it, or twenty lines for one.
    """
    original = getattr(transformers_pipelines, "load_model", None)
    if original is None or getattr(original, "keeps_refusals", False):
        return

    def load(model, config, model_classes=None, task=None, **kwargs):
        model, is_ours = at_home(model), model_classes == (ReaderLoader,)
        if isinstance(model, str) and (is_ours or (task == "image-text-to-text" and type(config) in READERS)):
            try:
                return ReaderLoader.from_pretrained(model, **kwargs)
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                captions = isinstance(config, VisionEncoderDecoderConfig)  # which is no reader
                if is_ours and isinstance(error, RavlmError) and not captions:
                    raise  # other errors are of what is no reader: perhaps another class takes it
        return original(model, config, model_classes, task, **kwargs)

    load.keeps_refusals = True
    transformers_pipelines.load_model = load


class ConfigByAddress(AutoConfig):
    """`AutoConfig` for the function `pipeline`: a reader that is named by the address of its server is on no Hub.

    In a folder, `~` is the home folder, as in every path of ours.
    """

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        if is_address(name):
            return RemoteReaderConfig()
        ours = kwargs.get("_from_pipeline") in SERVED_AGAIN
        with loading_errors("model", name) if ours else nullcontext():
            return AutoConfig.from_pretrained(at_home(name), **kwargs)


def register_addresses() -> None:
    """Lets `pipeline(model="http://localhost:8000/v1")` open a reader behind a server.

    The function looks for a config and for adapters of whatever text it gets as a model before it knows what for.
    """
    find_adapters = getattr(transformers_pipelines, "find_adapter_config_file", None)
    if find_adapters is None or getattr(find_adapters, "knows_addresses", False):
        return

    def find(model: str, *args, **kwargs):
        try:
            return None if is_address(model) else find_adapters(at_home(model), *args, **kwargs)
        except OSError:  # the Hub does not give it: who asks for its config next says so
            return None

    find.knows_addresses = True
    transformers_pipelines.find_adapter_config_file = find
    transformers_pipelines.AutoConfig = ConfigByAddress
