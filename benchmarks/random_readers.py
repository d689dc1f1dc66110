"""A reader that sees images by itself, and an encoder, in the shapes of real ones with random weights.

They show cost, no quality. Nothing is downloaded: the tokenizer is of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hf_ravlm import from_backbones
from hf_ravlm.model.prompts.chat_processor import without_videos


MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READERS: dict[str, dict[str, dict[str, Any]]] = {  # of the type qwen3_vl
    "tiny": {
        "text": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 300,
            "mrope_section": [2, 1, 1],
        },
        "vision": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        "pixels": {"min_pixels": 64, "max_pixels": 1024},
    },
    "small": {
        "text": {
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 8192,
            "mrope_section": [12, 10, 10],
        },
        "vision": {
            "depth": 4,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 3,
            "patch_size": 16,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [1],
        },
        "pixels": {"min_pixels": 4096, "max_pixels": 65536},
    },
    "2b": {  # as Qwen3-VL-2B
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "mrope_section": [24, 20, 20],
        },
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "pixels": {"min_pixels": 65536, "max_pixels": 262144},
    },
}
_TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODERS: dict[str, dict[str, dict[str, Any]]] = {  # of the type siglip
    "tiny": {
        "vision_config": {"image_size": 16, "patch_size": 8, **_TINY_TOWER},
        "text_config": {"vocab_size": 300, "max_position_embeddings": 64, "projection_size": 32, **_TINY_TOWER},
    },
    "2b": {"vision_config": {"image_size": 224, "patch_size": 16}, "text_config": {}},  # SigLIP base
}
ENCODERS["small"] = ENCODERS["tiny"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and the marks of the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<bos>", "<eos>", *MARKS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, **options))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=MARKS, model_max_length=8192, **names
    )


def random_generator(size: str) -> tuple[Any, Any]:
    """A reader of the type qwen3_vl and its processor."""
    tokenizer, shape = byte_tokenizer(), READERS[size]
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = {name: value for name, value in shape["text"].items() if name != "mrope_section"}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
    rope["mrope_section"] = shape["text"]["mrope_section"]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        "qwen3_vl",
        text_config={**text, **special, "rope_parameters": rope, "tie_word_embeddings": True},
        vision_config={**shape["vision"], "out_hidden_size": text["hidden_size"]},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    images = Qwen2VLImageProcessorPil(patch_size=shape["vision"]["patch_size"], merge_size=2, **shape["pixels"])
    cls = without_videos(processor_class_from_name("Qwen3VLProcessor"))
    return AutoModelForImageTextToText.from_config(config), cls(images, tokenizer, None, chat_template=TEMPLATE)


def random_reader(size: str) -> tuple[Any, Any]:
    """Our reader with a dual encoder inside, and its processor."""
    generator, processor = random_generator(size)
    encoder = AutoModel.from_config(AutoConfig.for_model("siglip", **ENCODERS[size]))
    edge = encoder.config.vision_config.image_size
    return from_backbones(
        encoder=encoder,
        generator=generator,
        generator_processor=processor,
        image_processor=SiglipImageProcessorPil(size={"height": edge, "width": edge}),
        text_tokenizer=byte_tokenizer(),
        max_length=4096,
    )


def random_image(seed: int, edge: int) -> Image.Image:
    """A square of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), np.uint8))
