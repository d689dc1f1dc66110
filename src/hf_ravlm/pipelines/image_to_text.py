"""`pipeline("image-to-text")`: an image in, words with their evidence out.

transformers 5 dropped this task and redirects its name. `import hf_ravlm` serves it again (`hub/registration.py`): our
models through `RavlmImageToTextPipeline`, any other image-text-to-text checkpoint through `ImageCaptionPipeline`,
which does what the old pipeline did.
"""

from __future__ import annotations

import os
from typing import Any

from transformers import GenerationConfig, Pipeline
from transformers.image_utils import load_image

from ..errors import InvalidInputError
from ..model import RavlmConfig
from .answer import Answer
from .answering import answer_questions
from .model_folder import find_policy, find_processor, find_retriever


ANSWER_KEYS = ("k", "retriever", "with_posterior", "encoded_knowledge", "policy")


class RavlmPipelineMixin:
    """What our pipelines share: the folder's own processor, knowledge base and policy, and saving all of it."""

    def __init__(self, model, processor=None, retriever=None, policy=None, **kwargs):
        processor = processor if processor is not None else find_processor(model)
        super().__init__(model=model, processor=processor, **kwargs)
        self.retriever = retriever if retriever is not None else find_retriever(model, processor)
        self.policy = policy if policy is not None else find_policy(model)

    def _answer(
        self, images: list | None, questions: list[str], retriever=None, generate_kwargs=None, **options: Any
    ) -> list[list[Answer]]:
        """`answer_questions` with the parts of this pipeline, unless others are given for this call."""
        return answer_questions(
            self.model,
            self.processor,
            retriever if retriever is not None else self.retriever,
            images,
            questions,
            **{"policy": self.policy, **options},
            **self._prepare_generate_kwargs(dict(generate_kwargs or {})),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> None:
        """Publishes model, processor, knowledge base and policy to one repository, in a commit each.

        Raises:
            InvalidInputError: If the retriever's passages live on a server; nothing is published then.
        """
        self._check_retriever_can_be_saved()
        for part in (self.retriever, self.model, self.processor, self.policy):  # that which may be refused first
            if part is not None:
                part.push_to_hub(repo_id, private=private, token=token, revision=revision)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model, processor, knowledge base and policy to one folder; `from_pretrained` of each reads it.

        Raises:
            InvalidInputError: If `push_to_hub` is given, or the retriever's passages live on a server; nothing is
                saved then.
        """
        if kwargs.get("push_to_hub"):
            raise InvalidInputError(
                "push_to_hub=True: a pipeline is saved here and published by `pipeline.push_to_hub(repo_id)`, which "
                "takes the knowledge base along."
            )
        self._check_retriever_can_be_saved()
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if self.retriever is not None:
            self.retriever.save_pretrained(save_directory)
        if self.policy is not None:
            self.policy.save_pretrained(save_directory)

    def _check_retriever_can_be_saved(self) -> None:
        if self.retriever is not None and not hasattr(self.retriever, "save_pretrained"):
            raise InvalidInputError(
                f"The pipeline's retriever is a {type(self.retriever).__name__}, which cannot be saved to a folder or "
                "published: its passages live on a server. Nothing was written. Save the other parts by themselves "
                "(`pipeline.model.save_pretrained(...)`, so `processor`), and pass `retriever=` after loading them; "
                "or take a pipeline with a `RavlmRetriever`."
            )


class RavlmImageToTextPipeline(RavlmPipelineMixin, Pipeline):
    """
    Describes images, or answers a question about them, with evidence from a knowledge base.

    `pipeline("image-to-text", model=FOLDER_OR_MODEL)` after `import hf_ravlm`. The knowledge base is the folder's own,
    or `retriever=`. Calls take an image (path, URL, PIL image, `{"image": ..., "question": ...}`), a list, a
    generator or a dataset, and:

    - **question** (`str`, *optional*) -- what to ask; without it `config.default_prompt` asks for a description.
    - **k** (`int`, *optional*) -- passages to read; 0 answers closed-book.
    - **retriever** (`RavlmRetriever`, *optional*) -- another knowledge base for this call.
    - **with_posterior** (`bool`, *optional*, defaults to `True`) -- whether to attribute the answer to passages.
    - **encoded_knowledge** (`EncodedKnowledge`, *optional*) -- states of the passages, read once and kept.
    - **policy** (`AnswerPolicy`, *optional*) -- when to search, what to read, when to abstain; each answer then has
      the fields of its `Decision`. By default the folder's own, if it has one; `AnswerPolicy()` lets everything pass.
    - everything else goes to `model.generate`.

    Each image gives a list of dictionaries with `generated_text`, `evidence` (dictionaries with id, text, image,
    score, source, licence, ...), `scores` (those of the evidence), `posterior` (one probability per passage) and
    `leave_one_out` (what the answer's log-probability loses without the passage).
    """

    _load_processor = _load_tokenizer = _load_image_processor = None  # foreign checkpoints may lack any of them
    _load_feature_extractor = _load_video_processor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __new__(cls, model=None, *args, **kwargs):
        if model is not None and model.config.model_type != RavlmConfig.model_type:
            return ImageCaptionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def _sanitize_parameters(self, question=None, timeout=None, **kwargs):
        forward = {key: kwargs.pop(key) for key in ANSWER_KEYS if key in kwargs}
        return _sorted_parameters({"question": question, "timeout": timeout}, forward, **kwargs)

    def __call__(self, inputs=None, **kwargs):
        """See the class; `images=` and `image=` name the first argument, too."""
        for name in ("images", "image"):
            inputs = kwargs.pop(name, inputs) if inputs is None else inputs
        if inputs is None:
            raise InvalidInputError("no image given: call the pipeline with a path, URL, PIL image, list or dataset")
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
                "image; for a question of its own each, give dictionaries {'image': ..., 'question': ...}"
            )
        return {"image": open_image(inputs, timeout), "question": question}

    def _forward(self, model_inputs, **options):
        images, questions = model_inputs["image"], model_inputs["question"]
        if isinstance(questions, list):  # with `batch_size`
            return {"answers": self._answer(images, questions, **options)}
        return {"answers": self._answer([images], [questions], **options)[0]}

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

    def _sanitize_parameters(self, prompt=None, timeout=None, **kwargs):
        return _sorted_parameters({"prompt": prompt, "timeout": timeout}, {}, **kwargs)

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
        return self.processor(images=image, text=prompt, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs, generate_kwargs=None):
        options = self._prepare_generate_kwargs(dict(generate_kwargs or {}))
        return {"sequences": self.model.generate(**model_inputs, **options)}

    def postprocess(self, model_outputs):
        texts = self.tokenizer.batch_decode(model_outputs["sequences"], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


def open_image(source: Any, timeout: float | None = None) -> Any:
    """Fetches an image by its address, which the processor then makes safe; anything else is returned as it is.

    Raises:
        InvalidInputError: The image could not be fetched.
    """
    if not isinstance(source, str) or not source.startswith(("http://", "https://")):
        return source
    try:
        return load_image(source, timeout=timeout)
    except Exception as error:  # whatever the network, the client or the decoder has to say
        raise InvalidInputError(
            f"{source}: the image could not be fetched ({type(error).__name__}: {error})."
        ) from error


def _sorted_parameters(
    preprocess: dict, forward: dict, /, generate_kwargs: dict | None = None, max_new_tokens=None, **others: Any
) -> tuple[dict, dict, dict]:
    """What the three steps of a pipeline get: what `preprocess` and `_forward` do not know goes to `generate`."""
    merged = {**(generate_kwargs or {}), **others}
    if max_new_tokens is not None:
        if "max_new_tokens" in merged:
            raise InvalidInputError("max_new_tokens is given twice: directly and in generate_kwargs; give it once")
        merged["max_new_tokens"] = max_new_tokens
    if merged:
        forward = {**forward, "generate_kwargs": merged}
    return {key: value for key, value in preprocess.items() if value is not None}, forward, {}
