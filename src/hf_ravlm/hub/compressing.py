"""A saved system made smaller: its reader pruned and quantized, its knowledge base without what nobody needs.

Pruning is that of `torch.nn.utils.prune`; eight bits are those of torchao, four those of bitsandbytes. transformers
loads either again by itself.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InvalidInputError
from ..evaluation.model_evaluation import read_questions
from ..evaluation.questions import Question
from ..model.parts.pruning import bytes_of, check_amount, keep_zeros, prune_layers, share_of_zeros
from ..model.parts.quantized import HEADS
from ..pipelines.opening import open_pipeline
from ..pipelines.searching import find_evidence
from ..saving.folders import files_in


if TYPE_CHECKING:
    from ..retrieval import RavlmRetriever

logger = logging.getLogger(__name__)

PACKAGES = {"int8": "torchao", "int4": "bitsandbytes"}
_BLOCK = 1024
_BATCH = 32


class Recovers(Protocol):
    """What trains a reader whose weights are masked: `hf_ravlm.training.recovering.Recovery`."""

    def rows(self) -> Any:
        """What there is to learn from, or an error."""

    def train(self, system: Any) -> None:
        """Trains the reader of a pipeline."""


@dataclass(frozen=True)
class Compression:
    """What became smaller, from what to what.

    Attributes:
        weights: Bytes of the model in memory, before and after.
        zeros: The share of zeros in the linear layers of the reader.
        passages: How many there were, and are.
        index: Bytes of the vector index in memory, before and after.
        folder: Bytes of what was written.
    """

    weights: tuple[int, int]
    zeros: float
    passages: tuple[int, int]
    index: tuple[int, int]
    folder: int

    def to_record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def compress(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    prune: float | str | None = None,
    quantize: str | None = None,
    recover: Recovers | None = None,
    drop_duplicates: float | None = None,
    questions: str | os.PathLike[str] | None = None,
    index: str | None = None,
) -> Compression:
    """Writes a smaller copy of a saved system.

    Args:
        model: A folder or Hub id of a saved system.
        out: The folder to write.
        prune: The share of the smallest weights in each linear layer of the reader that become zeros, or `"2:4"`.
        quantize: `"int8"` or `"int4"`: the weights of the reader's linear layers, by torchao or bitsandbytes.
        recover: Trains the pruned reader before it is quantized, such as `Recovery("questions.jsonl")`.
        drop_duplicates: From 0 to 1: of passages whose vectors are at least so alike (cosine), the first stays.
        questions: A log of what is asked, as `hf-ravlm evaluate` reads questions: passages that a reader gets for none
            of them go. Give many, and of the kind that is to come: what nobody asked so far is forgotten.
        index: Another kind of vector index, such as `"binary"` (one bit a number, ranked again by whole vectors) or
            `"ivf_sq8"`.

    Returns:
        What became smaller.

    Raises:
        InvalidInputError: Nothing is asked for, a setting is out of range, a package is missing, or the system cannot
            be compressed so.
    """
    if all(part is None for part in (prune, quantize, drop_duplicates, questions, index)):
        raise InvalidInputError(
            "there is nothing to do: give `prune=`, `quantize=`, `drop_duplicates=`, `questions=` or `index=`"
        )
    if prune is not None:
        check_amount(prune)
    if recover is not None and prune is None:
        raise InvalidInputError("`recover=` is of pruned weights: give `prune=`, too")
    if quantize is not None and quantize not in PACKAGES:
        raise InvalidInputError(f"quantize={quantize!r}: expected one of {', '.join(PACKAGES)}")
    if drop_duplicates is not None and not 0 < drop_duplicates <= 1:
        raise InvalidInputError(f"drop_duplicates={drop_duplicates}: expected a cosine above 0 and at most 1")
    if quantize is not None:
        check_installed(quantize)
    if Path(out).exists() and any(Path(out).iterdir()):
        raise InvalidInputError(f"{os.fspath(out)}: something lies there; name a new folder")
    asked = None if questions is None else list(read_questions(questions))
    if recover is not None:
        recover.rows()
    pipe = open_pipeline(os.fspath(model), device="cpu")
    reader, retriever = pipe.model, pipe.retriever
    if retriever is None and any(part is not None for part in (drop_duplicates, asked, index)):
        raise InvalidInputError(f"{os.fspath(model)}: there is no knowledge base beside this model")
    before = (memory_of(reader), 0 if retriever is None else len(retriever), index_memory(retriever))
    if prune is not None:
        prune_layers(reader.language_model, prune)
        if recover is not None:
            recover.train(pipe)
        keep_zeros(reader.language_model)
    zeros = share_of_zeros(reader.language_model)
    if quantize is not None:
        pipe.model = quantized(reader, quantize)
    if asked is not None:
        retriever = copied(retriever, never_read(retriever, asked, reader.config.num_passages))
    if drop_duplicates is not None:
        retriever = copied(retriever, alike(retriever, drop_duplicates))
    if index is not None:
        retriever = copied(retriever, kind=index)
    pipe.retriever = retriever
    pipe.save_pretrained(out)
    passages = 0 if retriever is None else len(retriever)
    written = sum(path.stat().st_size for path in files_in(out).values())
    weights = (before[0], memory_of(pipe.model))
    return Compression(weights, zeros, (before[1], passages), (before[2], index_memory(retriever)), written)


def check_installed(kind: str) -> None:
    """Refuses a number of bits whose package is not here.

    Raises:
        InvalidInputError: With the package.
    """
    if find_spec(PACKAGES[kind]) is None:
        raise InvalidInputError(f"quantizing to {kind} needs {PACKAGES[kind]}: pip install {PACKAGES[kind]}")


def quantized(reader: Any, kind: str) -> Any:
    """The same reader with quantized weights, which are made while it is loaded."""
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    settings: Any
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        settings = TorchAoConfig(Int8WeightOnlyConfig())
    else:  # torchao packs four bits for GPUs alone
        computing = {"bnb_4bit_compute_dtype": reader.dtype, "bnb_4bit_quant_type": "nf4"}
        whole = left_whole(reader.language_model)
        settings = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=whole, **computing)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reader.save_pretrained(folder)
        return type(reader).from_pretrained(folder, quantization_config=settings)


def left_whole(language_model: Any) -> list[str]:
    """The layers of a reader that four bits cannot be had of on every processor, for a copy is opened on any.

    bitsandbytes quantizes 64 weights at a time, and its kernels for bfloat16 take rows of whole blocks, 32 at a time.

    Raises:
        InvalidInputError: They are all of its layers.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    last = language_model.get_output_embeddings()
    layers = {
        name: layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
        for name, layer in language_model.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not last
    }
    narrow = [name for name, (outputs, inputs) in layers.items() if inputs % 64 or outputs % 32]
    if len(narrow) == len(layers):
        raise InvalidInputError(
            "int4 takes layers whose inputs are a multiple of 64 and outputs one of 32, and this reader has none: "
            "choose int8"
        )
    return [f"language_model.{name}" for name in narrow] + list(HEADS)


def never_read(retriever: RavlmRetriever, questions: Sequence[Question], k: int) -> list[str]:
    """The ids of passages that are among the first `k` of no question, and that none names as its own.

    Raises:
        InvalidInputError: There is no question, or an image cannot be used.
    """
    if not questions:
        raise InvalidInputError("there is no question among those that say what is read: give what was asked so far")
    read = {name for question in questions for name in question.gold_ids}
    for start in range(0, len(questions), _BATCH):
        batch = questions[start : start + _BATCH]
        words = [question.question for question in batch]
        found = find_evidence(retriever, [question.image for question in batch], words, k)
        read |= {passage.id for row in found for passage in row}
    gone = [name for name in retriever.knowledge_base.ids if name not in read]
    if len(gone) > len(retriever) / 2:
        logger.warning("%d questions read few passages: %d of %d go.", len(questions), len(gone), len(retriever))
    return gone


def alike(retriever: RavlmRetriever, least: float) -> list[str]:
    """The ids of passages that are as good as said by one before them."""
    vectors = np.asarray(retriever.vectors, np.float32)
    kept: list[int] = []
    gone: list[int] = []
    for start in range(0, len(vectors), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(vectors)))
        earlier = vectors[rows.start : rows.stop] @ vectors[kept].T if kept else np.zeros((len(rows), 0), np.float32)
        among = vectors[rows.start : rows.stop] @ vectors[rows.start : rows.stop].T
        new: list[int] = []
        for place, row in enumerate(rows):
            if (earlier[place] >= least).any() or (among[place, [n - start for n in new]] >= least).any():
                gone.append(row)
            else:
                new.append(row)
        kept += new
    return list(retriever.knowledge_base.table["id"].take(pa.array(gone, pa.int64())).to_pylist())


def copied(retriever: RavlmRetriever, without: Sequence[str] = (), kind: str | None = None) -> RavlmRetriever:
    """The same passages, but for some, perhaps under another index; in memory, for what was opened stays as it is."""
    from ..retrieval import KnowledgeBase, RavlmRetriever

    table, options = retriever.knowledge_base.table, retriever.options
    kept = ~np.asarray(pc.is_in(table["id"], value_set=pa.array(without, pa.string())))
    if not kept.any():
        raise InvalidInputError("no passage would be left")
    options = options if kind is None else options._replace(kind=kind)
    parts = (KnowledgeBase(table.filter(pa.array(kept))), retriever.encoder, retriever.vectors[kept])
    return RavlmRetriever(*parts, retriever.encoder_fingerprint, options)


def memory_of(model: Any) -> int:
    """Bytes of all weights; shared ones count once."""
    return sum(bytes_of(weight) for weight in model.parameters())


def index_memory(retriever: RavlmRetriever | None) -> int:
    """Bytes that searching a knowledge base takes, beside its passages."""
    if retriever is None:
        return 0
    from ..retrieval.indexes.index_choice import estimate_index

    spec = retriever.index.spec
    return int(estimate_index(len(retriever), retriever.index.dim, spec["kind"]).ram_bytes)
