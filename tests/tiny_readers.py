"""Tiny readers of every family that transformers calls image-text-to-text: its own classes, few and random weights.

A family is a line of settings: its image processor, the marks of its tokenizer, where they stand in a prompt. Its
configuration is the default one with every width and depth made small, and every id that of our tokenizer.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hf_ravlm.model.prompts.chat_processor import without_videos
from tiny_backbones import GEMMA_TEMPLATE, IDEFICS_TEMPLATE, LLAVA_TEMPLATE, ROWS, tokenizer_with


TYPES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("encoder_hidden_size", "text_hidden_size", "output_hidden_size", "projector_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "mlp_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "n_routed_experts", "num_experts"), 4),
    **dict.fromkeys(("num_local_experts", "moe_num_experts", "num_query_tokens", "patch_size"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "linear_num_key_heads", "moe_k"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "index_n_heads"), 4),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("image_size", "num_position_embeddings", "window_size"), 16),
    **{"max_position_embeddings": 512, "spatial_merge_size": 2, "deepstack_visual_indexes": [0]},
    **{"fullatt_block_indexes": [1], "cross_attention_layers": [1]},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SQUARE = {"size": {"height": 16, "width": 16}}
CROPPED = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
PATCHES = {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 512}
PATCHES_OF_SIZE = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 512}}
TALL = [[16, 32], [32, 16], [32, 32]]


def merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in their place; dictionaries of both are merged, too."""
    both = {
        n: merged(v, more[n]) for n, v in settings.items() if isinstance(v, dict) and isinstance(more.get(n), dict)
    }
    return {**settings, **more, **both}


@dataclass(frozen=True)
class Family:
    """How a tiny reader of a type is made.

    Attributes:
        image: settings of its image processor.
        marks: special tokens of its tokenizer.
        roles: tokens that the tokenizer has a name for.
        mark: what the chat template writes for an image; the first of `marks` by default.
        image_token: whose id is `image_token_id` of the configuration; the first of `marks` by default.
        options: further arguments of its processor.
        config: settings beside `SMALL`, of parts as dictionaries.
        template: its chat template, `None` for none.
        processor: the class of its processor where transformers names none.
        image_processor: likewise.
        limits: checks that are refused, each with words of the reason.
    """

    image: dict[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ("<image>",)
    roles: dict[str, str] = field(default_factory=dict)
    mark: str | None = None
    image_token: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    template: str | None = CHAT
    processor: str | None = None
    image_processor: str | None = None
    limits: dict[str, str] = field(default_factory=dict)


MROPE = {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}}
HYBRID = {"text_config": {"layer_types": ["linear_attention", "full_attention"]}}
VISION_MARKS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
VISION_ROLES = {
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
GLM_MARKS = ("<|image|>", "<|begin_of_image|>", "<|end_of_image|>", "<|video|>")
GLM_ROLES = {
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
}


QWEN3 = Family(PATCHES, VISION_MARKS, VISION_ROLES, "<|vision_start|><|image_pad|><|vision_end|>")
QWEN = replace(QWEN3, config=MROPE)
GLM = Family(PATCHES_OF_SIZE, GLM_MARKS, GLM_ROLES, "<|begin_of_image|><|image|><|end_of_image|>", config=MROPE)
LLAVA = Family(
    CROPPED,
    options={"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    config={"vision_feature_layer": -1},
    template=LLAVA_TEMPLATE,
)
IDEFICS = Family(
    {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": True},
    ("<image>", "<|im_start|>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *ROWS),
    options={"image_seq_len": 4},
    config={"scale_factor": 2},
    template=IDEFICS_TEMPLATE,
)
GEMMA = Family(
    SQUARE,
    ("<image_soft_token>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
    {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    options={"image_seq_length": 4},
    config={"mm_tokens_per_image": 4},
    template=GEMMA_TEMPLATE,
)
MINICPM = Family(
    {"patch_size": 4, "scale_resolution": 32, "max_slice_nums": 2},
    ("<|image_pad|>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<|video_pad|>"),
    {
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    },
    config={**HYBRID, "insert_layer_id": 0, "image_token_id": "id:<|image_pad|>"},
)
OMNI = replace(
    QWEN,
    marks=(*VISION_MARKS, "<|audio|>", "<|audio_bos|>", "<|audio_eos|>"),
    roles={
        **VISION_ROLES,
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_token": "<|audio|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    config={
        **MROPE,
        "vision_start_token_id": "id:<|vision_start|>",
        "vision_end_token_id": "id:<|vision_end|>",
        "audio_config": {"encoder_attention_heads": 4, "output_dim": 32},
    },
    image_processor="Qwen2VLImageProcessorPil",
)
GEMMA4 = Family(
    {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3},
    ("<|image|>", "<start_of_turn>", "<end_of_turn>", "<|image>", "<image|>", "<|audio|>", "<|audio>", "<audio|>"),
    {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    template=GEMMA_TEMPLATE.replace("<start_of_image>", "<|image|>"),
    image_processor="Gemma4ImageProcessorPil",
)
ONE_IMAGE = dict.fromkeys(("image passages", "no image", "several images"), "takes one image")
BLIP = Family(
    SQUARE,
    limits=ONE_IMAGE,
    roles={"image_token": ""},
    options={"num_query_tokens": 4},
    config={"image_token_index": "id:<image>"},
    template=None,
)
FAMILIES: dict[str, Family] = {
    "aria": Family(
        {"max_image_size": 980, "min_image_size": 336},
        options={"size_conversion": {980: 4}},
        config={"projector_patch_to_query_dict": {"49": 4}, "vision_config": {"image_size": 980, "patch_size": 140}},
    ),
    "aya_vision": Family(
        {**SQUARE, "min_patches": 1, "max_patches": 2},
        (
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>",
            "TILE",
            "TILE_GLOBAL",
        ),
        image_token="<|IMG_PATCH|>",
        options={"patch_size": 8, "img_size": 16},
        config={"downsample_factor": 2, "alignment_intermediate_size": 32, "vision_feature_layer": -1},
    ),
    "blip": Family(SQUARE, template=None),
    "blip-2": BLIP,
    "chameleon": Family(
        CROPPED,
        ("<image>", "<racm3:break>", "<eoss>", "<sep>", "IMGIMGAZ", "IMGIMGBZ", "IMGIMGCZ", "IMGIMGDZ"),
        options={"image_seq_length": 64},
        config={
            "vocabulary_map": {name: f"id:{name}" for name in ("<image>", *(f"IMGIMG{code}Z" for code in "ABCD"))},
            "vq_config": {"num_embeddings": 4, "channel_multiplier": [1, 1], "base_channels": 32, "num_res_blocks": 1},
        },
        template=None,
    ),
    "cohere_compass": Family(
        PATCHES_OF_SIZE,
        ("<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VS|>", "<|VE|>"),
        mark="<|VS|><|IMAGE_PAD|><|VE|>",
        config={
            "text_config": {
                "layer_types": ["sliding_attention", "full_attention"],
                "rope_parameters": dict.fromkeys(
                    ("sliding_attention", "full_attention"), MROPE["text_config"]["rope_parameters"]
                ),
            }
        },
    ),
    "cosmos3_edge": Family(PATCHES_OF_SIZE, VISION_MARKS, VISION_ROLES, QWEN.mark),
    "cosmos3_omni": Family(PATCHES, VISION_MARKS, VISION_ROLES, QWEN.mark, processor="Qwen3VLProcessor"),
    "deepseek_ocr2": Family(
        {"size": {"height": 768, "width": 768}, "tile_size": 768},
        options={"patch_size": 16, "downsample_ratio": 4},
        config={
            "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
            "vision_config": {
                "sam_config": {
                    "initializer_range": 0.02,
                    "image_size": 768,
                    "patch_size": 64,
                    "output_channels": 32,
                    "downsample_channels": [32, 32],
                    "global_attn_indexes": [1],
                }
            },
        },
    ),
    "deepseek_vl": Family({**SQUARE, "min_size": 4}, options={"num_image_tokens": 16}),
    "deepseek_vl_hybrid": Family(
        {**SQUARE, "min_size": 4, "high_res_size": {"height": 64, "width": 64}},
        options={"num_image_tokens": 16},
        config={"high_res_vision_config": {"image_size": 64, "global_attn_indexes": [1]}},
    ),
    "dots3_note": Family(
        {**PATCHES, "temporal_patch_size": 1},
        ("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>"),
        config={
            "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "mlp_layer_types": ["dense", "sparse"]},
            "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 16},
            "text_config": {
                "num_key_value_heads": 4,
                "head_dim": 16,
                "mlp_layer_types": ["dense", "sparse"],
                "shared_experts_intermediate_size": 16,
                "index_topk": 64,
            },
        },
    ),
    "emu3": Family(
        {"min_pixels": 256, "max_pixels": 1024, "spatial_factor": 8},
        (
            "<image>",
            *("<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>"),
            *(f"<|visual token {code:06d}|>" for code in range(32)),
        ),
        {
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
        config={
            "vq_config": {
                "codebook_size": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1],
                "num_attention_heads": 1,
            },
            "vocabulary_map": {
                name: f"id:{name}"
                for name in ("<image>", "<|extra_200|>", *(f"<|visual token {code:06d}|>" for code in range(32)))
            },
        },
    ),
    "ernie4_5_vl_moe": Family(
        PATCHES_OF_SIZE,
        (
            "<|IMAGE_PLACEHOLDER|>",
            "<|IMAGE_START|>",
            "<|IMAGE_END|>",
            "<|video@placeholder|>",
            "<|VIDEO_START|>",
            "<|VIDEO_END|>",
        ),
        {
            "image_start_token": "<|IMAGE_START|>",
            "image_end_token": "<|IMAGE_END|>",
            "video_token": "<|video@placeholder|>",
            "video_start_token": "<|VIDEO_START|>",
            "video_end_token": "<|VIDEO_END|>",
        },
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        config=merged(
            MROPE,
            {"text_config": {"moe_intermediate_size": [16, 16], "rope_parameters": {"mrope_section": [1, 1, 2]}}},
        ),
    ),
    "exaone4_5": QWEN,
    "fuyu": Family(
        {"size": {"height": 16, "width": 16}, "patch_size": {"height": 4, "width": 4}},
        ("|SPEAKER|", "|NEWLINE|", "<0x04>", "<s>"),
        template=None,
    ),
    "gemma3": GEMMA,
    "gemma4": GEMMA4,
    "git": Family(CROPPED, template=None),
    "glm46v": GLM,
    "glm4v": GLM,
    "glm4v_moe": replace(
        GLM,
        image_processor="Glm4vImageProcessorPil",
        config=merged(MROPE, {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 0]}}}),
    ),
    "glm5_next": replace(
        GLM,
        config={
            "text_config": {
                "num_key_value_heads": 4,
                "qk_rope_head_dim": 0,
                "layer_types": ["linear_attention", "indexed_attention"],
            }
        },
    ),
    "glm_ocr": replace(GLM, image_processor="Glm46VImageProcessorPil", processor="Glm46VProcessor"),
    "glmga": replace(GLM, processor="Glm46VProcessor"),
    "got_ocr2": Family(
        {"size": {"height": 256, "width": 256}},
        ("<imgpad>", "<img>", "</img>"),
        mark="<img><imgpad></img>",
        config={
            "vision_config": {"image_size": 256, "global_attn_indexes": []},
            "text_config": {"max_position_embeddings": 2048},
        },
    ),
    "granite4_vision": Family(
        {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "image_grid_pinpoints": TALL},
        options={
            "patch_size": 4,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
            "downsample_rate": "1/2",
        },
        config={
            "vision_config": {"hidden_size": 64},
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [1],
            "downsample_rate": "1/2",
            "image_grid_pinpoints": TALL,
        },
    ),
    "granite_docling": replace(
        IDEFICS, image={**SQUARE, "min_patches": 1, "max_patches": 2}, options={"image_seq_len": 1}, config={}
    ),
    "hunyuan_vl": Family(
        {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 512},
        ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"),
        {"image_start_token": "<|vision_start|>", "image_end_token": "<|vision_end|>"},
        QWEN.mark,
        config=merged(MROPE, {"text_config": {"head_dim": 8, "num_key_value_heads": 2}}),
    ),
    "hyperclovax_vision_v2": QWEN,
    "idefics": Family({"image_size": 16}, ("<image>", "<fake_token_around_image>"), template=None),
    "idefics2": Family(
        {"size": {"longest_edge": 32, "shortest_edge": 16}, "do_image_splitting": False},
        ("<image>", "<|im_start|>", "<fake_token_around_image>", "<end_of_utterance>"),
        {"image_boundary_token": "<fake_token_around_image>"},
        options={"image_seq_len": 4},
        config={"perceiver_config": {"resampler_n_latents": 4, "resampler_n_heads": 4, "resampler_head_dim": 8}},
        template=IDEFICS_TEMPLATE,
    ),
    "idefics3": IDEFICS,
    "instructblip": BLIP,
    "internvl": Family(
        {**SQUARE, "min_patches": 1, "max_patches": 2},
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        options={"image_seq_length": 4},
    ),
    "janus": Family(
        {**SQUARE, "min_size": 4},
        ("<image_placeholder>", "<begin_of_image>", "<end_of_image>"),
        {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        options={"num_image_tokens": 16},
        config={"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}},
    ),
    "kosmos-2": Family(
        CROPPED,
        roles={"unk_token": "<unused>"},
        processor="Kosmos2Processor",
        options={"num_patch_index_tokens": 4},
        template=None,
    ),
    "kosmos-2.5": Family(
        {"patch_size": {"height": 4, "width": 4}, "max_patches": 16},
        ("<s>", "<image>", "</image>"),
        {"boi_token": "<image>", "eoi_token": "</image>"},
        processor="Kosmos2_5Processor",
        options={"num_image_tokens": 4},
        config={"vision_config": {"patch_embed_hidden_size": 48, "max_num_patches": 64}, "latent_query_num": 4},
        template=None,
    ),
    "lfm3_vl": replace(QWEN3, config={"text_config": {"layer_types": ["conv", "full_attention"]}}),
    "lighton_ocr": Family(
        {"size": {"longest_edge": 32}, "patch_size": 4},
        ("<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"),
        {"image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"},
        options={"patch_size": 4, "spatial_merge_size": 2},
    ),
    "llava": LLAVA,
    "llava_next": replace(
        LLAVA, image={**CROPPED, "image_grid_pinpoints": TALL}, config={**LLAVA.config, "image_grid_pinpoints": TALL}
    ),
    "llava_next_video": replace(
        LLAVA,
        image={**CROPPED, "image_grid_pinpoints": TALL},
        marks=("<image>", "<video>"),
        roles={"video_token": "<video>"},
        config={**LLAVA.config, "image_grid_pinpoints": TALL},
    ),
    "llava_onevision": Family(
        {**SQUARE, "image_grid_pinpoints": TALL},
        ("<image>", "<video>"),
        {"video_token": "<video>"},
        options={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        config={"image_grid_pinpoints": TALL, "vision_feature_layer": -1},
        template=LLAVA_TEMPLATE,
    ),
    "minicpmv4_6": MINICPM,
    "minicpmv4_7": MINICPM,
    "mllama": Family(
        {**SQUARE, "max_image_tiles": 2},
        ("<|image|>", "<|python_tag|>"),
        limits={"no image": "does not read prompts without an image beside"},
        config={
            "vision_config": {
                "max_num_tiles": 2,
                "intermediate_layers_indices": [0],
                "vision_output_dim": 64,
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            }
        },
    ),
    "ovis2": Family(
        {**SQUARE, "min_patches": 1, "max_patches": 2},
        ("<image>", "<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        image_token="<IMG_ATOM>",
        options={"image_seq_length": 4},
        config={"vision_config": {"hidden_stride": 2}},
    ),
    "paddleocr_vl": replace(QWEN, image=PATCHES_OF_SIZE),
    "paligemma": Family({**SQUARE, "image_seq_length": 16}, template=None, limits=ONE_IMAGE),
    "pp_chart2table": Family(
        {"size": {"height": 64, "width": 64}},
        ("<imgpad>", "<img>", "</img>"),
        mark=f"<img>{'<imgpad>' * 16}</img>",
        limits={"no image": "does not take prompts with [0] images"},
        config={"vision_config": {"image_size": 64, "initializer_range": 0.02}},
    ),
    "qianfan_ocr": Family(
        {**SQUARE, "min_patches": 1, "max_patches": 2},
        ("<IMG_CONTEXT>", "<img>", "</img>", "<image>"),
        {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
        "<image>",
        options={"image_seq_length": 4},
    ),
    "qwen2_5_omni_thinker": replace(OMNI, processor="Qwen2_5OmniProcessor"),
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "qwen3_5": replace(QWEN3, config=HYBRID),
    "qwen3_5_moe": replace(QWEN3, config=HYBRID),
    "qwen3_omni_moe_thinker": replace(OMNI, processor="Qwen3OmniMoeProcessor"),
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": replace(QWEN3, image_processor="Qwen2VLImageProcessorPil"),
    "qwen4_exp": replace(
        QWEN3,
        config=merged(
            HYBRID,
            {
                "text_config": {
                    "indexer_n_heads": 2,
                    "indexer_kv_heads": 1,
                    "indexer_head_dim": 8,
                    "indexer_budget": 64,
                    "indexer_compress_ratio": 4,
                }
            },
        ),
    ),
    "shieldgemma2": GEMMA,
    "smolvlm": IDEFICS,
    "video_llama_3": Family(PATCHES, VISION_MARKS, VISION_ROLES),
    "video_llava": Family(
        CROPPED,
        ("<image>", "<video>"),
        {"video_token": "<video>"},
        options={"patch_size": 4, "vision_feature_select_strategy": "default"},
        config={"vision_feature_layer": -1},
        template=LLAVA_TEMPLATE,
    ),
    "vipllava": replace(LLAVA, config={"vision_feature_layers": [-1, -1]}),
}


_TORCHVISION = (
    *("cohere2_vision", "gemma4_unified", "inkling2", "inkling_mm_model", "kimi_k25", "lfm2_vl", "llama4"),
    *("minicpm_ocr", "minimax_m3_vl", "mistral3", "mistral_large4", "molmo2", "muse_glimmer", "muse_spark"),
    *("nemotron_h_omni", "perception_lm", "step3p7", "unlimited_ocr"),
)
# What is refused, and words of the reason.
REFUSED = {
    **dict.fromkeys(_TORCHVISION, "torchvision"),
    **dict.fromkeys(("fast_vlm", "gemma3n"), "timm"),
    **dict.fromkeys(("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop"), "encoder-decoder"),
    **dict.fromkeys(("vision-encoder-decoder",), "encoder-decoder"),
    **dict.fromkeys(
        ("blip", "emu3", "hunyuan_vl", "kosmos-2"), "its answer depends on what stands beside it in a batch"
    ),
    **dict.fromkeys(("idefics", "kosmos-2.5"), "has no chat template"),
    **dict.fromkeys(("fuyu", "got_ocr2"), "does not take prompts with [1] images"),
    **dict.fromkeys(("diffusion_gemma", "pi0"), "does not write token by token"),
    **dict.fromkeys(("evolla", "instructblipvideo", "mistral4"), "reads no images"),
    "git": "its logits have other places than its prompt",
    "shieldgemma2": "it fails on a plain image",
    "instructblip": "reads every question a second time",
}


def make_reader(model_type: str, seed: int = 0) -> tuple[Any, Any]:
    """An image-text-to-text model of a type with random weights, in eval mode, and its processor."""
    processor = make_processor(model_type)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(make_config(model_type, processor)).eval()
    for parameter in model.parameters():
        if not parameter.any():  # gates and projections that begin closed would hide what is seen
            torch.nn.init.normal_(parameter, std=0.1)
    return model, processor


def save_unmade(model_type: str, folder: Path) -> None:
    """Saves what stands in a repository of a type that is not made here: its configuration, and its processor's."""
    saved: dict[str, Any] = {"model_type": model_type}
    with contextlib.suppress(Exception):  # what has no small form is refused before it is made
        small = shrunk(CONFIG_MAPPING[model_type](), {"unused": 1}, 320)
        saved = CONFIG_MAPPING[model_type](**small).to_dict()
    (folder / "config.json").write_text(json.dumps({**saved, "model_type": model_type}))
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {"torchvision": "LlavaImageProcessor"}
    processor = {
        "processor_class": PROCESSOR_MAPPING_NAMES.get(model_type, "LlavaProcessor"),
        "image_processor": {"image_processor_type": next(iter(names.values()))},
        "feature_extractor": {"feature_extractor_type": FEATURE_EXTRACTOR_MAPPING_NAMES.get(model_type)},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))
    roles = ("image", "video", "audio", "boi", "eoi", "boa", "eoa", "image_start", "image_end")
    tokenizer_with(["<image>"], **{f"{role}_token": "<image>" for role in roles}).save_pretrained(folder)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})


def make_config(model_type: str, processor: Any) -> Any:
    """The configuration that goes with a processor of `make_processor`."""
    family, config = FAMILIES[model_type], CONFIG_MAPPING[model_type]()
    small = shrunk(config, ids_of(family, processor.tokenizer), len(processor.tokenizer))
    return CONFIG_MAPPING[model_type](**merged(small, with_ids(family.config, processor.tokenizer)))


def make_processor(model_type: str) -> Any:
    """The processor of a type, by its own class, around a tokenizer of few words."""
    family = FAMILIES[model_type]
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    image_processor = class_of(family.image_processor or names["pil"])(**family.image)
    roles = {"image_token": family.image_token or family.marks[0], **family.roles}
    unknown = roles.pop("unk_token", None)
    roles = {role: token for role, token in roles.items() if token}
    tokenizer = tokenizer_with(["<|im_start|>", "<|im_end|>", "<unused>", *family.marks], **roles)
    if unknown:
        tokenizer.unk_token = unknown
    cls = without_videos(class_of(family.processor or PROCESSOR_MAPPING_NAMES[model_type]))
    parts = {"image_processor": image_processor, "tokenizer": tokenizer}
    template = family.template and family.template.replace("MARK", family.mark or family.marks[0])
    attributes = cls.get_attributes()
    if "qformer_tokenizer" in attributes:
        parts["qformer_tokenizer"] = tokenizer_with([])
    if "feature_extractor" in attributes:
        name = FEATURE_EXTRACTOR_MAPPING_NAMES.get(model_type, "WhisperFeatureExtractor")
        parts["feature_extractor"] = class_of(name)()
    processor = cls(**parts, **copy.deepcopy(family.options))
    processor.chat_template = template
    return processor


def with_ids(settings: Any, tokenizer: Any) -> Any:
    """Settings in which `"id:<image>"` is the id of `<image>`."""
    if isinstance(settings, dict):
        return {name: with_ids(value, tokenizer) for name, value in settings.items()}
    if isinstance(settings, str) and settings.startswith("id:"):
        return tokenizer.convert_tokens_to_ids(settings.removeprefix("id:"))
    return settings


def ids_of(family: Family, tokenizer: Any) -> dict[str, int]:
    """Ids by the role that a configuration names them by."""
    roles = {"image_token": family.image_token or family.marks[0], **family.roles}
    return {
        r.removesuffix("_token"): tokenizer.convert_tokens_to_ids(t or family.marks[0]) for r, t in roles.items()
    } | {"unused": tokenizer.convert_tokens_to_ids("<unused>")}


def shrunk(config: Any, ids: dict[str, int], vocabulary: int) -> dict[str, Any]:
    """Settings that make a configuration and its parts small."""
    small: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        role = next((name.removesuffix(end) for end in ("_token_id", "_token_index") if name.endswith(end)), None)
        if value is None:
            continue
        if isinstance(value, dict) and "mrope_section" in value:
            small[name] = {**value, "mrope_section": [2, 1, 1]}  # of half a head
        if name in SMALL:
            small[name] = SMALL[name]
        elif name.startswith("vocab_size"):
            small[name] = vocabulary
        elif role is not None and isinstance(value, int):
            small[name] = ids.get(role, ids["unused"])
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is None and name == "vision_config":
            part = config.sub_configs[name]()
        if part is not None:
            small[name] = {"model_type": part.model_type, **shrunk(part, ids, vocabulary)}
    return small


@functools.cache
def class_of(name: str) -> Any:
    """A processor, image processor or feature extractor of transformers by its name."""
    root = Path(transformers.__file__).parent / "models"
    files = sorted(
        path for kind in ("image_processing", "processing", "feature") for path in root.glob(f"*/{kind}_*.py")
    )
    path = next(path for path in files if f"class {name}(" in path.read_text(encoding="utf-8"))
    return getattr(importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}"), name)
