"""Any text encoder of transformers as an `Encoder`: prompt, tokenize once, batch, pool, normalise.

BERT-like encoders run packed, without padding (`packed_encoding`); all others in padded batches of similar lengths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ...errors import InvalidInputError
from ...tokenization import tokenize
from .encoders import Images, Texts, require_texts
from .inference_model import InferenceModel, tokenizer_digest
from .packed_encoding import PackedTextEncoder, equal_runs
from .prompts import stored_prompts
from .text_counts import TextCounts, counts_of, warn_of_queries
from .token_batches import encode_in_batches


Pooling = Literal["mean", "cls", "last"]

_BATCH_TOKENS = 4_096
_UNLIMITED = 1_000_000  # tokenizers without a limit say 10^30


class TextModelEncoder:
    """Encodes texts with an encoder such as BERT, MiniLM, E5, BGE or GTE, and its tokenizer.

    Images are ignored. It is a `MultiVectorEncoder`, too: one vector per token, marks of the tokenizer included.

    Args:
        model: Gives `last_hidden_state` (B, L, C) for `input_ids` and `attention_mask`.
        tokenizer: The tokenizer of the model. Marks such as `[SEP]` in a text are read as ordinary letters.
        pooling: How token states become one vector: their mean, the first (`"cls"`) or the last.
        query_prompt: Put before every query, such as `"query: "` for E5.
        passage_prompt: Put before every passage, such as `"passage: "`.
        max_length: The most tokens of a text, marks included; longer ones are cut. `None` for the model's limit.
        batch_tokens: How many tokens go through the model at once.
        dtype: See `RavlmEncoder`.

    Attributes:
        text_counts: How many texts were read and cut, see `TextCounts`.

    Raises:
        InvalidInputError: If `pooling` or `dtype` is not known, or a number is below 1.

    >>> encoder = TextModelEncoder.from_pretrained("intfloat/e5-small-v2", dtype="auto")  # doctest: +SKIP
    >>> encoder.encode_queries(None, ["What does a wren eat?"]).shape  # doctest: +SKIP
    (1, 384)
    """

    modalities = ("text",)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: Pooling = "mean",
        query_prompt: str = "",
        passage_prompt: str = "",
        max_length: int | None = None,
        batch_tokens: int = _BATCH_TOKENS,
        dtype: str | None = None,
    ) -> None:
        if pooling not in get_args(Pooling):
            raise InvalidInputError(f"pooling={pooling!r} is not known. Choose one of {get_args(Pooling)}.")
        max_length = longest_text(model, tokenizer) if max_length is None else max_length
        if min(max_length, batch_tokens) < 1:
            raise InvalidInputError(f"max_length={max_length} and batch_tokens={batch_tokens}: expected at least 1.")
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.query_prompt = query_prompt
        self.passage_prompt = passage_prompt
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.text_counts = TextCounts(limit=max_length)
        self._inference_model = InferenceModel(model, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        device: str | None = None,
        hub_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TextModelEncoder:
        """Loads model and tokenizer, and from a sentence-transformers folder also its pooling, prompts and length.

        Args:
            name: A folder or a Hub id.
            dtype: See the class.
            device: Such as `"cuda"`; `None` leaves the model on the CPU.
            hub_kwargs: `revision`, `token`, `cache_dir`, ... for the Hub.
            **kwargs: Arguments of the class, instead of what the folder says.

        Raises:
            InvalidInputError: If the folder has steps that this class does not know, such as a dense layer.
        """
        from transformers import AutoModel, AutoTokenizer

        hub_kwargs = hub_kwargs or {}
        settings = {**sentence_transformers_settings(name, hub_kwargs), **kwargs}
        model = AutoModel.from_pretrained(name, trust_remote_code=False, **hub_kwargs).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
        return cls(model if device is None else model.to(device), tokenizer, dtype=dtype, **settings)

    @property
    def name(self) -> str:
        """Class, number type and pooling of the model, for messages."""
        return f"{self._inference_model.describe()} pooling={self.pooling}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and their type, settings of the network, tokenizer, pooling, prompts and length."""
        return self._inference_model.fingerprint(
            tokenizer=tokenizer_digest(self.tokenizer),
            pooling=self.pooling,
            prompts=[self.query_prompt, self.passage_prompt],
            max_length=self.max_length,
        )

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of queries; every one needs a text."""
        before = counts_of(self)
        vectors = self._encode(_prompted(self.query_prompt, images, texts))
        warn_of_queries(self, before)
        return vectors

    def encode_passages(self, texts: Texts, images: Images | None = None) -> np.ndarray:
        """Returns unit vectors (n, D) of passages; every one needs a text."""
        return self._encode(_prompted(self.passage_prompt, images, texts))

    def encode_queries_tokens(self, images: Images | None, texts: Texts | None) -> list[np.ndarray]:
        """Returns per query the unit vectors (tokens, D) of its tokens."""
        return self._encode_tokens(_prompted(self.query_prompt, images, texts))

    def encode_passages_tokens(self, texts: Texts, images: Images | None = None) -> list[np.ndarray]:
        """Returns per passage the unit vectors (tokens, D) of its tokens."""
        return self._encode_tokens(_prompted(self.passage_prompt, images, texts))

    def _encode(self, texts: list[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, 0), np.float32)
        return np.stack(self._run(texts, lambda states, lengths: list(_unit(_pool(states, lengths, self.pooling)))))

    def _encode_tokens(self, texts: list[str]) -> list[np.ndarray]:
        return self._run(texts, lambda states, lengths: np.split(_unit(states.float()), np.cumsum(lengths)[:-1]))

    def _run(self, texts: list[str], finish: Callable[[Any, list[int]], list[np.ndarray]]) -> list[np.ndarray]:
        """Runs the model over texts; `finish` turns the states (T, C) of a batch into one array per text."""
        cut = {"truncation": True, "max_length": self.max_length, "split_special_tokens": True}
        tokenized = tokenize(self.tokenizer, texts, **cut)
        self.text_counts.note(self.tokenizer, tokenized, texts)
        ids = tokenized["input_ids"]
        with self._inference_model.running() as model:
            packed = isinstance(model, PackedTextEncoder)
            states_of = model.encode_texts if packed else partial(_padded_states, model)

            def encode(rows: list[int]) -> list[np.ndarray]:
                return finish(*states_of([ids[row] for row in rows], self._inference_model.device))

            lengths, tokens = [len(text) for text in ids], self.batch_tokens
            return encode_in_batches(encode, lengths, "Encoding texts", max_tokens=tokens, padded=not packed)


def _padded_states(model: Any, texts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """The padded counterpart of `PackedTextEncoder.encode_texts`; padding is on the right."""
    lengths = [len(text) for text in texts]
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(device)  # (B, L)
    keep = torch.arange(ids.shape[1], device=device) < torch.tensor(lengths, device=device)[:, None]  # (B, L)
    states = model(input_ids=ids, attention_mask=keep.long()).last_hidden_state
    return states[keep], lengths  # (T, C)


def _pool(states: torch.Tensor, lengths: list[int], pooling: str) -> torch.Tensor:
    """One vector per text (n, C) in float32 from the states (T, C) of their tokens."""
    pooled = torch.zeros(len(lengths), states.shape[-1], device=states.device)  # a text without tokens stays zero
    text = 0
    for start, count, length in equal_runs(lengths):
        group = states[start : start + count * length].view(count, length, -1)
        pooled[text : text + count] = (
            group.float().mean(dim=1) if pooling == "mean" else group[:, 0 if pooling == "cls" else -1].float()
        )
        text += count
    return pooled


def _unit(vectors: torch.Tensor) -> np.ndarray:
    units: np.ndarray = F.normalize(vectors, dim=-1).cpu().numpy()
    return units


def _prompted(prompt: str, images: Images | None, texts: Texts | None) -> list[str]:
    return [prompt + text for text in require_texts(images, texts)]


def longest_text(model: Any, tokenizer: Any) -> int:
    """Returns the most tokens that model and tokenizer take; RoBERTa's positions begin after that of the padding."""
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    if isinstance(limits[0], int) and hasattr(model, "named_modules"):
        tables = [part for name, part in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
        offsets = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
        limits[0] -= max(offsets, default=0)
    return int(min([limit for limit in limits if isinstance(limit, int) and limit > 0] + [_UNLIMITED]))


def sentence_transformers_settings(name: Any, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns pooling, prompts and length that a folder of sentence-transformers names; nothing where it is none.

    Raises:
        InvalidInputError: If it holds what `TextModelEncoder` does not do.
    """
    modules = read_json(name, "modules.json", hub_kwargs)
    if modules is None:
        return {}
    types = [str(module["type"]) for module in modules]
    foreign = [kind for kind in types if not kind.startswith("sentence_transformers.")]
    if foreign:
        raise _not_for_us(name, f"it brings code of its own ({foreign[0]})")
    steps = [kind.rpartition(".")[2] for kind in types]
    if steps[:2] != ["Transformer", "Pooling"] or steps[2:] not in ([], ["Normalize"]):
        raise _not_for_us(name, f"its steps are {steps}")
    pooling_config = read_json(name, f"{modules[1]['path']}/config.json", hub_kwargs) or {}
    transformer = read_json(name, "sentence_bert_config.json", hub_kwargs) or {}
    if transformer.get("do_lower_case"):
        raise _not_for_us(name, "it lowers the case of letters outside the tokenizer")
    if pooling_config.get("include_prompt") is False:
        raise _not_for_us(name, "it leaves the prompt out of its pooling")
    seen = {part for modality in transformer.get("modality_config") or {} for part in modality.split("+")}
    if seen - {"text"}:
        raise _not_for_us(name, f"it reads {sorted(seen)}")
    stored = read_json(name, "config_sentence_transformers.json", hub_kwargs) or {}
    query, passage = stored_prompts(stored.get("prompts"), stored.get("default_prompt_name"))
    return {
        "pooling": _pooling_of(name, pooling_config),
        "query_prompt": query or "",
        "passage_prompt": passage or "",
        "max_length": transformer.get("max_seq_length"),
    }


def _pooling_of(name: Any, config: dict[str, Any]) -> str:
    known = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    if "pooling_mode" in config:  # as sentence-transformers 5 writes it
        modes = config["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else list(modes)
    else:  # such as "pooling_mode_cls_token": true
        flags = [key.removeprefix("pooling_mode_") for key, value in config.items() if value and "_mode_" in key]
        modes = [flag.removesuffix("_tokens").removesuffix("_token") for flag in flags]
    if len(modes) != 1 or modes[0] not in known:
        raise _not_for_us(name, f"its pooling is {modes}")
    return known[modes[0]]


def _not_for_us(name: Any, reason: str) -> InvalidInputError:
    known = "TextModelEncoder reads a transformer with mean, cls or last-token pooling"
    return InvalidInputError(f"{name}: {reason}. {known}; use SentenceTransformerEncoder for this model.")


def read_json(name: Any, file: str, hub_kwargs: dict[str, Any]) -> Any:
    """Returns what a JSON file of a folder or repository holds; `None` where there is none."""
    from transformers.utils import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is None:
        return None
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)
