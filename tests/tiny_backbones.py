"""Tiny backbones of many families with their processors, built in memory and saved to folders: nothing of the Hub."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import from_backbones
from hf_ravlm.model.prompts.chat_processor import without_videos
from tiny import WIDTHS, WORDS, tiny_model, tiny_processor


SEED = 0
VISION_WIDTHS = {"image_size": 16, "patch_size": 4, **WIDTHS}
DINO = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

CAUSAL = {
    "llama": {"num_key_value_heads": 2, **WIDTHS},
    "qwen2": {"num_key_value_heads": 2, **WIDTHS},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8, **WIDTHS},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, **WIDTHS},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, **WIDTHS},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 512,
    },
    "mistral": {"num_key_value_heads": 2, **WIDTHS},
    "gpt_neox": WIDTHS,
}
VISION = {
    "vit": VISION_WIDTHS,
    "clip": {"vision_config": VISION_WIDTHS, "text_config": {"vocab_size": 400, **WIDTHS}, "projection_dim": 16},
    "siglip": {"vision_config": VISION_WIDTHS, "text_config": {"vocab_size": 400, **WIDTHS}},
    "dinov2": DINO,
    "dinov2_with_registers": {**DINO, "num_register_tokens": 4},
    "dinov3_vit": {**DINO, "num_register_tokens": 4, "intermediate_size": 48},
    "convnext": {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
}
TEXT = {
    "bert": {"max_position_embeddings": 64, **WIDTHS},
    "roberta": {"max_position_embeddings": 66, **WIDTHS},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "clip": {
        "text_config": {"max_position_embeddings": 24, "eos_token_id": 2, **WIDTHS},
        "vision_config": VISION_WIDTHS,
        "projection_dim": 16,
    },
    "modernbert": {"max_position_embeddings": 64, **WIDTHS},
}


def tokenizer_with(specials: list[str], **names: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with these special tokens; `names` are roles (`image_token="<image>"`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    base = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*base, *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512
    )
    fast.add_special_tokens({"additional_special_tokens": specials})
    if names:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=fast.backend_tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            additional_special_tokens=specials,
            extra_special_tokens=names,
            model_max_length=512,
        )
    return fast


def causal_tokenizer() -> PreTrainedTokenizerFast:
    """As of a language model that knows nothing of our marks."""
    return tokenizer_with(["<|im_start|>", "<|im_end|>"])


def build(auto, model_type: str, settings: dict, seed: int = SEED):
    """A model of a family with random weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return auto.from_config(AutoConfig.for_model(model_type, **settings)).eval()


def causal_model(family: str, seed: int = SEED, **changes):
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(causal_tokenizer())}
    return build(AutoModelForCausalLM, family, {**tokens, **CAUSAL[family], **changes}, seed)


def vision_model(family: str, seed: int = SEED):
    return build(AutoModel, family, VISION[family], seed)


def text_model(family: str, seed: int = SEED):
    size = len(causal_tokenizer())
    settings = dict(TEXT[family])
    if "text_config" in settings:
        settings["text_config"] = {"vocab_size": size, **settings["text_config"]}
    else:
        settings.update(vocab_size=size, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        if family == "modernbert":
            settings.update(cls_token_id=1, sep_token_id=2)
    return build(AutoModel, family, settings, seed)


# The templates below are those of the released models, without videos and tools.
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] | trim }}{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "{{ '<start_of_image>' }}{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ROWS = [f"<row_{i}_col_{j}>" for i in range(1, 3) for j in range(1, 3)]
TINY_TEXT = {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **WIDTHS}


def qwen_vl():
    tokenizer = tokenizer_with(
        ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    ids = tokenizer.convert_tokens_to_ids
    processor = without_videos(processor_class_from_name("Qwen2_5_VLProcessor"))(
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=512),
        tokenizer,
        None,
        chat_template=QWEN_TEMPLATE,
    )
    settings = {
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            **TINY_TEXT,
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 4,
            "patch_size": 4,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 16,
        },
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    return "qwen2_5_vl", settings, processor


def qwen3_vl():
    """Several layers of the language model see the picture (deepstack)."""
    _, settings, processor = qwen_vl()
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "mrope_interleaved": True}
    text = {name: value for name, value in settings["text_config"].items() if name != "model_type"}
    settings["text_config"] = {**text, "head_dim": 8, "rope_parameters": rope}
    settings["vision_config"] = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "patch_size": 4,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    cls = without_videos(processor_class_from_name("Qwen3VLProcessor"))
    return "qwen3_vl", settings, cls(processor.image_processor, processor.tokenizer, None, chat_template=QWEN_TEMPLATE)


def llava_next():
    """Pictures of any shape, cut into a different number of tiles each."""
    _, settings, processor = llava()
    shapes = [[16, 32], [32, 16], [32, 32]]
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=shapes
    )
    cls = processor_class_from_name("LlavaNextProcessor")
    return (
        "llava_next",
        {**settings, "image_grid_pinpoints": shapes},
        cls(
            pictures,
            processor.tokenizer,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=LLAVA_TEMPLATE,
        ),
    )


def llava():
    tokenizer = tokenizer_with(["<image>"])
    processor = processor_class_from_name("LlavaProcessor")(
        LlavaImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    settings = {
        "text_config": {"model_type": "llama", "vocab_size": len(tokenizer), **TINY_TEXT},
        "vision_config": {"model_type": "clip_vision_model", **VISION_WIDTHS},
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
    }
    return "llava", settings, processor


def idefics3():
    specials = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *ROWS]
    tokenizer = tokenizer_with(specials)
    processor = processor_class_from_name("Idefics3Processor")(
        Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    )
    settings = {
        "text_config": {"model_type": "llama", "vocab_size": len(tokenizer), **TINY_TEXT},
        "vision_config": VISION_WIDTHS,
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": 0,
    }
    return "idefics3", settings, processor


def gemma3():
    specials = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = tokenizer_with(
        specials, boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    processor = processor_class_from_name("Gemma3Processor")(
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer,
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )
    settings = {
        "text_config": {"vocab_size": len(tokenizer), "head_dim": 8, **TINY_TEXT},
        "vision_config": VISION_WIDTHS,
        "mm_tokens_per_image": 4,
        "boi_token_index": tokenizer.convert_tokens_to_ids("<start_of_image>"),
        "eoi_token_index": tokenizer.convert_tokens_to_ids("<end_of_image>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    }
    return "gemma3", settings, processor


MULTIMODAL = {
    "qwen2_5_vl": qwen_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
    "llava_next": llava_next,
    "idefics3": idefics3,
    "gemma3": gemma3,
}


def multimodal_model(family: str, seed: int = SEED):
    """An image-text-to-text model with random weights, and its processor."""
    model_type, settings, processor = MULTIMODAL[family]()
    return build(AutoModelForImageTextToText, model_type, settings, seed), processor


def with_towers(generator, generator_processor, **settings):
    """A reader around an image-text-to-text model with towers of its own, and its processor."""
    return from_backbones(
        vision_model("vit"),
        text_model("bert"),
        generator,
        image_processor=ViTImageProcessorPil(size={"height": 16, "width": 16}),
        text_tokenizer=causal_tokenizer(),
        generator_processor=generator_processor,
        **settings,
    )


def reader_of_kind(kind: str):
    """A reader and its processor, by how it is asked: with marks of ours, in words, or by an image-text chat."""
    if kind == "marks":
        return tiny_model(), tiny_processor()
    if kind == "words":
        return from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer())
    generator, processor = multimodal_model("qwen2_5_vl")
    return from_backbones(generator=generator, generator_processor=processor)


def saved_parts(root, parts):
    """Saves models and what prepares their inputs: folders by their names on the Hub."""
    for name, (model, belongs) in parts.items():
        model.save_pretrained(root / name)
        belongs.save_pretrained(root / name)
    return {name: root / name for name in parts}
