"""Knows what the card of a published knowledge base says: counts, licences, sources, encoder, index, how to load it.

The part between the two marks is written at every push; what a person writes before or after it stays, and so do the
fields of the YAML head that are not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..store.manifest import Generation, StoredFile


CARD = "README.md"
BEGIN = "<!-- hf_ravlm: from here on written at every push -->"
END = "<!-- hf_ravlm: up to here written at every push -->"

_MAX_ROWS = 20
_TAGS = ("hf_ravlm", "knowledge-base", "retrieval-augmented-generation")
# A store holds at most a hundred million passages.
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_LARGEST_SIZE = "10M<n<100M"

# The Hub's names for the licences that knowledge is under, https://huggingface.co/docs/hub/repositories-licenses.
_HUB_LICENCES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsl-1.0 c-uda cc-by-2.0 cc-by-2.5 cc-by-3.0 "
    "cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 "
    "cdla-sharing-1.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl-2.0 gpl-3.0 isc lgpl-2.1 lgpl-3.0 lgpl-lr mit mpl-2.0 "
    "odbl odc-by ofl-1.1 pddl unlicense wtfpl zlib".split()
)
_OTHER_NAMES = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "cc0": "cc0-1.0"}
_COLUMN_TYPES = {"text": "large_string", "image": "image", "metadata": "large_string"}


def dataset_card(repo_id: str, generation: Generation, table: pa.Table, earlier: str | None = None) -> str:
    """Returns the card of a dataset repository that holds a knowledge base.

    Args:
        repo_id: The repository.
        generation: What is published.
        table: Its passages, also if they are not published.
        earlier: The card that is there already.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    body = f"{BEGIN}\n\n{_body(repo_id, generation, table)}\n\n{END}"
    data = _head(generation, table)
    if earlier is None:
        text = f"# {plain(repo_id.split('/')[-1])}\n\n{body}\n"
    else:
        card = DatasetCard(earlier, ignore_metadata_errors=True)
        text = with_written_part(card.text, body)
        data = _joined_heads(card.data.to_dict(), data)
    return f"---\n{DatasetCardData(**data).to_yaml()}\n---\n\n{text.lstrip()}"


def hub_licence(licence: str) -> str:
    """The Hub's name of a licence, `"other"` if it has none.

    >>> hub_licence("CC-BY-SA-4.0"), hub_licence("ODbL-1.0"), hub_licence("WordNet")
    ('cc-by-sa-4.0', 'odbl', 'other')
    """
    name = "-".join(licence.lower().split())
    name = _OTHER_NAMES.get(name, name)
    for ending in ("-only", "-or-later"):
        name = name.removesuffix(ending)
    return name if name in _HUB_LICENCES else "other"


def _head(generation: Generation, table: pa.Table) -> dict[str, Any]:
    """The YAML head; `configs` and `dataset_info` let `datasets` read the passages and the Hub show them."""
    licences = sorted({hub_licence(name) if name else "unknown" for name, _ in _counts(table, "licence")})
    data: dict[str, Any] = {
        "license": licences[0] if len(licences) == 1 else licences,
        "size_categories": [next((name for most, name in _SIZES.items() if len(table) < most), _LARGEST_SIZE)],
        "tags": list(_TAGS),
    }
    passages = [file.fields["name"] for file in generation.files_of("passages")]
    if passages:
        data["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": passages}]}]
        columns = [{"name": name, "dtype": _COLUMN_TYPES.get(name, "string")} for name in table.schema.names]
        data["dataset_info"] = {"features": columns}
    return data


def _joined_heads(earlier: Mapping[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Our fields over those that were there; a licence that a person wrote is worth more than an unknown one."""
    joined = {name: value for name, value in earlier.items() if name not in ("configs", "dataset_info")}
    joined |= ours
    tags = earlier.get("tags")
    if isinstance(tags, list):
        joined["tags"] = [*tags, *(tag for tag in ours["tags"] if tag not in tags)]
    if earlier.get("license") and {"other", "unknown"}.intersection([ours["license"], *ours["license"]]):
        joined["license"] = earlier["license"]
    return joined


def with_written_part(text: str, body: str, begin: str = BEGIN, end: str = END) -> str:
    """The text of a card with what stands between two marks, and the marks, replaced by `body`; else added at the end.

    >>> with_written_part("Mine. (old) Mine, too.", "(new)", "(", ")")
    'Mine. (new) Mine, too.'
    """
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    return f"{before}{body}{after}" if has_begin and has_end else f"{text.rstrip()}\n\n{body}\n"


def _body(repo_id: str, generation: Generation, table: pa.Table) -> str:
    sections = [
        _summary(generation, table),
        "## Use it\n\n" + _usage(repo_id, generation),
        "## Licences\n\n" + count_table(table, "licence", "none stated"),
        "## Sources\n\n" + count_table(table, "source", "none stated"),
        "## What publishing this means\n\n" + _warning(generation),
    ]
    return "\n\n".join(sections)


def _summary(generation: Generation, table: pa.Table) -> str:
    num_texts, num_images = (len(table) - table[name].null_count for name in ("text", "image"))
    characters = int(pc.sum(pc.fill_null(pc.utf8_length(table["text"]), 0)).as_py() or 0)
    passages, vectors, index = (generation.files_of(role) for role in ("passages", "vectors", "index"))
    rows = {
        "passages": f"{len(table):,} ({num_texts:,} with text, {num_images:,} with image)",
        "text": f"{characters:,} characters",
        "published": ", ".join(
            f"{role} ({_megabytes(files)})" for role, files in (("passages", passages), ("vectors", vectors)) if files
        ),
    }
    if vectors:
        encoder = generation.manifest["encoder"]
        rows |= {
            "vectors": f"{len(table):,} x {encoder['dim']}, float32, unit length, for inner products",
            "encoder": f"{_code(encoder['name'])}, fingerprint {_code(encoder['fingerprint'])}",
            "index": generation.manifest["index"]["kind"] + (f" ({_megabytes(index)})" if index else ""),
        }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(
        [
            "A knowledge base for retrieval-augmented models, written by `hf_ravlm`. Every file is listed with its "
            "SHA-256 in `manifests/` and verified when it is opened.",
            "",
            "| | |",
            "|---|---|",
            *lines,
        ]
    )


def _usage(repo_id: str, generation: Generation) -> str:
    lines = ["from hf_ravlm import KnowledgeBase, RavlmRetriever", ""]
    has_passages, has_vectors = bool(generation.files_of("passages")), bool(generation.files_of("vectors"))
    if has_passages:
        lines.append(f'knowledge_base = KnowledgeBase.from_pretrained("{repo_id}")  # the passages, for any encoder')
    if has_vectors:
        own = "" if has_passages else ", knowledge_base=knowledge_base"
        if own:
            lines.append("knowledge_base = ...  # the passages, read as the publisher did, in the same order")
        lines.append("encoder = ...  # the one named above")
        lines.append(f'retriever = RavlmRetriever.from_pretrained("{repo_id}", encoder, repo_type="dataset"{own})')
    return "\n".join(["```python", *lines, "```"])


def _warning(generation: Generation) -> str:
    if generation.files_of("passages"):
        return "Texts and images are published as they are, under the licences above."
    return (
        "Only vectors are published. That does not keep the passages secret: from the vectors of a known encoder a "
        "good part of a text can be reconstructed. Treat them as you would treat the passages."
    )


def count_table(table: pa.Table, column: str, missing: str) -> str:
    """How many passages have each value of a column, as a Markdown table; `missing` stands for none."""
    counts = _counts(table, column)
    lines = [f"| {plain(name) if name else missing} | {count:,} |" for name, count in counts[:_MAX_ROWS]]
    if len(counts) > _MAX_ROWS:
        lines.append(f"| {len(counts) - _MAX_ROWS:,} others | {sum(count for _, count in counts[_MAX_ROWS:]):,} |")
    return "\n".join([f"| {column} | passages |", "|---|---|", *lines])


def _counts(table: pa.Table, column: str) -> list[tuple[str, int]]:
    """The values of a column with the number of passages that have each, most frequent first; "" for none."""
    values = pc.utf8_trim_whitespace(pc.fill_null(table[column], ""))
    counts = [(entry["values"], entry["counts"]) for entry in pc.value_counts(values).to_pylist()]
    return sorted(counts, key=lambda entry: (-entry[1], entry[0]))


def plain(text: str) -> str:
    """Text from data on one line of a table, without Markdown or HTML of its own: it may be a stranger's."""
    line = " ".join(text.split())[:200].replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|" else character for character in line)


def _code(text: str) -> str:
    """Text from data as code in a table."""
    return "`" + " ".join(text.split())[:200].replace("`", "'").replace("|", "/") + "`"


def _megabytes(files: list[StoredFile]) -> str:
    num_bytes = sum(file.num_bytes for file in files)
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"
