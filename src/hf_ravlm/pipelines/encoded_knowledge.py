"""States that a reader's text encoder gives to every token of every passage, kept for all questions.

They do not depend on the question, and every fusion but `in_context` reads them instead of the text. They are kept in
one memory-mapped Arrow file, in bfloat16: 77 KB for 100 tokens of 384 channels.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers.utils.logging import tqdm

from ..errors import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseMismatchError, UnsafeInputError
from ..model import RavlmForConditionalGeneration, RavlmProcessor
from ..model.loading import without_adapters
from ..retrieval import KnowledgeBase, Passage
from ..retrieval.encoding.inference_model import fingerprint_of
from ..retrieval.id_places import IdPlaces
from ..retrieval.passage import input_digest
from ..saving.durable import publish_file


# Batches are sorted by length among this many, which bounds what waits in memory: 80 MB at 77 KB per passage.
_BATCHES_PER_WINDOW = 16


class EncodedKnowledge:
    """States of the passages of one knowledge base, for one reader.

    `build` and `open` make it; pipelines and `answer_questions` take it as `encoded_knowledge`.

    Args:
        knowledge_base (`KnowledgeBase`): the passages.
        states (`pyarrow.ChunkedArray`): for each passage, in order, the list of its tokens' states: `(C,)` in uint16,
            the bits of bfloat16, which neither Arrow nor numpy has.

    Raises:
        InvalidInputError: The states are of another number of passages.

    Example:

    >>> encoded = EncodedKnowledge.build(model, processor, retriever.knowledge_base, "states.arrow")  # doctest: +SKIP
    >>> ask("kite.png", question="What is this?", encoded_knowledge=encoded)  # doctest: +SKIP
    """

    def __init__(self, knowledge_base: KnowledgeBase, states: pa.ChunkedArray):
        if len(states) != len(knowledge_base):
            raise InvalidInputError(
                f"states of {len(states)} passages came with a knowledge base of {len(knowledge_base)}; build them "
                "again: EncodedKnowledge.build(model, processor, knowledge_base, path)"
            )
        self.knowledge_base = knowledge_base
        self.states = states
        self._places = IdPlaces(knowledge_base.table["id"])
        self._width = states.type.value_type.list_size
        # Of each chunk: its first passage, where each passage begins, and the states of all tokens, not copied.
        self._starts = [0, *accumulate(map(len, states.chunks))]
        self._offsets = [chunk.offsets.to_numpy() for chunk in states.chunks]
        self._values = [chunk.values.flatten().to_numpy().reshape(-1, self._width) for chunk in states.chunks]

    @classmethod
    def build(
        cls,
        model: RavlmForConditionalGeneration,
        processor: RavlmProcessor,
        knowledge_base: KnowledgeBase,
        path: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
    ) -> EncodedKnowledge:
        """Reads all passages once.

        Args:
            model, processor: the reader.
            knowledge_base: the passages.
            path: the file to write, which appears when it is whole; `None` keeps the states in memory.
            batch_size: passages that are read at once, of similar length.

        Raises:
            InvalidInputError: The reader sees words of passages and no states (`fusion="in_context"`).
            UnsafeInputError: A state is NaN or infinite, or an image cannot be used.
            OSError: The disk refuses.
        """
        check_reader(model)
        if batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected at least 1.")

        def write(sink: Any) -> None:
            was_training = model.training
            model.eval()
            try:
                fingerprint = states_fingerprint(model, processor, knowledge_base)
                _write(sink, _windows(model, processor, knowledge_base, batch_size), fingerprint)
            finally:
                model.train(was_training)

        if path is None:
            sink = pa.BufferOutputStream()
            write(sink)
            return cls(knowledge_base, _read(pa.BufferReader(sink.getvalue()), "memory")[0])

        def write_file(temporary: Path) -> None:
            with pa.OSFile(os.fspath(temporary), "wb") as sink:
                write(sink)

        publish_file(write_file, Path(path).parent, lambda _: Path(path))
        return cls.open(model, processor, knowledge_base, path)

    @classmethod
    def open(
        cls,
        model: RavlmForConditionalGeneration,
        processor: RavlmProcessor,
        knowledge_base: KnowledgeBase,
        path: str | os.PathLike[str],
    ) -> EncodedKnowledge:
        """Maps what `build` wrote into memory; the file must not change while it is in use.

        Raises:
            FileNotFoundError: There is no file.
            KnowledgeBaseCorruptError: It is damaged or holds something else.
            KnowledgeBaseMismatchError: The states are of another reader or other passages.
        """
        check_reader(model)
        try:
            source = pa.memory_map(os.fspath(path))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise _broken(path, str(error)) from error
        states, made_by = _read(source, path)
        fingerprint = states_fingerprint(model, processor, knowledge_base)
        if made_by != fingerprint:
            raise KnowledgeBaseMismatchError(
                f"{os.fspath(path)}: these states were made by another encoder or of other passages (fingerprint "
                f"{made_by[:12]}) than those in use (fingerprint {fingerprint[:12]}). Build them again: "
                "EncodedKnowledge.build(model, processor, knowledge_base, path)"
            )
        return cls(knowledge_base, states)

    def gather(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies the states of passages, padded at the right with zeros to the longest of them.

        Args:
            rows: `(B, K)` positions in the knowledge base; -1 stands for no passage.

        Returns:
            States `(B, K, L, C)` in bfloat16, and a mask `(B, K, L)`, true at tokens; L is at least 1.
        """
        places = np.asarray(rows, np.int64)
        tokens = [self._tokens(row) for row in places.flat]
        lengths = np.array([len(states) for states in tokens], np.int64).reshape(places.shape)
        mask = np.arange(max(lengths.max(initial=0), 1)) < lengths[..., None]  # (B, K, L)
        padded = np.zeros((*mask.shape, self._width), np.uint16)
        if tokens:
            padded[mask] = np.concatenate(tokens)
        return torch.from_numpy(padded).view(torch.bfloat16), torch.from_numpy(mask)

    def _tokens(self, row: int) -> np.ndarray:
        """The states of one passage `(L, C)`, a view of the mapped file; none for -1."""
        if row < 0:
            return np.zeros((0, self._width), np.uint16)
        chunk = bisect_right(self._starts, row) - 1
        offsets, place = self._offsets[chunk], row - self._starts[chunk]
        return self._values[chunk][offsets[place] : offsets[place + 1]]

    def replace_inputs(self, inputs: dict[str, Any], evidence: Sequence[Sequence[Any]]) -> None:
        """Puts stored states in the place of the passages' tokens and images, in the inputs of a batch.

        Args:
            inputs: what `RavlmProcessor` returned for this evidence; changed in place.
            evidence: per question its passages, with the ids of this knowledge base.

        Raises:
            InvalidInputError: A passage is not of this knowledge base.
        """
        if "evidence_input_ids" not in inputs:
            return
        tokens = inputs["evidence_input_ids"]  # (B, K, L)
        states, mask = self.gather(
            [[self._row(passage) for passage in row] + [-1] * (tokens.shape[1] - len(row)) for row in evidence]
        )
        for name in ("input_ids", "attention_mask", "pixel_values", "image_mask"):
            inputs.pop(f"evidence_{name}", None)
        inputs["evidence_states"], inputs["evidence_token_mask"] = states.to(tokens.device), mask.to(tokens.device)

    def _row(self, passage: Any) -> int:
        row = self._places.row_of(str(getattr(passage, "id", None)))
        if row is None:
            raise InvalidInputError(
                f"passage {getattr(passage, 'id', passage)!r} has no stored states: expected passages of the "
                "knowledge base that encoded_knowledge was built from"
            )
        return row


def check_reader(model: RavlmForConditionalGeneration) -> None:
    """Refuses readers that read no states.

    Raises:
        InvalidInputError: The fusion is `in_context`.
    """
    if model.config.fusion == "in_context":
        raise InvalidInputError(
            "fusion='in_context' reads the words of passages, so there are no states to keep; it fits the fusions "
            "concat, product, attention, gated and cross_attention"
        )


def states_fingerprint(
    model: RavlmForConditionalGeneration, processor: RavlmProcessor, knowledge_base: KnowledgeBase
) -> str:
    """Identifies what the states are made by and of: text encoder, with images also vision tower, and passages."""
    reader = without_adapters(model)
    parts = [reader.model.text_encoder]
    if processor.passage_images:
        parts += [reader.model.vision_tower, reader.evidence_image_projector]
    settings = {
        "passage_images": processor.passage_images,
        "num_image_tokens": reader.config.num_image_tokens,
        "passages": input_digest(knowledge_base.table),
    }
    return fingerprint_of(nn.ModuleList(parts), {**processor.retrieval_fingerprint(), **settings})


@torch.inference_mode()
def _encode(
    model: RavlmForConditionalGeneration, processor: RavlmProcessor, passages: list[Passage]
) -> list[torch.Tensor]:
    """The states of each passage `(L, C)`, without padding."""
    evidence = [[{"text": passage.text, "image": passage.image}] for passage in passages]
    inputs = processor(text=["?"] * len(passages), evidence=evidence).to(model.device)
    pixels = inputs.get("evidence_pixel_values")
    states, mask = without_adapters(model).encode_evidence(
        inputs["evidence_input_ids"],
        inputs["evidence_attention_mask"],
        None if pixels is None else pixels.to(model.dtype),
        inputs.get("evidence_image_mask"),
    )
    found = [row[keep] for row, keep in zip(states[:, 0].to(torch.bfloat16), mask[:, 0], strict=True)]
    for passage, row in zip(passages, found, strict=True):
        if not row.isfinite().all():
            raise UnsafeInputError(f"The states of passage {passage.id!r} are NaN or infinite. Check the encoder.")
    return [row.cpu() for row in found]


def _windows(
    model: RavlmForConditionalGeneration, processor: RavlmProcessor, knowledge_base: KnowledgeBase, batch_size: int
) -> Iterator[list[torch.Tensor]]:
    """The states of all passages in order, window by window, each read from its longest text to its shortest."""
    text_lengths = np.asarray(knowledge_base.text_lengths())
    starts = range(0, len(knowledge_base), batch_size * _BATCHES_PER_WINDOW)
    for start in tqdm(starts, desc="Encoding passages") if len(starts) > 1 else starts:
        order = start + np.argsort(text_lengths[start : start + starts.step], kind="stable")[::-1]
        states: dict[int, torch.Tensor] = {}
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size].tolist()
            states.update(zip(rows, _encode(model, processor, knowledge_base.passages(rows)), strict=True))
        yield [states[row] for row in range(start, start + len(order))]


def _write(sink: Any, windows: Iterator[list[torch.Tensor]], fingerprint: str) -> None:
    """One Arrow file, a record batch per window."""
    writer = None
    for window in windows:
        values = torch.cat(window).contiguous().view(torch.uint16)  # (T, C)
        offsets = np.cumsum([0, *map(len, window)], dtype=np.int64)
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), values.shape[1])
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), tokens)
        schema = _schema(values.shape[1], fingerprint)
        writer = writer or pa.ipc.new_file(sink, schema)
        writer.write(pa.record_batch([lists], schema=schema))
    (writer or pa.ipc.new_file(sink, _schema(1, fingerprint))).close()


def _schema(width: int, fingerprint: str) -> pa.Schema:
    kind = pa.large_list(pa.list_(pa.uint16(), width))
    return pa.schema([("states", kind)], metadata={"fingerprint": fingerprint})


def _read(source: Any, path: str | os.PathLike[str]) -> tuple[pa.ChunkedArray, str]:
    """The states, mapped and not copied, and the fingerprint of what they were made by."""
    try:
        table = pa.ipc.open_file(source).read_all()
        states = table["states"]
        if states.type != _schema(states.type.value_type.list_size, "").field("states").type:
            raise TypeError(f"it holds {states.type}")
        states.validate(full=True)  # reads the offsets alone
        return states, table.schema.metadata[b"fingerprint"].decode()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, str(error)) from error


def _broken(path: str | os.PathLike[str], reason: str) -> KnowledgeBaseCorruptError:
    return KnowledgeBaseCorruptError(
        f"{os.fspath(path)}: the stored states cannot be read: {reason}. They are made from the passages: build them "
        "again."
    )
