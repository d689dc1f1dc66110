"""The card of a published knowledge base: counts, licences, sources, encoder, index, how to load it.

The part between the two marks is written at every push; what a person writes before or after it stays, and so do the
fields of the YAML head that are not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...saving.cards import as_code, count_table, hub_licence, plain_text, value_counts, written_card
from ..encoding.reference import describe_reference
from ..store.manifest import StoredFile, Version


_TAGS = ("hf_ravlm", "knowledge-base", "retrieval-augmented-generation")
# A store holds at most a hundred million passages.
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
_PASSAGES = "Texts and images are published as they are, under the licences above."
_VECTORS_ALONE = (
    "Only vectors are published. That does not keep the passages secret: from the vectors of a known encoder a good "
    "part of a text can be reconstructed. Treat them as you would treat the passages."
)
_COLUMN_TYPES = {"text": "large_string", "image": "image", "metadata": "large_string"}


def dataset_card(repo_id: str, version: Version, table: pa.Table, earlier: str | None = None) -> str:
    """The card of a dataset repository that holds a knowledge base.

    Args:
        repo_id: The repository.
        version: What is published.
        table: Its passages, also if they are not published.
        earlier: The card that is there already.
    """
    from huggingface_hub import DatasetCard

    head = _head(version, table)
    if earlier is not None:
        licence = DatasetCard(earlier, ignore_metadata_errors=True).data.to_dict().get("license")
        # A licence that a person wrote is worth more than an unknown one.
        if licence and {"other", "unknown"}.intersection([head["license"], *head["license"]]):
            head["license"] = licence
    return written_card(head, plain_text(repo_id.split("/")[-1]), _body(repo_id, version, table), earlier)


def _head(version: Version, table: pa.Table) -> dict[str, Any]:
    """The YAML head; `configs` and `dataset_info` let `datasets` read the passages and the Hub show them."""
    licences = sorted({hub_licence(name) if name else "unknown" for name, _ in value_counts(table, "licence")})
    data: dict[str, Any] = {
        "license": licences[0] if len(licences) == 1 else licences,
        # One category per number of digits, from three on.
        "size_categories": [_SIZES[min(max(len(str(len(table))) - 3, 0), len(_SIZES) - 1)]],
        "tags": list(_TAGS),
    }
    passages = [file.fields["name"] for file in version.files_of("passages")]
    data |= {"configs": None, "dataset_info": None}  # without passages there are none, whatever the earlier card says
    if passages:
        data["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": passages}]}]
        columns = [{"name": name, "dtype": _COLUMN_TYPES.get(name, "string")} for name in table.schema.names]
        data["dataset_info"] = {"features": columns}
    return data


def _body(repo_id: str, version: Version, table: pa.Table) -> str:
    sections = {
        "Use it": _usage(repo_id, version),
        "Licences": count_table(table, "licence", "none stated"),
        "Sources": count_table(table, "source", "none stated"),
        "What publishing this means": (_PASSAGES if version.files_of("passages") else _VECTORS_ALONE),
    }
    return "\n\n".join([_summary(version, table), *(f"## {title}\n\n{text}" for title, text in sections.items())])


def _summary(version: Version, table: pa.Table) -> str:
    num_texts, num_images = (len(table) - table[name].null_count for name in ("text", "image"))
    characters = int(pc.sum(pc.fill_null(pc.utf8_length(table["text"]), 0)).as_py() or 0)
    passages, vectors, index = (version.files_of(role) for role in ("passages", "vectors", "index"))
    rows = {
        "passages": f"{len(table):,} ({num_texts:,} with text, {num_images:,} with image)",
        "text": f"{characters:,} characters",
        "published": ", ".join(
            f"{role} ({_megabytes(files)})" for role, files in (("passages", passages), ("vectors", vectors)) if files
        ),
    }
    if vectors:
        encoder = version.manifest["encoder"]
        rows |= {
            "vectors": f"{len(table):,} x {encoder['dim']}, float32, unit length, for inner products",
            "encoder": _encoder(encoder),
            "index": version.manifest["index"]["kind"] + (f" ({_megabytes(index)})" if index else ""),
        }
    intro = (
        "A knowledge base for retrieval-augmented models, written by `hf_ravlm`. Every file is listed with its "
        "SHA-256 in `manifests/` and verified when it is opened."
    )
    return "\n".join([intro, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _encoder(record: Mapping[str, Any]) -> str:
    """The encoder by its description and fingerprint, and by the name that loads it again."""
    told = f"{as_code(record['name'])}, fingerprint {as_code(record['fingerprint'])}"
    reference = record.get("reference")
    return told if reference is None else f"{as_code(describe_reference(reference))}: {told}"


def _usage(repo_id: str, version: Version) -> str:
    lines = ["from hf_ravlm import KnowledgeBase, RavlmRetriever", ""]
    has_passages = bool(version.files_of("passages"))
    if has_passages:
        lines.append(f'knowledge_base = KnowledgeBase.from_pretrained("{repo_id}")  # the passages, for any encoder')
    else:
        lines.append("knowledge_base = ...  # the passages, read as the publisher did, in the same order")
    if version.files_of("vectors"):
        own = "" if has_passages else ", knowledge_base=knowledge_base"
        given = ""
        if version.manifest["encoder"].get("reference") is None:  # else it is loaded again by its name
            lines.append("encoder = ...  # the one named above")
            given = ", encoder"
        lines.append(f'retriever = RavlmRetriever.from_pretrained("{repo_id}"{given}, repo_type="dataset"{own})')
    return "\n".join(["```python", *lines, "```"])


def _megabytes(files: list[StoredFile]) -> str:
    num_bytes = sum(file.num_bytes for file in files)
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"
