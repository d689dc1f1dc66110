"""`pipeline("image-to-text")`: a picture in, words with their evidence out.

transformers 5 dropped this task and redirects its name. `import hf_ravlm` serves it again (`hub/registration.py`): our
models through `RavlmImageToTextPipeline`, any other image-text-to-text checkpoint through `ImageCaptionPipeline`,
which does what the old pipeline did.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor, GenerationConfig, Pipeline
from transformers.image_utils import load_image

from ..errors import InvalidInputError
from ..model import RavlmConfig, RavlmProcessor
from ..model.loading import origin_of, without_adapters
from ..saving.commit import hub_failure
from .answering import answer_questions


if TYPE_CHECKING:
    from .policy.answer_policy import AnswerPolicy

logger = logging.getLogger(__name__)

KNOWLEDGE_FOLDER = "knowledge_base"
_ANSWER_KEYS = ("k", "retriever", "with_posterior", "encoded_knowledge", "policy")


class RavlmPipelineMixin:
    """What our pipelines share: the folder's own processor, knowledge base and policy, and saving all of it."""

    def __init__(self, model, processor=None, retriever=None, policy=None, **kwargs):
        processor = processor if processor is not None else _find_processor(model)
        super().__init__(model=model, processor=processor, **kwargs)
        self.retriever = retriever if retriever is not None else find_retriever(model, processor)
        self.policy = policy if policy is not None else find_policy(model)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> None:
        """Publishes model, processor, knowledge base and policy to one repository, in a commit each."""
        for part in (self.retriever, self.model, self.processor, self.policy):  # that which may be refused first
            if part is not None:
                part.push_to_hub(repo_id, private=private, token=token, revision=revision)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model, processor, knowledge base and policy to one folder; `from_pretrained` of each reads it."""
        if kwargs.get("push_to_hub"):
            raise InvalidInputError(
                "push_to_hub=True: a pipeline is saved here and published by `pipeline.push_to_hub(repo_id)`, which "
                "takes the knowledge base along."
            )
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if self.retriever is not None:
            self.retriever.save_pretrained(save_directory)
        if self.policy is not None:
            self.policy.save_pretrained(save_directory)


class RavlmImageToTextPipeline(RavlmPipelineMixin, Pipeline):
    """
    Describes pictures, or answers a question about them, with evidence from a knowledge base.

    `pipeline("image-to-text", model=FOLDER_OR_MODEL)` after `import hf_ravlm`. The knowledge base is the folder's own,
    or `retriever=`. Calls take a picture (path, URL, PIL image, `{"image": ..., "question": ...}`), a list, a
    generator or a dataset, and:

    - **question** (`str`, *optional*) -- what to ask; without it `config.default_prompt` asks for a description.
    - **k** (`int`, *optional*) -- passages to read; 0 answers closed-book.
    - **retriever** (`RavlmRetriever`, *optional*) -- another knowledge base for this call.
    - **with_posterior** (`bool`, *optional*, defaults to `True`) -- whether to attribute the answer to passages.
    - **encoded_knowledge** (`EncodedKnowledge`, *optional*) -- states of the passages, read once and kept.
    - **policy** (`AnswerPolicy`, *optional*) -- when to search, what to read, when to abstain; each answer then has
      the fields of its `Decision`. By default the folder's own, if it has one; `AnswerPolicy()` lets everything pass.
    - everything else goes to `model.generate`.

    Each picture gives a list of dictionaries with `generated_text`, `evidence` (dictionaries with id, text, image,
    score, source, licence, ...), `posterior` (one probability per passage) and `leave_one_out` (what the answer's
    log-probability loses without the passage) and `scores` (those of the evidence).
    """

    _load_processor = _load_tokenizer = _load_image_processor = None  # foreign checkpoints may lack any of them
    _load_feature_extractor = _load_video_processor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __new__(cls, model=None, *args, **kwargs):
        if model is not None and model.config.model_type != RavlmConfig.model_type:
            return ImageCaptionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def _sanitize_parameters(self, question=None, timeout=None, max_new_tokens=None, generate_kwargs=None, **kwargs):
        preprocess = {"question": question, "timeout": timeout}
        forward = {key: kwargs.pop(key) for key in _ANSWER_KEYS if key in kwargs}
        generate = _merge_generate_kwargs(generate_kwargs, max_new_tokens, kwargs)
        if generate:
            forward["generate_kwargs"] = generate
        return {key: value for key, value in preprocess.items() if value is not None}, forward, {}

    def __call__(self, inputs=None, **kwargs):
        """See the class; `images=` and `image=` name the first argument, too."""
        for name in ("images", "image"):
            inputs = kwargs.pop(name, inputs) if inputs is None else inputs
        if inputs is None:
            raise InvalidInputError("no picture given: call the pipeline with a path, URL, PIL image, list or dataset")
        if isinstance(inputs, list) and not inputs:
            return []
        if hasattr(inputs, "column_names"):  # a `datasets.Dataset`, which no pipeline takes for one
            inputs = iter(inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs, question=None, timeout=None):
        if isinstance(inputs, dict) and "image" in inputs:
            question = inputs.get("question", inputs.get("text", question))
            inputs = inputs["image"]
        if question is None:
            question = self.model.config.default_prompt
        if not isinstance(question, str):
            raise InvalidInputError(
                f"question= came as {type(question).__name__}: expected one string, which is asked about every "
                "picture; for a question of its own each, give dictionaries {'image': ..., 'question': ...}"
            )
        return {"image": open_picture(inputs, timeout), "question": question}

    def _forward(self, model_inputs, generate_kwargs=None, retriever=None, **options):
        images, questions = model_inputs["image"], model_inputs["question"]
        batched = isinstance(questions, list)
        answers = answer_questions(
            self.model,
            self.processor,
            retriever if retriever is not None else self.retriever,
            images if batched else [images],
            questions if batched else [questions],
            **{"policy": self.policy, **options},
            **self._prepare_generate_kwargs(dict(generate_kwargs or {})),
        )
        return {"answers": answers if batched else answers[0]}

    def postprocess(self, model_outputs):
        answers = model_outputs["answers"]
        while answers and isinstance(answers[0], list):  # a batch of one comes back nested
            answers = answers[0]
        return [answer.to_record() for answer in answers]


class ImageCaptionPipeline(Pipeline):
    """Captions by any other image-to-text checkpoint (BLIP, GIT, Pix2Struct, vision encoder-decoders, chat models)."""

    _load_processor = _load_tokenizer = _load_image_processor = None
    _load_feature_extractor = _load_video_processor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def _sanitize_parameters(self, prompt=None, timeout=None, max_new_tokens=None, generate_kwargs=None, **kwargs):
        preprocess = {"prompt": prompt, "timeout": timeout}
        generate = _merge_generate_kwargs(generate_kwargs, max_new_tokens, kwargs)
        forward = {"generate_kwargs": generate} if generate else {}
        return {key: value for key, value in preprocess.items() if value is not None}, forward, {}

    def __call__(self, inputs=None, **kwargs):
        """Captions an image, a list, a generator or a dataset; `prompt` conditions models that take one."""
        inputs = kwargs.pop("images", inputs) if inputs is None else inputs
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs, prompt=None, timeout=None):
        image = load_image(inputs, timeout=timeout)
        if prompt is None:
            return self.image_processor(images=image, return_tensors="pt").to(self.dtype)
        if self.processor is None:
            raise InvalidInputError(f"{self.model.config.model_type} takes no prompt; call without prompt=")
        model_inputs = self.processor(images=image, text=prompt, return_tensors="pt")
        return model_inputs.to(self.dtype)

    def _forward(self, model_inputs, generate_kwargs=None):
        generate_kwargs = self._prepare_generate_kwargs(dict(generate_kwargs or {}))
        return {"sequences": self.model.generate(**model_inputs, **generate_kwargs)}

    def postprocess(self, model_outputs):
        texts = self.tokenizer.batch_decode(model_outputs["sequences"], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


def open_picture(source: Any, timeout: float | None = None) -> Any:
    """Fetches an address that the caller gave; the processor makes safe what comes."""
    if not isinstance(source, str) or not source.startswith(("http://", "https://")):
        return source
    try:
        return load_image(source, timeout=timeout)
    except Exception as error:  # whatever the network, the client or the decoder has to say
        raise InvalidInputError(
            f"{source}: the picture could not be fetched ({type(error).__name__}: {error})."
        ) from error


def find_retriever(model, processor: RavlmProcessor):
    """The knowledge base that lies in the folder the model came from, or `None`.

    A model in reduced precision does not embed exactly as the one that built the base; its folder's dual encoder is
    then loaded once more as it was saved.
    """
    source = model.name_or_path
    origin = origin_of(without_adapters(model))
    if not source or not _has_knowledge(source, origin):
        return None
    from ..retrieval import RavlmEncoder, RavlmRetriever  # FAISS and pyarrow come only when needed

    if str(model.dtype) == "torch.float32":
        encoder = RavlmEncoder(without_adapters(model).model, processor)
        return RavlmRetriever.from_pretrained(source, encoder=encoder, **origin)
    retriever = RavlmRetriever.from_pretrained(source, **origin)
    retriever.encoder.model.to(model.device)
    return retriever


def find_policy(model) -> AnswerPolicy | None:
    """The policy that lies in the folder the model came from, or `None`."""
    from .policy.answer_policy import AnswerPolicy, find_policy_files

    origin = origin_of(without_adapters(model))
    try:
        if find_policy_files(model.name_or_path, **origin) is None:
            return None
        return AnswerPolicy.from_pretrained(model.name_or_path, **origin)
    except OSError as error:
        logger.warning(
            "%s: whether a policy lies beside this model could not be found out (%s). Nothing is withheld until you "
            "pass `policy=`, or load the model again when the Hub can be reached.",
            model.name_or_path,
            str(error).partition("\n")[0],
        )
        return None


def _has_knowledge(source: str, origin: dict[str, Any]) -> bool:
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, KNOWLEDGE_FOLDER, "CURRENT"))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(source, f"{KNOWLEDGE_FOLDER}/CURRENT", **origin)
        return True
    except HFValidationError:  # a folder that is no longer there
        return False
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return False
        if hub_failure(error) is None:
            raise
        logger.warning(
            "%s: whether a knowledge base lies beside this model could not be found out (%s). Answers are closed-book "
            "until you pass `retriever=`, or load the model again when the Hub can be reached.",
            source,
            str(error).partition("\n")[0],
        )
        return False


def _find_processor(model) -> RavlmProcessor:
    source = model.name_or_path
    if not source:
        raise InvalidInputError(
            "this model object was not loaded from a folder, so its processor cannot be found; pass processor="
        )
    return AutoProcessor.from_pretrained(source, trust_remote_code=False, **origin_of(without_adapters(model)))


def _merge_generate_kwargs(generate_kwargs: dict | None, max_new_tokens: int | None, others: dict) -> dict:
    merged = {**(generate_kwargs or {}), **others}
    if max_new_tokens is not None:
        if "max_new_tokens" in merged:
            raise InvalidInputError("max_new_tokens is given twice: directly and in generate_kwargs; give it once")
        merged["max_new_tokens"] = max_new_tokens
    return merged
