"""Evaluates a saved model on a file of questions, from paths to a folder with reports; behind `hf-ravlm evaluate`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..corpora import BENCHMARKS, benchmark_questions
from ..errors import InvalidInputError
from ..pipelines.numbered_inputs import OnError
from ..pipelines.remote.reader import RemoteReader
from ..retrieval.sources.text_files import plain_suffix
from .arms import growing_arm, model_arms
from .closed_set import closed_set_arms
from .evaluator import Evaluator
from .growth import measure_growth, without_answers
from .questions import QuestionRows, questions_from
from .report import EvaluationReport, GrowthReport


if TYPE_CHECKING:
    from ..model import RavlmForConditionalGeneration
    from ..pipelines.policy.answer_policy import AnswerPolicy
    from ..retrieval import RavlmRetriever

_SAMPLED_VECTORS = 4096
_QUESTION_FILES = (".jsonl", ".parquet", ".csv", ".tsv", ".json", ".ndjson")


class ModelEvaluation(NamedTuple):
    """What `evaluate_model` found and where it is written."""

    report: EvaluationReport
    growth: GrowthReport | None
    files: list[Path]


def evaluate_model(
    model: str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    arms: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    limit: int | None = None,
    metrics: Sequence[str] | None = None,
    benchmark: str | None = None,
    images: str | os.PathLike[str] | None = None,
    knowledge: Any = None,
    encoder: Any = None,
    k: int | None = None,
    channels: Sequence[str] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: str | None = None,
    distractors: str | os.PathLike[str] | Iterable[Mapping[str, Any]] | None = None,
    factors: Sequence[int] = (1, 10, 100),
    policy: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    reader_name: str | None = None,
    sees_images: bool | None = None,
    allowed_answers: Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> ModelEvaluation:
    """Asks a model all questions in all arms, reports, and keeps every reply, so that a killed run goes on.

    Args:
        model: A folder or Hub id of a `RavlmForConditionalGeneration` with its processor, or any other reader, also
            the address of a server, which then needs `knowledge`.
        data: Questions: a file with one JSON object per line, a Parquet, CSV or JSON table, a folder of
            `Dataset.save_to_disk` or of images with metadata, a Hub id, or what `questions_from` takes.
        output: The folder for the report and the replies; below it, `growth` for those with distractors.
        arms (`list[str]`, *optional*): Of `arms.ARMS`; by default `closed_book`, `retrieved`, and `gold`
            where every question has `gold_ids`, and `guarded` where there is a policy. `closed_book` is always there.
        columns, split: See `questions_from`; the split of a data set with several.
        limit (`int`, *optional*): Only the first so many questions.
        metrics (`list[str]`, *optional*): Of `ANSWER_METRICS`; the first decides what is right. By default the
            official ones of the benchmark, elsewhere `exact_match` and `token_f1`.
        benchmark (`str`, *optional*): Of `hf_ravlm.corpora.BENCHMARKS`: `data` are its official files, or their
            folder.
        images: The folder of the benchmark's images; without it questions are asked without.
        knowledge, encoder: What is searched, if it is not in the folder of the model, and what encodes it; see
            `hf_ravlm.pipelines.knowledge.open_knowledge`.
        k (`int`, *optional*), channels (`list[str]`, *optional*): Passages per question and how they are found.
        batch_size, seed, device: The device is `cuda` where there is one.
        distractors: A folder of WordNet, a JSONL file of passages, or passages: with it the questions are asked once
            more at each of the sizes in `factors`. Passages that hold an accepted answer are left out.
        policy: The folder or Hub id of an `AnswerPolicy`, by default that of the model, if there is one there.
        on_error: Of a question whose image cannot be used, see `model_arms`.
        reader_name, sees_images: Of a server, as of `RemoteReader`.
        allowed_answers (`list[str]`, *optional*): The reader chooses among these instead of writing; see
            `closed_set_arms`.
        generate_kwargs: Passed to `model.generate`, such as `max_new_tokens` (32 by default).

    Raises:
        InvalidInputError: Whatever is wrong with data, columns, arms or metrics; see `Evaluator`.
    """
    if allowed_answers is not None and (distractors is not None or policy is not None):
        raise InvalidInputError("distractors and a policy are of answers that are written, not of a closed set")
    output, questions = Path(output), _questions(data, columns, split, benchmark, images)
    metrics = metrics or (BENCHMARKS[benchmark].metrics if benchmark else ("exact_match", "token_f1"))
    questions = questions if limit is None else questions.first(limit)
    of_server = {"reader_name": reader_name, "sees_images": sees_images}
    reader, processor, retriever, answer_policy = _load(model, knowledge, encoder, policy, device, of_server)
    system = (reader, processor, retriever)
    _check_distractors(distractors, model, retriever)
    names = _arm_names(arms, questions, retriever is not None, answer_policy is not None)
    options: dict[str, Any] = {"k": k, "seed": seed, "max_new_tokens": 32, **generate_kwargs}
    if channels is not None:
        options["retrieve_options"] = {"channels": list(channels)}
    settings = _settings(reader, retriever, options, answer_policy if "guarded" in names else None)
    if allowed_answers is None:
        named = model_arms(*system, names, policy=answer_policy, on_error=on_error, **options)
    else:
        names = [name for name in names if name != "guarded" or "guarded" in (arms or [])]
        settings["allowed_answers"] = hashlib.sha256("\n".join(allowed_answers).encode()).hexdigest()[:16]
        choosing = {name: options[name] for name in ("k", "retrieve_options", "seed") if name in options}
        named = closed_set_arms(*system, allowed_answers, names, on_error=on_error, **choosing)
    report = Evaluator(named, metrics, batch_size=batch_size, seed=seed, settings=settings).run(questions, output)
    files = report.save(output)
    if distractors is None:
        return ModelEvaluation(report, None, files)
    others = without_answers(_passages(distractors), questions.without_images())
    settings["distractors"] = Path(distractors).name if isinstance(distractors, (str, os.PathLike)) else None
    grown = growing_arm(*system, others, on_error=on_error, **options)
    measured = (len(retriever), factors, output / "growth", metrics[:1], batch_size, settings)
    growth = measure_growth(questions, named["closed_book"], grown, *measured)
    return ModelEvaluation(report, growth, files + growth.save(output))


def _settings(
    reader: Any, retriever: RavlmRetriever | None, options: Mapping[str, Any], policy: AnswerPolicy | None
) -> dict[str, Any]:
    """What decides replies, and is kept beside them: a run of others is not mixed in."""
    settings: dict[str, Any] = {
        "model": _weights_digest(reader),
        "knowledge": None if retriever is None else _knowledge_digest(retriever),
        "options": {name: value for name, value in sorted(options.items()) if value is not None},
    }
    return settings if policy is None else settings | {"policy": policy.fingerprint}


def _check_distractors(distractors: Any, model: Any, retriever: RavlmRetriever | None) -> None:
    if distractors is not None and retriever is None:
        raise InvalidInputError(f"There is no knowledge base in {model} that could grow. Pass `knowledge`.")
    if isinstance(distractors, (str, os.PathLike)) and not Path(distractors).exists():
        raise InvalidInputError(f"{distractors}: there are no distractors. Expected WordNet or a JSONL file.")


def _questions(
    data: Any,
    columns: Mapping[str, str] | None,
    split: str,
    benchmark: str | None,
    images: str | os.PathLike[str] | None,
) -> QuestionRows:
    if benchmark is not None:
        return questions_from(benchmark_questions(benchmark, data, images), columns)
    if images is not None:
        raise InvalidInputError("images= belongs to benchmark=...; other questions name their images themselves.")
    return read_questions(data, columns, split)


def _arm_names(
    arms: Sequence[str] | None, questions: QuestionRows, has_knowledge: bool, has_policy: bool
) -> list[str]:
    """The arms that are asked for, by default all that can be; closed-book always."""
    if arms is None and has_knowledge:
        has_gold = all(question.gold_ids for question in questions.without_images())
        arms = ["retrieved", *(["gold"] if has_gold else []), *(["guarded"] if has_policy else [])]
    return list(dict.fromkeys(["closed_book", *(arms or [])]))


def read_questions(data: Any, columns: Mapping[str, str] | None = None, split: str = "test") -> QuestionRows:
    """Questions from whatever `evaluate_model` takes as `data`.

    Raises:
        InvalidInputError: The file has no known ending, the data set no such split, or a column is missing.
    """
    if not isinstance(data, (str, os.PathLike)):
        return questions_from(data, columns)
    path = Path(data)
    suffix = plain_suffix(path)
    if suffix in _QUESTION_FILES and not path.is_dir():
        return questions_from(path, columns)
    import datasets

    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
    elif path.is_dir():
        found = datasets.load_dataset("imagefolder", data_dir=str(path))
    elif path.suffix:
        known = ", ".join(_QUESTION_FILES)
        raise InvalidInputError(f"{path} is no file of questions. Expected one that ends in {known}, or a folder.")
    else:
        found = datasets.load_dataset(str(data))
    if hasattr(found, "keys"):  # several splits
        if split not in found and len(found) > 1:
            raise InvalidInputError(f"There is no split {split!r} in {data}; there is {', '.join(found)}.")
        found = found[split if split in found else next(iter(found))]
    return questions_from(found, columns)


def _load(
    source: str | os.PathLike[str],
    knowledge: Any,
    encoder: Any,
    policy: str | os.PathLike[str] | None,
    device: str | None,
    of_server: Mapping[str, Any],
) -> tuple[Any, Any, Any, AnswerPolicy | None]:
    """Model, processor, and retriever and policy where there are such."""
    from ..pipelines.opening import open_pipeline
    from ..pipelines.policy.answer_policy import AnswerPolicy

    ask = open_pipeline(source, knowledge, encoder, device, **of_server)
    return ask.model, ask.processor, ask.retriever, AnswerPolicy.from_pretrained(policy) if policy else ask.policy


def _weights_digest(model: RavlmForConditionalGeneration | RemoteReader) -> str:
    """Of names, shapes and sums of all weights: enough to notice another checkpoint; of a server where and which."""
    if isinstance(model, RemoteReader):
        named = f"{model.server.address} {model.name} {model.sees_images}"
        return hashlib.sha256(named.encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        total = float(weight.double().sum()) if weight.is_floating_point() else int(weight.sum())
        digest.update(f"{name} {tuple(weight.shape)} {total:.6g}\n".encode())
    return digest.hexdigest()[:16]


def _knowledge_digest(retriever: RavlmRetriever) -> str:
    """Of all ids, the encoder, and up to a few thousand of the vectors, which stand for what the passages say."""
    from ..retrieval.passage import ids_digest

    known = f"{retriever.encoder_fingerprint} {ids_digest(retriever.knowledge_base.table)}"
    digest = hashlib.sha256(known.encode())
    digest.update(retriever.vectors[:: max(1, len(retriever) // _SAMPLED_VECTORS)].tobytes())
    return digest.hexdigest()[:16]


def _passages(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    if not isinstance(source, (str, os.PathLike)):
        yield from source
        return
    from ..corpora import from_wordnet
    from ..retrieval import KnowledgeBase

    path = Path(source)
    passages = from_wordnet(path) if path.is_dir() else KnowledgeBase.from_jsonl(path)
    for passage in passages:
        yield {"id": passage.id, "text": passage.text, "source": passage.source, "licence": passage.licence}
