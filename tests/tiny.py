"""Tiny models, tokenizers and pictures, built in memory: what most tests stand on."""

from __future__ import annotations

import copy

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration, RavlmProcessor


SPECIALS = ["<pad>", "<bos>", "<eos>", "<image>", "<evidence>", "<passage>", "<question>", "<answer>"]
WORDS = ["the capital of Norway is Oslo and of Chad N'Djamena", "what is the capital of this country ?", "red white"]
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION = {"model_type": "vit", "image_size": 16, "patch_size": 4, **WIDTHS}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the marks of our prompts; every string can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=SPECIALS[3:],
    )


def tiny_config(**changes) -> RavlmConfig:
    """A configuration of a few ten thousand parameters; `changes` replace its fields."""
    tokens = len(tiny_tokenizer())
    fields = {
        "vision_config": VISION,
        "text_config": {"model_type": "bert", "vocab_size": tokens, "max_position_embeddings": 128, **WIDTHS},
        "generator_config": {
            "model_type": "llama",
            "vocab_size": tokens,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **WIDTHS,
        },
        "projection_dim": 16,
        "num_memory_tokens": 3,
    }
    return RavlmConfig(**{**fields, **changes})


_MADE: dict[str, tuple[RavlmForConditionalGeneration, torch.Tensor]] = {}  # making one costs more than copying it
FUSIONS = ["in_context", "concat", "product", "attention", "gated", "cross_attention"]


def tiny_model(seed: int = 0, **changes) -> RavlmForConditionalGeneration:
    """A reader with random weights, in eval mode; the same `seed` gives the same weights.

    The gates of cross-attention, closed in a new model, are half open, so that evidence matters.
    """
    key = repr((seed, sorted(changes.items())))
    if key not in _MADE:
        torch.manual_seed(seed)
        model = RavlmForConditionalGeneration(tiny_config(**changes)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("read_gate", "feed_forward_gate")):
                parameter.data.fill_(0.05)
        _MADE[key] = model, torch.get_rng_state()
    model, state = _MADE[key]
    torch.set_rng_state(state)  # as if it were made anew
    return copy.deepcopy(model)


def tiny_processor(**settings) -> RavlmProcessor:
    """The processor that fits `tiny_config`."""
    return RavlmProcessor(
        image_processor=ViTImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=tiny_tokenizer(),
        text_tokenizer=tiny_tokenizer(),
        **{"max_text_length": 64, "num_memory_tokens": 3, **settings},
    )


def assert_same_weights(loaded: torch.nn.Module, saved: torch.nn.Module) -> None:
    """Every weight of `loaded` is that of `saved` under its name, bit for bit."""
    kept = saved.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A random RGB picture; the same `seed` gives the same picture."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
