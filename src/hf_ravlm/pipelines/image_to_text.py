"""`pipeline("image-to-text")`: an image in, words with their evidence out.

transformers 5 dropped this task and redirects its name. `import hf_ravlm` serves it again (`hub/registration.py`): our
models through `RavlmImageToTextPipeline`, any other image-text-to-text checkpoint through `ImageCaptionPipeline`,
which does what the old pipeline did.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from types import NoneType
from typing import Any

from torch.utils.data import Dataset
from transformers import GenerationConfig, Pipeline

from ..errors import InvalidInputError
from ..model.loading import without_adapters
from ..model.prompts.settings import SETTINGS, split_settings
from ..saving.folders import PublishMixin, check_base
from ..saving.safe_paths import at_home
from ..sequences import is_column
from .answer import Answer
from .answering import answer_questions, check_parts
from .asked import Asked, check_keys, open_image, opened
from .knowledge import open_knowledge
from .model_folder import find_policy, find_processor, find_retriever
from .numbered_inputs import NumberedInputs, check_on_error, still_encoded
from .parts import brings_evidence, is_ours, is_remote, named_encoder, open_remote, own_encoder, reader_around
from .streaming import Writing, decoder_for, stream_answer


logger = logging.getLogger(__name__)

PROMPT_KEYS = ("prompt", *(name for name in SETTINGS if name != "max_length"))  # which is one of `generate`
ANSWER_KEYS = (
    "k",
    "where",
    "channels",
    "group_by",
    "group_query",
    "region",
    "crops",
    "weights",
    "retriever",
    "with_posterior",
    "with_leave_one_out",
    "encoded_knowledge",
    "policy",
    *PROMPT_KEYS,
)
_OUR_NAMES = ("question", "query", "timeout", "on_error", "knowledge", "encoder", *ANSWER_KEYS)


class RavlmPipelineMixin(NumberedInputs):
    """What our pipelines share: a reader with its processor, knowledge base and policy, and saving all of it.

    The reader is a folder of ours, or any other: an image-text-to-text or causal language model of transformers, by
    name or as an object, beside an encoder and a knowledge base.

    Args:
        model (`PreTrainedModel`): the reader.
        processor (`RavlmProcessor`, *optional*): the folder's own by default.
        knowledge (*optional*): a folder of images and texts, a table, a stored knowledge base; see `open_knowledge`.
            What lies beside the model by default.
        encoder (`str` or `Encoder`, *optional*): a name for `load_encoder`, such as
            `"google/siglip2-base-patch16-224"`; by default the one that built the knowledge base.
        retriever (`RavlmRetriever`, *optional*): in place of `knowledge` and `encoder`.
        policy (`AnswerPolicy`, *optional*): the folder's own by default.
        reader_name (`str`, *optional*), sees_images (`bool`, *optional*):
            of `model="http://localhost:8000/v1"`, a reader behind a server of OpenAI's kind, see [`RemoteReader`].

    Raises:
        InvalidInputError: If the parts do not go together, or a source of knowledge has no encoder.
    """

    def __init__(
        self,
        model,
        processor=None,
        retriever=None,
        policy=None,
        tokenizer=None,
        encoder=None,
        knowledge=None,
        reader_name=None,
        sees_images=None,
        **kwargs,
    ):
        if retriever is not None and (encoder is not None or knowledge is not None):
            raise InvalidInputError("retriever= came with encoder= or knowledge=: a retriever has both; give one kind")
        check_parts(retriever=retriever, policy=policy)
        if is_remote(model):
            model, processor = open_remote(model, processor, reader_name, sees_images)
        elif reader_name is not None or sees_images is not None:
            raise InvalidInputError('reader_name= and sees_images= are of a server: give model="http://.../v1", too')
        elif not is_ours(model):
            model, processor = reader_around(model, processor, tokenizer)
        processor = processor if processor is not None else find_processor(model)
        super().__init__(model=model, processor=processor, **kwargs)
        encoder = named_encoder(encoder, self.device)
        if knowledge is not None:
            retriever = open_knowledge(knowledge, encoder or own_encoder(model, processor))
        elif retriever is None:
            retriever = None if is_remote(model) else find_retriever(model, processor, encoder)
        if retriever is None and encoder is not None:
            raise InvalidInputError("encoder= came without anything to search: give knowledge=, a folder for one")
        self.retriever = retriever
        self.policy = policy if policy is not None or is_remote(model) else find_policy(model)

    def _answer(self, asked: Sequence[Asked], **options: Any) -> list[Any]:
        """The answers to each question; `options` are those of `_answer_rows`.

        Questions with images, those without, and those of other system messages are asked apart: readers take no
        batch of both, and a prompt has one setting for all. A system message stands behind that of the call.
        """
        prompt, options = split_settings(options)
        groups: dict[tuple[bool, str | None], list[int]] = {}
        answers: dict[int, Any] = {}
        for place, one in enumerate(asked):
            if one.error is None:
                groups.setdefault((one.images is not None, one.system), []).append(place)
            else:
                answers[place] = [Answer("", error=one.error)]
        for (with_images, system), places in groups.items():
            rows = [asked[place] for place in places]
            own = prompt.get("system_message")
            told = f"{own}\n\n{system}" if own and system else system or own
            found = self._answer_rows(
                [row.images for row in rows] if with_images else None,
                [row.question for row in rows],
                queries=[row.query for row in rows],
                prompt={**prompt, "system_message": told} if told else prompt,
                **options,
            )
            answers |= zip(places, found, strict=True)
        return [answers[place] for place in range(len(asked))]

    def _answer_rows(
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

    def stream(self, inputs: Any = None, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Answers one question as a call does, told while it is written.

        Args:
            inputs, kwargs: As of a call, for one question.

        Yields:
            `{"evidence": [...], "unread": [...]}`, the passages that are read and those that were found and are not,
            before the first word; `{"text": ...}`, piece by piece; and last `{"answer": record}`, what a call returns.
            With a policy, which may yet withhold it, the text comes in one piece. Leaving the loop ends the answer.

        >>> for event in pipe.stream("kite.png", question="What is this?"):  # doctest: +SKIP
        ...     print(event.get("text", ""), end="")
        """
        if isinstance(inputs, (list, tuple)) or hasattr(inputs, "column_names"):
            raise InvalidInputError("stream() tells one answer: give one image with its question")
        if "streamer" in kwargs:
            raise InvalidInputError("streamer= came to stream(), which has its own: call the pipeline itself with it")
        prompt, _ = split_settings(kwargs, not_direct=("max_length",))
        withheld = kwargs.get("policy", self.policy) is not None
        writing_of = partial(Writing, decode=decoder_for(self, prompt), at_once=withheld)
        return stream_answer(partial(self, inputs, **kwargs), writing_of, self)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base: str = "reference",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        allow_missing_licence: bool = False,
    ) -> None:
        """Publishes model, processor, knowledge base and policy to one repository, in one commit.

        Args:
            repo_id: A repository, such as `"owner/name"`; created if needed.
            base: As in `save_pretrained`.
            private: Whether a new repository is private; `None` for the default of its owner.
            token: A Hub token; `None` for the stored one.
            revision: The branch, made if needed; `None` for the main one.
            allow_missing_licence: Whether to publish passages that say nothing about their licence.

        Raises:
            InvalidInputError: If the retriever's passages live on a server or have no licence; nothing is published
                then.
            HubUnavailableError: If the Hub cannot be reached, or broke off; what is there is as it was.
        """
        self._check_retriever_can_be_saved()
        if self.retriever is not None and not allow_missing_licence:
            from ..retrieval.hub.upload import check_licences  # pyarrow comes only when needed

            check_licences(self.retriever.knowledge_base.table)
        where = {"private": private, "token": token, "revision": revision}
        beside = [part for part in (self.processor, self.retriever, self.policy) if part is not None]
        if isinstance(self.model, PublishMixin):
            self.model.push_to_hub(repo_id, base=base, beside=beside, **where)
            return
        self.model.push_to_hub(repo_id, **where)  # adapters, which peft publishes
        for part in beside:
            licence = {"allow_missing_licence": True} if part is self.retriever else {}
            part.push_to_hub(repo_id, **where, **licence)

    def save_pretrained(self, save_directory: str | os.PathLike, base: str = "reference", **kwargs: Any) -> None:
        """Saves model, processor, knowledge base and policy to one folder, which `pipeline(model=FOLDER)` reopens.

        Args:
            save_directory: The folder.
            base: `"reference"` writes of pretrained parts that came from the Hub, and are as they were, the names and
                revisions; `"copy"` writes their weights, too.
            **kwargs: For the `save_pretrained` of model and processor.

        Raises:
            InvalidInputError: If `push_to_hub` is given, or the retriever's passages live on a server; nothing is
                saved then.
        """
        if kwargs.get("push_to_hub"):
            raise InvalidInputError(
                "push_to_hub=True: a pipeline is saved here and published by `pipeline.push_to_hub(repo_id)`, which "
                "takes the knowledge base along."
            )
        check_base(base)
        self._check_retriever_can_be_saved()
        save_directory = at_home(save_directory)
        of_model = {"base": base} if isinstance(self.model, PublishMixin) else {}  # else adapters, by peft
        self.model.save_pretrained(save_directory, **of_model, **kwargs)
        self.processor.save_pretrained(save_directory, base=base, **kwargs)
        if self.retriever is not None:
            self.retriever.save_pretrained(save_directory)
            if (
                without_adapters(self.model).model is None
                and getattr(self.retriever.encoder, "reference", None) is None
            ):
                logger.warning(
                    "%s: the encoder %s came from no repository, so the folder cannot name it. Give encoder= when you "
                    "open it again.",
                    *(save_directory, self.retriever.encoder.name),
                )
        if self.policy is not None:
            self.policy.save_pretrained(save_directory)

    def _check_retriever_can_be_saved(self) -> None:
        if is_remote(self.model):
            raise InvalidInputError(
                "The pipeline's reader is behind a server and cannot be saved, nor does a folder name an address that "
                "would then be asked. Nothing was written. Keep the knowledge (`pipeline.retriever.save_pretrained"
                "(folder)`) and name the address again: `pipeline(..., model=address, knowledge=folder)`."
            )
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

    `pipeline("image-to-text", model=READER, encoder=ENCODER, knowledge=FOLDER)` after `import hf_ravlm`, or
    `model=FOLDER` for what `save_pretrained` wrote. Calls take an image (path, URL, PIL image), a dictionary
    `{"image": ..., "question": ...}` whose image may be a list of several or `None`, a list of these, a generator or a
    dataset, or only `question=`, and:

    - **question** (`str`, *optional*) -- what to ask; without it `config.default_prompt` asks for a description.
    - **query** (`str`, *optional*) -- words to search with, where they are not those of the question.
    - **k** (`int`, *optional*) -- passages to read; 0 answers closed-book.
    - **where**, **channels**, **weights** (*optional*) -- which passages may be found, how, and what each way counts,
      as in `RavlmRetriever.retrieve`.
    - **group_by**, **group_query** (`str`, *optional*) -- find first what the image shows, such as the `"species"` of
      the passages' metadata, and then what is known of it; by default as the knowledge base was built.
    - **region** (four numbers, *optional*), **crops** (`int`, *optional*) -- search with a part of the image,
      `(x, y, width, height)` in pixels or shares, or also with so many of its most detailed parts.
    - **retriever** (`RavlmRetriever`, *optional*) -- another knowledge base for this call.
    - **with_posterior** (`bool`, *optional*, defaults to `True`) -- whether to attribute the answer to passages, by
      what it is worth under each alone; costs at most what the answer did.
    - **with_leave_one_out** (`bool`, *optional*, defaults to `False`) -- whether to find out, too, what the answer
      would lose without each passage; costs as much as reading all passages `k` more times.
    - **encoded_knowledge** (`EncodedKnowledge`, *optional*) -- states of the passages, read once and kept.
    - **policy** (`AnswerPolicy`, *optional*) -- when to search, what to read, when to abstain; each answer then has
      the fields of its `Decision`. By default the folder's own, if it has one; `AnswerPolicy()` lets everything pass.
    - **on_error** (`str`, *optional*, defaults to `"raise"`) -- what happens to an input that cannot be used, such as
      a broken image: an error that names its place; or, with `"skip"`, a record without an answer, whose `error` says
      why, among the answers to the others.
    - **prompt** (`dict`, *optional*) -- settings of the prompt for this call, which may come directly, too: `cite`,
      `system_message`, `number_passages`, `passage_order`, `enable_thinking`, ... (`PromptSettings`).
    - everything else goes to `model.generate`; to a server `max_new_tokens`, `temperature`, `top_p`, `seed` (with
      `do_sample`), `stop_strings`, `num_return_sequences`, `logprobs`, `streamer` and `extra_body` do.

    Each image gives a list of dictionaries with `generated_text`, `evidence` (dictionaries with id, text, image,
    score, source, licence, ...) that was read, `scores` (those of the evidence), `posterior` (one probability per
    passage), `leave_one_out` (what the answer's log-probability loses without the passage, if asked for) and `unread`
    (what was found and had no room in the prompt). With `cite=True` there are `citations`, each checked; of a reader
    that thinks, `thinking`.
    """

    _load_processor = _load_tokenizer = _load_image_processor = None  # foreign checkpoints may lack any of them
    _load_feature_extractor = _load_video_processor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if model is None or brings_evidence(model, encoder, knowledge, retriever):
            return super().__new__(cls)
        return ImageCaptionPipeline(model, *args, **kwargs)

    def _sanitize_parameters(self, question=None, query=None, timeout=None, on_error=None, **kwargs):
        if on_error is not None:
            check_on_error(on_error)
        forward = {key: kwargs.pop(key) for key in ANSWER_KEYS if key in kwargs}
        reading = {"question": question, "query": query, "timeout": timeout, "on_error": on_error}
        return _sorted_parameters(reading, forward, **kwargs)

    def __call__(self, inputs=None, **kwargs):
        """See the class; `images=` and `image=` name the first argument, too."""
        for name in ("images", "image"):
            inputs = kwargs.pop(name, inputs) if inputs is None else inputs
        if inputs is None and kwargs.get("question") is None:
            raise InvalidInputError(
                "nothing to answer: call the pipeline with an image (a path, URL, PIL image, list or dataset), with "
                "question=, or with both"
            )
        if isinstance(inputs, list) and not inputs:
            return []
        if not isinstance(inputs, (list, Dataset)) and (is_column(inputs) or hasattr(inputs, "column_names")):
            inputs = list(inputs) if isinstance(inputs, tuple) else (row for row in still_encoded(inputs))
        return super().__call__({"image": None} if inputs is None else inputs, **kwargs)

    def read_input(self, inputs, question=None, query=None, timeout=None):
        """What one input asks, with its image decoded."""
        if isinstance(inputs, dict) and not inputs.keys().isdisjoint(("image", "images", "question")):
            question = inputs.get("question", inputs.get("text", question))
            query = inputs.get("query", query)
            check_keys(inputs)
            inputs = inputs.get("image", inputs.get("images"))
        if question is None:
            question = self.model.config.default_prompt
        for name, words in (("question", question), ("query", query)):
            if not isinstance(words, (str, NoneType)):
                raise InvalidInputError(
                    f"{name}= came as {type(words).__name__}: expected one string, which is asked about every image; "
                    "for a question of its own each, give dictionaries {'image': ..., 'question': ...}"
                )
        return {"asked": Asked(question, opened(inputs, timeout), query)}

    def unread_input(self, inputs, error):
        """Stands for an input that cannot be used."""
        return {"asked": Asked("", error=error)}

    def _forward(self, model_inputs, **options):
        asked = model_inputs["asked"]
        if isinstance(asked, list):  # with `batch_size`
            return {"answers": self._answer(asked, **options)}
        return {"answers": self._answer([asked], **options)[0]}

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
        image = open_image(inputs, timeout)
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


def _sorted_parameters(
    preprocess: dict, forward: dict, /, generate_kwargs: dict | None = None, max_new_tokens=None, **others: Any
) -> tuple[dict, dict, dict]:
    """What the three steps of a pipeline get: what `preprocess` and `_forward` do not know goes to `generate`.

    Raises:
        InvalidInputError: For what is a slip of one of our own names, which `generate` would refuse at the first call.
    """
    merged = {**(generate_kwargs or {}), **others}
    for name in merged.keys() - set(_OUR_NAMES):
        if near := difflib.get_close_matches(name, _OUR_NAMES, 1, 0.8):
            raise InvalidInputError(f"there is no {name}=; did you mean {near[0]}=?")
    if max_new_tokens is not None:
        if "max_new_tokens" in merged:
            raise InvalidInputError("max_new_tokens is given twice: directly and in generate_kwargs; give it once")
        merged["max_new_tokens"] = max_new_tokens
    if merged:
        forward = {**forward, "generate_kwargs": merged}
    return {key: value for key, value in preprocess.items() if value is not None}, forward, {}
