"""The path of one batch of questions: retriever -> processor -> model -> answers with their evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import LogitsProcessorList

from ..errors import InvalidInputError
from ..model import RavlmForConditionalGeneration, RavlmProcessor
from ..model.loading import without_adapters
from ..model.parts.looking_once import looking_once
from ..model.prompts.settings import split_settings
from ..model.reader.attribution import attribute_prompts
from ..model.reader.latent_passages import NEUTRAL_SCALE, passages_are_latent
from ..numbers_given import check_whole
from .answer import Answer, answer_of, parted
from .policy.steps import answer_by_policy
from .policy.token_confidence import TokenConfidence
from .remote.reader import RemoteReader, read_remotely
from .searching import find_evidence, search_words
from .streaming import for_rows, tell_evidence, told_apart


if TYPE_CHECKING:
    from ..retrieval import RavlmRetriever
    from .encoded_knowledge import EncodedKnowledge
    from .policy.answer_policy import AnswerPolicy


@torch.inference_mode()
@looking_once()
def answer_questions(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    retriever: RavlmRetriever | None,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    k: int | None = None,
    evidence: Sequence[Sequence[Any]] | None = None,
    with_posterior: bool | None = None,
    encoded_knowledge: EncodedKnowledge | None = None,
    policy: AnswerPolicy | None = None,
    queries: Sequence[str | None] | None = None,
    where: Mapping[str, Any] | None = None,
    channels: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    group_by: str | None = None,
    group_query: str | None = None,
    region: Sequence[float] | None = None,
    crops: int | None = None,
    prompt: Mapping[str, Any] | None = None,
    with_leave_one_out: bool = False,
    **generate_kwargs,
) -> list[list[Answer]]:
    """Answers questions about images with what the retriever finds; every pipeline goes through here.

    Args:
        model, processor: the reader and its processor.
        retriever: finds passages by image and question; `None` answers closed-book, unless `evidence` is given.
        images (`list`, *optional*), questions (`list[str]`):
            of one length; in the place of an image a list of several, each of which is searched with, or `None`.
        k (`int`, *optional*): passages per question, `config.num_passages` by default; 0 is closed-book.
        evidence (`list[list[Evidence]]`, *optional*): use these passages and do not retrieve.
        with_posterior (`bool`, *optional*): also attribute each answer to its passages, by what it is worth under each
            alone, as is the default; costs at most what the answer did. Not to be had of a reader behind a server.
        with_leave_one_out (`bool`): also find out what each answer would lose without each passage; costs as much as
            reading all passages `K` more times, and nothing where each passage has a prompt of its own.
        encoded_knowledge (`EncodedKnowledge`, *optional*): states of the passages, read once and kept.
        policy (`AnswerPolicy`, *optional*): decides whether to search, which passages to read (of `evidence`, too) and
            when to abstain; each answer then has its `decision`. Needs greedy decoding.
        queries (`list[str]`, *optional*): words to search with; `None` in a place takes the question, `""` no words.
        where (`dict`, *optional*), channels (`list[str]`, *optional*), weights (`dict`, *optional*):
            as in `RavlmRetriever.retrieve`.
        group_by, group_query (`str`, *optional*): find what the image shows first, and then passages about it, as in
            `SearchOptions`; by default as the knowledge base was built.
        region (four numbers, *optional*), crops (`int`, *optional*): search with a part of each image, or also with
            its most detailed parts, as in `RavlmRetriever.retrieve`; the reader sees the whole image.
        prompt (`dict`, *optional*): settings of the prompt for this call (`PromptSettings`): `{"cite": True}`; all but
            `max_length` may come directly, too.
        generate_kwargs: passed to `model.generate`, which is greedy unless these ask for more.

    Returns:
        Per question a list of `num_return_sequences` answers.

    Raises:
        InvalidInputError: `k` is negative, `retriever` is none, a question or an image cannot be used, or a policy
            is to judge what is not one greedy answer per question.
    """
    prompt, generate_kwargs = split_settings({"prompt": prompt, **generate_kwargs}, not_direct=("max_length",))
    processor.prompt_settings.changed(prompt)  # refuses what is none before anything is searched
    weighing = {"with_posterior": with_posterior, "with_leave_one_out": with_leave_one_out}
    generate_kwargs = _fitting(model, generate_kwargs, policy=policy, encoded_knowledge=encoded_knowledge, **weighing)
    k = model.config.num_passages if k is None else k
    check_whole("k", k, lowest=0, meaning=" passages, 0 for closed-book")
    if not questions:
        return []
    check_parts(retriever=retriever, policy=policy, encoded_knowledge=encoded_knowledge)
    reading: dict[str, Any] = {**weighing, "prompt": prompt}
    reading |= {"encoded_knowledge": encoded_knowledge, "prior_scale": prior_scale_of(retriever), **generate_kwargs}
    find = retriever is not None and k > 0
    given = _given(where=where, channels=channels, weights=weights, region=region, crops=crops)
    given |= _given(group_by=group_by, group_query=group_query)
    words = search_words(questions, queries)

    def found(places: Sequence[int], k: int) -> Sequence[Sequence[Any]]:
        shown = None if images is None else [images[place] for place in places]
        return find_evidence(retriever, shown, [words[place] for place in places], k, **given)

    if policy is None:
        if evidence is None:
            evidence = found(range(len(questions)), k) if find else [[] for _ in questions]
        return read_answers(model, processor, images, questions, evidence, **reading)

    def search(places: list[int]) -> Sequence[Sequence[Any]]:
        if evidence is not None:
            return [evidence[place] for place in places]
        return found(places, max(k * policy.num_readings, policy.num_candidates or k))

    def read(places: list[int], passages: list[list[Any]]) -> tuple[list[Answer], dict[str, torch.Tensor]]:
        asked = (model, processor, *_some(images, questions, places))
        return read_with_confidence(*asked, passages, **for_rows(reading, places))

    may_search = find or (evidence is not None and k > 0)
    answers = answer_by_policy(policy, len(questions), k, search if may_search else None, read)
    return [[answer] for answer in answers]


# Of each part that a call may bring, what it can do, and where it comes from.
_PARTS = {
    "retriever": ("retrieve", "a retriever, such as `RavlmRetriever.from_pretrained(folder)`"),
    "policy": ("sift", "an `AnswerPolicy`, such as `AnswerPolicy.from_pretrained(folder)`"),
    "encoded_knowledge": ("replace_inputs", "an `EncodedKnowledge`, such as `EncodedKnowledge.open(...)`"),
}


def check_parts(**parts: Any) -> None:
    """Refuses what is no retriever, policy or encoded knowledge.

    Raises:
        InvalidInputError: With what came.

    >>> check_parts(policy="my_policy")
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: policy= came as str: expected an `AnswerPolicy`, such as
        `AnswerPolicy.from_pretrained(folder)`
    """
    for name, part in parts.items():
        method, expected = _PARTS[name]
        if part is not None and not hasattr(part, method):
            raise InvalidInputError(f"{name}= came as {type(part).__name__}: expected {expected}")


@torch.inference_mode()
@looking_once()
def read_answers(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    with_posterior: bool | None = None,
    encoded_knowledge: EncodedKnowledge | None = None,
    prompt: Mapping[str, Any] | None = None,
    with_leave_one_out: bool = False,
    prior_scale: float | None = None,
    **generate_kwargs,
) -> list[list[Answer]]:
    """Answers questions from the evidence that is given; the arguments are those of `answer_questions`.

    Also takes `prior_scale`, `1 / temperature` of what gave the scores of the evidence: see `add_attributions`.
    """
    if isinstance(model, RemoteReader):
        return read_remotely(model, processor, images, questions, evidence, prompt, **generate_kwargs)
    settings = processor.prompt_settings.changed(prompt or {})
    inputs = processor(images=images, text=list(questions), evidence=evidence, prompt=prompt)
    read = was_read(inputs, evidence)
    generate_kwargs = told_apart(generate_kwargs)
    tell_evidence(generate_kwargs.get("streamer"), *parted(evidence, read))
    inputs = for_model(inputs, model, evidence, encoded_knowledge)
    scores = inputs.get("evidence_scores")
    if prior_scale is not None and passages_are_latent(model.config, scores):
        inputs["prior_scale"] = scores.new_full((len(scores),), prior_scale)
    sequences = model.generate(**inputs, **generate_kwargs)
    sequences = getattr(sequences, "sequences", sequences)  # with `return_dict_in_generate`
    written = processor.decode_answers(sequences[:, inputs["input_ids"].shape[1] :], prompt)
    per_question = len(written) // len(questions)
    rows = [row for row in range(len(questions)) for _ in range(per_question)]
    answers = []
    for (text, thinking), row in zip(written, rows, strict=True):
        answers.append(answer_of(text, thinking, evidence[row], read[row], questions[row] if settings.cite else None))
    if with_posterior is not False or with_leave_one_out:
        asked = _some(images, questions, rows)
        options = {"with_leave_one_out": with_leave_one_out, "prior_scale": prior_scale}
        add_attributions(model, processor, *asked, answers, encoded_knowledge, prompt, **options)
    return [answers[start : start + per_question] for start in range(0, len(answers), per_question)]


def was_read(inputs: Any, evidence: Sequence[Sequence[Any]]) -> list[list[bool]]:
    """Of each passage of each question whether it stands in the prompt that the processor wrote."""
    if "evidence_mask" not in inputs:
        return [[False] * len(row) for row in evidence]
    return [kept[: len(row)] for kept, row in zip(inputs["evidence_mask"].tolist(), evidence, strict=True)]


def greedy_unless_asked(model: Any, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` that do not sample because a backbone's own generation config says so."""
    if generate_kwargs.get("do_sample") is not None or generate_kwargs.get("generation_config") is not None:
        return dict(generate_kwargs)
    own = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    unused = {name: None for name in _OF_SAMPLING if name in own}
    return {**unused, **generate_kwargs, "do_sample": False}


_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


@torch.inference_mode()
def read_with_confidence(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    **options,
) -> tuple[list[Answer], dict[str, torch.Tensor]]:
    """One greedy answer to each question, and its `TOKEN_FEATURES`, each `(B,)`.

    Raises:
        InvalidInputError: Decoding is not greedy, or the reader writes from several prompts per question.
    """
    greedy = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    if wrong := {name: options[name] for name, value in greedy.items() if options.get(name) not in (value, None)}:
        raise InvalidInputError(f"A policy judges one greedy answer per question; came: {wrong}. Leave that out.")
    confidence = TokenConfidence(model, processor.tokenizer)
    processors = LogitsProcessorList([*(options.pop("logits_processor", None) or []), confidence])
    options = {**options, **greedy, "logits_processor": processors}
    answers = read_answers(model, processor, images, questions, evidence, **options)
    features = confidence.features(len(questions))
    if features is None:
        raise InvalidInputError(
            "A policy has to see how sure the reader is of each token, and this reader writes from several prompts at "
            'once. Ask one question at a time, of a reader with marginalization="none".'
        )
    return [answer for (answer,) in answers], features


@torch.inference_mode()
def add_attributions(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    answers: Sequence[Answer],
    encoded_knowledge: EncodedKnowledge | None = None,
    prompt: Mapping[str, Any] | None = None,
    with_leave_one_out: bool = True,
    prior_scale: float | None = None,
) -> None:
    """Fills in `posterior` and `leave_one_out` of each answer; see `RavlmForConditionalGeneration.attribute`.

    Args:
        prior_scale (`float`, *optional*): `1 / temperature` of the encoder that gave the scores of the evidence; by
            default that of the reader's own towers where it reads through them, else 1.

    Answers stand on top of the prompts as they were read, whatever else is in the batch.
    """
    rows = [row for row, answer in enumerate(answers) if answer.evidence]
    if not rows:
        return
    reader = without_adapters(model)
    options = {"with_leave_one_out": with_leave_one_out, "prior_scale": prior_scale}
    images, questions = _some(images, questions, rows)
    evidence, texts = [answers[row].evidence for row in rows], [answers[row].text for row in rows]
    if reader.reads_images:
        asked = (images, questions, evidence, texts)
        found = attribute_prompts(reader, processor, *asked, prompt=prompt, **options)
    else:
        layout = {"padding_side": "left", "answer_on_top": True, "prompt": prompt}
        inputs = processor(images=images, text=questions, evidence=evidence, answers=texts, **layout)
        found = reader.attribute(**for_model(inputs, model, evidence, encoded_knowledge), **options)
    for place, row in enumerate(rows):
        number = len(answers[row].evidence)
        answers[row].posterior = found.posterior[place, :number].tolist()
        if found.leave_one_out is not None:
            answers[row].leave_one_out = found.leave_one_out[place, :number].tolist()


def prior_scale_of(retriever: Any) -> float | None:
    """`1 / temperature` of the encoder of a retriever, 1 if it has none; `None` without a retriever."""
    if retriever is None:
        return None
    scale = getattr(getattr(retriever, "encoder", None), "logit_scale", None)
    return NEUTRAL_SCALE if scale is None else float(scale)


def _fitting(model: Any, generate_kwargs: Mapping[str, Any], **needs_weights: Any) -> dict[str, Any]:
    """Arguments of `generate` for a reader; refuses what needs the weights of one that is behind a server."""
    if not isinstance(model, RemoteReader):
        return greedy_unless_asked(model, generate_kwargs)
    for name, value in needs_weights.items():
        if value is not None and value is not False:
            raise InvalidInputError(
                f"{name}= needs the weights of the reader, and this one is behind a server, which gives words alone: "
                "leave it out, or open the reader here by its name on the Hub"
            )
    return dict(generate_kwargs)


def _given(**options: Any) -> dict[str, Any]:
    """Options that were given; of the others the search knows best."""
    return {name: value for name, value in options.items() if value is not None}


def _some(
    images: Sequence[Image.Image] | None, questions: Sequence[str], places: Sequence[int]
) -> tuple[list[Image.Image] | None, list[str]]:
    return None if images is None else [images[place] for place in places], [questions[place] for place in places]


def for_model(
    inputs: Any, model: Any, evidence: Sequence[Sequence[Any]], encoded_knowledge: EncodedKnowledge | None
) -> Any:
    """The processor's output on the device and in the precision of the model, with stored states if there are any."""
    inputs = inputs.to(model.device)
    if encoded_knowledge is not None:
        encoded_knowledge.replace_inputs(inputs, evidence)
    for name in ("pixel_values", "evidence_pixel_values"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    return inputs
