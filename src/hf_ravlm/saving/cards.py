"""What a model can say of itself on a model card, before anybody has measured it; `hub/card.py` writes the rest.

The part between the two marks is written by us; what a person writes before or after it stays.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from ..model.configuration_ravlm import RavlmConfig

CARD = "README.md"
BEGIN = "<!-- hf_ravlm: from here on written by `hf-ravlm card` -->"
END = "<!-- hf_ravlm: up to here written by `hf-ravlm card` -->"
LIBRARY = "hf_ravlm"
PIPELINE_TAG = "image-text-to-text"
TAGS = ("retrieval-augmented", "vision-language", "ravlm")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def first_card(model: Any, repo_id: str) -> str:
    """The card of a model that nobody has evaluated: what it is made of, how it is used, what is missing here.

    Args:
        model (`RavlmPreTrainedModel`): the model.
        repo_id (`str`): where it is published.
    """
    data = card_metadata(base_models=base_models_of(model.config))
    use, part = usage(repo_id), type(model).__name__
    if not model.can_generate():  # a pipeline would make up the weights that are missing
        data.pipeline_tag = None
        use = f'This is its `{part}` alone, without a reader: `hf_ravlm.{part}.from_pretrained("{repo_id}")`.'
    body = "\n\n".join(
        [
            describe(model.config, model.num_parameters()),
            "## Use it\n\n" + use,
            "## Figures\n\nNot evaluated yet. `hf-ravlm evaluate` measures the model closed-book, with what it "
            "retrieves and with the right passage; `hf-ravlm card` writes the figures here.",
        ]
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n\n{BEGIN}\n\n{body}\n\n{END}\n"


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


def base_models_of(config: RavlmConfig) -> list[str]:
    """The Hub ids of the backbones that a model was assembled from, as far as its config knows them."""
    parts = (config.vision_config, config.text_config, config.generator_config)
    names = [getattr(part, "_name_or_path", "") or "" for part in parts]
    return list(dict.fromkeys(name for name in names if _HUB_ID.fullmatch(name) and not os.path.exists(name)))


def describe(config: RavlmConfig, num_parameters: int) -> str:
    """What the model is made of, in a paragraph."""
    parts = {"vision tower": config.vision_config, "text encoder": config.text_config}
    towers = ", ".join(f"{part.model_type} as {name}" for name, part in parts.items())
    return (
        f"A retrieval-augmented vision-language model of {num_parameters / 1e6:,.1f} million parameters: shown a "
        "picture and asked a question, it finds passages in a knowledge base and answers from them, with sources. "
        f"It is made of {towers}, {config.generator_config.model_type} as reader; fusion `{config.fusion}`, "
        f"{config.num_passages} passages per question."
    )


def usage(name: str) -> str:
    """How the model is used, as a block of code."""
    lines = (
        "import hf_ravlm",
        "from transformers import pipeline",
        "",
        f'ask = pipeline("visual-question-answering", model="{name}")',
        'ask(image="picture.png", question="What is this?")',
    )
    return "\n".join(["```python", *lines, "```"])


def card_of_folder(name_or_path: str | None) -> str | None:
    """The card that lies in the folder a model came from, if there is one."""
    path = Path(name_or_path or "") / CARD
    return path.read_text(encoding="utf-8") if name_or_path and path.is_file() else None
