"""The card of an evaluated model: its figures in every arm, what evidence rescued and harmed, the knowledge beside it.

The part between the two marks is written anew each time; what a person writes before or after it stays, and so do the
fields of the head that are not ours.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..evaluation.report import markdown_table, percent, with_interval
from ..metrics.intervals import Interval
from ..saving.cards import (
    CARD,
    LIBRARY,
    OFFLINE_ENCODER,
    ROLES,
    base_model_table,
    card_metadata,
    count_table,
    describe,
    hub_licence,
    licence_of,
    usage,
    written_card,
)
from ..saving.reaching import OFFLINE


if TYPE_CHECKING:
    import pyarrow as pa
    from huggingface_hub import EvalResult

    from ..model import RavlmConfig

ARM_NAMES = {
    "closed_book": "closed-book",
    "retrieved": "retrieved",
    "gold": "gold passage",
    "gold_and_distractors": "gold passage among others",
    "distractors_only": "wrong passages only",
}
PIPELINE_TAGS = ("image-text-to-text", "visual-question-answering", "image-to-text")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")


@dataclass(frozen=True)
class CardFacts:
    """What a card says that is in no file of the folder.

    Args:
        name (`str`): of the model.
        licence (`str`, *optional*): of the weights, by the Hub's name (`"apache-2.0"`); `"other"` if it has none.
        language (`list[str]`): codes of its languages.
        base_models, datasets (`list[str]`): Hub ids of what it was assembled from and trained on.
        command (`str`, *optional*): what trained it.
        limits (`str`, *optional*): what it cannot do, as Markdown.
        questions (`str`): what it was evaluated on.
        tags (`list[str]`): beside ours.
    """

    name: str
    licence: str | None = None
    language: Sequence[str] = ("en",)
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    command: str | None = None
    limits: str | None = None
    questions: str = "questions"
    tags: Sequence[str] = ()


def write_card(
    folder: str | os.PathLike[str], facts: CardFacts, report: Mapping[str, Any] | None = None
) -> tuple[Path, str]:
    """Writes the card of a saved model into its folder, over what was written there before.

    Args:
        folder: model, and knowledge base if there is one.
        facts (`CardFacts`): what is in no file.
        report (`dict`, *optional*): `EvaluationReport.to_dict()`, or `report.json` as read; without it the card says
            that the model is not evaluated.

    Returns:
        The path and the text.

    Raises:
        InvalidInputError: There is no model, the report is none, or the Hub would not accept the metadata.
    """
    from ..model import RavlmConfig
    from ..retrieval import KnowledgeBase
    from ..retrieval.store.versions import store_state

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InvalidInputError(
            f"{folder}: there is no model (no config.json). Expected what `save_pretrained` wrote."
        )
    config = RavlmConfig.from_pretrained(folder)
    has_knowledge = store_state(folder / "knowledge_base") != "none"
    knowledge = KnowledgeBase.from_pretrained(folder).table if has_knowledge else None
    path = folder / CARD
    earlier = path.read_text(encoding="utf-8") if path.is_file() else None
    referred = referred_parts(config, folder if has_knowledge else None)
    text = model_card(
        config, count_parameters(folder, bool(config.references)), facts, report, knowledge, earlier, referred
    )
    path.write_text(text, encoding="utf-8")
    return path, text


def model_card(
    config: RavlmConfig,
    num_parameters: int,
    facts: CardFacts,
    report: Mapping[str, Any] | None = None,
    knowledge: pa.Table | None = None,
    earlier: str | None = None,
    referred: Mapping[str, str] | None = None,
) -> str:
    """The text of a card; `knowledge` is the table of passages, `earlier` the card that is there; see `write_card`.

    `referred` has what the folder loads by name: `referred_parts`.

    Raises:
        InvalidInputError: See `check_card`.
    """
    by_name = {name: role for name, role in (referred or {}).items() if name != OFFLINE}
    sections = [describe(config, num_parameters, by_name)]
    if by_name:
        sections.append(base_model_table(by_name, {name: licence_of(name, asks=False) for name in by_name}))
    sections += [OFFLINE_ENCODER] * (OFFLINE in (referred or {}))
    sections += ["## Use it\n\n" + usage(facts.name)]
    if facts.command:
        sections.append(f"## How it was trained\n\n```bash\n{facts.command}\n```")
    sections.append("## Figures\n\n" + ("Not evaluated yet." if report is None else figures(report, facts.questions)))
    if knowledge is not None:
        sections.append("## Knowledge base\n\n" + knowledge_section(knowledge))
    sections.append("## Limits\n\n" + (facts.limits or "Nobody has written down yet what it cannot do."))
    head = card_metadata(
        base_models=list(facts.base_models) or list(by_name),
        tags=list(facts.tags),
        language=list(facts.language),
        license=facts.licence,
        datasets=list(facts.datasets) or None,
        **({} if report is None else {"model_name": facts.name, "eval_results": eval_results(report, facts)}),
    ).to_dict()
    text = written_card(head, facts.name.split("/")[-1], "\n\n".join(sections), earlier)
    check_card(text)
    return text


def figures(report: Mapping[str, Any], questions: str = "questions") -> str:
    """The three-way table, the effect of the evidence, and how to read them, from a report's JSON values.

    Raises:
        InvalidInputError: It is not the report of an evaluation.
    """
    arms = _arms(report)
    lines = [
        f"{report['num_questions']:,} {questions}, each answered in every way. Right is what `{report['accuracy']}` "
        "calls right; per cent, in brackets the 95 % bootstrap interval.",
        "",
        *three_way_table(report),
    ]
    if any(arm["effect"] for arm in arms.values()):
        lines += ["", "What evidence changed, as shares of all questions:", "", *effect_table(report)]
    return "\n".join(lines)


def three_way_table(report: Mapping[str, Any]) -> list[str]:
    """Closed-book, retrieved and gold, line by line, with every metric of the report."""
    arms = _arms(report)
    metrics = list(next(iter(arms.values()))["metrics"])
    scales = [(metric, 1 if metric == "cider_d" else 100) for metric in metrics]
    rows = [
        [_arm_name(name), *(with_interval(_interval(arm["metrics"][metric]), scale) for metric, scale in scales)]
        for name, arm in arms.items()
    ]
    return markdown_table(["answered", *(name.replace("_", " ") for name in metrics)], rows)


def effect_table(report: Mapping[str, Any]) -> list[str]:
    """Rescued (wrong closed-book, right with evidence), harmed (the other way round), and the difference."""
    rows = [
        [
            _arm_name(name),
            *(with_interval(_interval(arm["effect"][part])) for part in ("rescue_rate", "harm_rate", "net_gain")),
            percent(arm["effect"]["harmed_of_right"]),
        ]
        for name, arm in _arms(report).items()
        if arm["effect"]
    ]
    return markdown_table(["answered", "rescued", "harmed", "net gain", "harmed of right"], rows)


def knowledge_section(table: pa.Table) -> str:
    """How many passages there are, under which licences and from where."""
    num_texts, num_images = (len(table) - table[name].null_count for name in ("text", "image"))
    counts = f"{len(table):,} passages ({num_texts:,} with text, {num_images:,} with image)"
    tables = [count_table(table, column, "none stated") for column in ("licence", "source")]
    return "\n\n".join([f"{counts}; each carries its own source and licence.", *tables])


def eval_results(report: Mapping[str, Any], facts: CardFacts) -> list[EvalResult]:
    """The figures for the head of the card: the accuracy of every arm, rescue and harm of those with evidence."""
    from huggingface_hub import EvalResult

    about = {
        "task_type": "visual-question-answering",
        "dataset_type": re.sub(r"\W+", "-", facts.questions.lower()).strip("-"),
        "dataset_name": f"{report['num_questions']:,} {facts.questions}",
    }
    accuracy, results = report["accuracy"], []
    for name, arm in _arms(report).items():
        found = {accuracy: arm["metrics"][accuracy]["mean"]}
        if arm["effect"]:
            found |= {part: arm["effect"][part]["mean"] for part in ("rescue_rate", "harm_rate")}
        for metric, value in found.items():
            label = f"{metric.replace('_', ' ')}, {_arm_name(name)}"
            results.append(EvalResult(metric_type=metric, metric_name=label, metric_value=round(value, 6), **about))
    return results


def check_card(text: str) -> None:
    r"""Refuses a card whose head the Hub would refuse or misread; asks nobody.

    Raises:
        InvalidInputError: With everything that is wrong.

    >>> check_card("---\nlibrary_name: hf_ravlm\npipeline_tag: image-text-to-text\nlicense: mit\n---\nHello")
    """
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(text).data
    except ValueError as error:
        raise InvalidInputError(f"the head of the card is not valid: {error}") from error
    wrong = []
    if data.library_name != LIBRARY:
        wrong.append(f"library_name is {data.library_name!r}, expected {LIBRARY!r}")
    if data.pipeline_tag not in PIPELINE_TAGS:
        wrong.append(f"pipeline_tag is {data.pipeline_tag!r}, expected one of {', '.join(PIPELINE_TAGS)}")
    wrong += [
        f"license {name!r} is none of the Hub's names (or write 'other')"
        for name in _listed(data.license)
        if name not in ("other", "unknown") and hub_licence(name) != name
    ]
    wrong += [f"language {code!r} is no code" for code in _listed(data.language) if not _LANGUAGE.fullmatch(code)]
    ids = [*_listed(data.base_model), *_listed(data.datasets)]
    wrong += [f"{name!r} is no id of the Hub" for name in ids if not _HUB_ID.fullmatch(name)]
    for result in data.eval_results or []:
        value = result.metric_value
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            wrong.append(f"the value of {result.metric_name or result.metric_type} is {value!r}, expected a number")
    if wrong:
        raise InvalidInputError(f"the head of the card is not valid: {'; '.join(wrong)}")


def referred_parts(config: RavlmConfig, folder: Path | None = None) -> dict[str, str]:
    """What a saved system loads by name from the Hub, and as what; with the folder, also what built its knowledge."""
    from ..retrieval.store.repair import store_info

    found = {part["name"]: ROLES.get(role, role) for role, part in (config.references or {}).items()}
    reference = None if folder is None else store_info(folder / "knowledge_base")["encoder"].get("reference")
    if reference is not None:
        found.setdefault(reference["name"], "encoder, which finds the passages")
    return found


def count_parameters(folder: Path, may_be_none: bool = False) -> int:
    """The number of weights in the `*.safetensors` of a folder, from their headers.

    Raises:
        InvalidInputError: There are none, where some must be.
    """
    from safetensors import safe_open

    # Whole, or in shards; not variants such as model.fp16.safetensors.
    files = [*folder.glob("model.safetensors"), *sorted(folder.glob("model-*-of-*.safetensors"))]
    if not files and may_be_none:
        return 0
    if not files:
        raise InvalidInputError(f"{folder}: there are no weights (no model.safetensors).")
    total = 0
    for path in files:
        with safe_open(path, "np") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    return total


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `report.json` of `hf-ravlm evaluate`.

    Raises:
        InvalidInputError: It cannot be read, or is not a report.
    """
    try:
        report: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(
            f"{path}: this is no report: {error}. Expected `report.json` of an evaluation."
        ) from error
    _arms(report)
    return report


def _arms(report: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = {"num_questions", "accuracy", "arms"} - set(report)
    if missing or not report["arms"]:
        raise InvalidInputError(
            f"this is not the report of an evaluation: {', '.join(sorted(missing)) or 'arms'} is missing. Expected "
            "`EvaluationReport.to_dict()`, or `report.json` as `hf-ravlm evaluate` writes it."
        )
    arms: Mapping[str, Any] = report["arms"]
    found = arms.values() if isinstance(arms, Mapping) else [None]
    if not all(isinstance(arm, Mapping) and "metrics" in arm for arm in found):
        raise InvalidInputError("this is not the report of an evaluation: its arms hold no metrics. Evaluate again.")
    return arms


def _arm_name(name: str) -> str:
    return ARM_NAMES.get(name, name.replace("_", " "))


def _interval(record: Mapping[str, float | None]) -> Interval:
    return Interval(*(math.nan if record[name] is None else record[name] for name in ("mean", "lower", "upper")))


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
