"""Tiny encoders of many families, each saved to a folder as its own library saves it, and what its own use returns.

Of every family: its kind or why it is refused, and, by the model's own classes alone, one image or one text at a time,
the vectors that its documentation says. The folders are what the Hub would hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    GemmaTokenizer,
    Siglip2Tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tiny import WIDTHS, WORDS, picture
from tiny_backbones import VISION, VISION_WIDTHS, causal_tokenizer


TEXTS = ["Oslo", "the capital of Norway is Oslo", "Red WHITE", "what is the capital of this country ? " * 12]
IMAGES = [picture(1), picture(2, (9, 30)), Image.new("RGB", (40, 12), "red")]
SIDES = {"height": 16, "width": 16}
VOCABULARY = 330
TEXT_WIDTHS = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, **WIDTHS}
BERT = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **TEXT_WIDTHS}
DUAL = {"text_config": {**BERT}, "vision_config": {**VISION_WIDTHS}, "projection_dim": 16}
EFFICIENT = {
    "image_size": 16,
    "width_coefficient": 0.1,
    "depth_coefficient": 0.1,
    "hidden_dim": 128,
    "num_block_repeats": [1],
    "kernel_sizes": [3],
    "in_channels": [8],
    "out_channels": [16],
    "strides": [1],
    "expand_ratios": [1],
}


@dataclass
class Family:
    """One family: how its model is made, and how its makers use it."""

    kind: str
    config: dict[str, Any]
    model_type: str
    tokenizer: Callable[[], Any] | None = causal_tokenizer
    image_processor: Callable[[], Any] | None = lambda: ViTImageProcessorPil(size=SIDES)
    text_options: dict[str, Any] = field(default_factory=lambda: {"truncation": True, "max_length": 40})
    lower: bool = False
    pick: Callable[[Any], torch.Tensor] = lambda outputs: outputs.pooler_output
    auto: Any = AutoModel
    loading: dict[str, Any] = field(default_factory=dict)


def gemma(cls=GemmaTokenizer):
    """A tokenizer of letters in upper and lower case, as the checkpoints of SigLIP 2 save it."""
    letters = sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.▁"))
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {token: place for place, token in enumerate([*names, *(one for one in letters if one != " ")])}
    return cls(vocab=vocabulary, merges=[], padding_side="right", model_input_names=["input_ids"])


FULL = {"truncation": True, "max_length": 40, "padding": "max_length"}
SIGLIP = {name: part for name, part in DUAL.items() if name != "projection_dim"}
FIRST = lambda outputs: outputs.last_hidden_state[:, 0]  # noqa: E731

FAMILIES: dict[str, Family] = {
    "CLIP": Family(
        "dual",
        DUAL,
        "clip",
        image_processor=lambda: CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIDES),
    ),
    "SigLIP": Family("dual", SIGLIP, "siglip", text_options=FULL),
    "SigLIP 2, fixed size": Family("dual", SIGLIP, "siglip", gemma, text_options=FULL, lower=True),
    "SigLIP 2, NaFlex": Family(
        "dual",
        {"text_config": BERT, "vision_config": {"num_patches": 16, "patch_size": 4, **WIDTHS}},
        "siglip2",
        lambda: gemma(Siglip2Tokenizer),
        lambda: Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16),
        FULL,
    ),
    "MetaCLIP 2": Family("dual", DUAL, "metaclip_2"),
    "Chinese-CLIP": Family("dual", DUAL, "chinese_clip"),
    "AltCLIP": Family(
        "dual",
        {**DUAL, "text_config": {**BERT, "max_position_embeddings": 42, "pad_token_id": 1, "project_dim": 16}},
        "altclip",
    ),
    "ALIGN": Family(
        "dual",
        {
            "text_config": BERT,
            "vision_config": EFFICIENT,
            "projection_dim": 8,
        },
        "align",
    ),
    "BLIP": Family(
        "dual",
        {"text_config": {**BERT, "encoder_hidden_size": 32}, "vision_config": VISION_WIDTHS, "projection_dim": 16},
        "blip",
    ),
    "GroupViT": Family(
        "dual",
        {
            "text_config": BERT,
            "vision_config": {
                **VISION_WIDTHS,
                "depths": [1, 1, 1],
                "num_group_tokens": [8, 4, 0],
                "num_output_groups": [8, 4, 2],
            },
            "projection_dim": 16,
            "projection_intermediate_dim": 32,
        },
        "groupvit",
    ),
    "OWL-ViT": Family("dual", DUAL, "owlvit"),
    "OWLv2": Family("dual", DUAL, "owlv2"),
    "CLIPSeg": Family("dual", DUAL, "clipseg"),
    "AIMv2": Family("dual", DUAL, "aimv2", loading={"attn_implementation": "eager"}),
    "FLAVA": Family(
        "dual",
        {
            "text_config": BERT,
            "image_config": VISION_WIDTHS,
            "multimodal_config": WIDTHS,
            "hidden_size": 32,
            "projection_dim": 16,
        },
        "flava",
        pick=lambda outputs: outputs.pooler_output[:, 0],
    ),
    "VisionTextDualEncoder": Family(
        "dual",
        {
            "vision_config": {"model_type": "vit", **VISION_WIDTHS},
            "text_config": {"model_type": "bert", **TEXT_WIDTHS},
            "projection_dim": 16,
        },
        "vision-text-dual-encoder",
    ),
    "ViT": Family("image", VISION["vit"], "vit", None),
    "DINOv2": Family("image", VISION["dinov2"], "dinov2", None),
    "DINOv3": Family("image", VISION["dinov3_vit"], "dinov3_vit", None),
    "ConvNeXt": Family(
        "image", VISION["convnext"], "convnext", None, lambda: ViTImageProcessorPil(size={"height": 32, "width": 32})
    ),
    "ResNet": Family("image", VISION["resnet"], "resnet", None, pick=lambda outputs: outputs.pooler_output.flatten(1)),
    "Swin": Family("image", VISION["swin"], "swin", None),
    "EfficientNet": Family(
        "image",
        EFFICIENT,
        "efficientnet",
        None,
    ),
    "ViT-MAE": Family("image", VISION_WIDTHS, "vit_mae", None, pick=FIRST),
    "SigLIP, image half": Family("image", VISION_WIDTHS, "siglip_vision_model", None),
    "CLIP, image half": Family("image", VISION_WIDTHS, "clip_vision_model", None),
    "BERT": Family("text", TEXT_WIDTHS, "bert", image_processor=None),
    "MPNet": Family("text", {**BERT, "max_position_embeddings": 42, "pad_token_id": 1}, "mpnet", image_processor=None),
    "ModernBERT": Family("text", {**BERT, "cls_token_id": 1, "sep_token_id": 2}, "modernbert", image_processor=None),
    "Qwen3": Family("text", {**BERT, "num_key_value_heads": 2, "head_dim": 8}, "qwen3", image_processor=None),
}


def save(family: Family, folder: Path, seed: int = 0) -> None:
    """Writes the family's tiny model, its tokenizer and its image processor."""
    torch.manual_seed(seed)
    model = family.auto.from_config(AutoConfig.for_model(family.model_type, **family.config)).eval()
    model.save_pretrained(folder)
    for part in (family.tokenizer, family.image_processor):
        if part is not None:
            part().save_pretrained(folder)


def saved_once(root: Path) -> Callable[[str], Path]:
    """The folder of a family by its name, written when it is first asked for."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = root / str(len(made))
            save(FAMILIES[name], made[name])
        return made[name]

    return folder_of


@torch.no_grad()
def own_vectors(family: Family, folder: Path) -> dict[str, np.ndarray]:
    """What the family's own classes make of each image and each text alone, normalised."""
    model = family.auto.from_pretrained(folder, **family.loading).eval()
    found: dict[str, list[torch.Tensor]] = {"image": [], "text": []}
    images = family.image_processor() if family.image_processor is not None and family.kind != "text" else None
    tokenizer = AutoTokenizer.from_pretrained(folder) if family.tokenizer is not None else None
    for image in IMAGES if images is not None else []:
        inputs = images(images=[image], return_tensors="pt")
        if family.model_type == "vit_mae":
            model.config.mask_ratio = model.embeddings.config.mask_ratio = 0.0
        outputs = model.get_image_features(**inputs) if family.kind == "dual" else model(**inputs)
        found["image"].append(family.pick(outputs))
    for text in TEXTS if tokenizer is not None else []:
        inputs = tokenizer([text.lower() if family.lower else text], return_tensors="pt", **family.text_options)
        inputs.pop("token_type_ids", None)
        if family.kind == "dual":
            found["text"].append(family.pick(model.get_text_features(**inputs)))
        else:
            found["text"].append(model(**inputs).last_hidden_state.mean(dim=1))
    return {
        name: torch.nn.functional.normalize(torch.cat(rows), dim=-1, eps=1e-30).numpy()
        for name, rows in found.items()
        if rows
    }


def save_sentence_transformer(folder: Path, kind: str) -> None:
    """A folder as sentence-transformers saves it: `"mean"`, `"last"` (as Qwen3-Embedding), `"clip"` or `"dense"`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer import modules

    families = {"mean": "BERT", "last": "Qwen3", "clip": "CLIP", "dense": "BERT"}
    save(FAMILIES[families[kind]], folder.parent / f"{folder.name}-base")
    transformer = modules.Transformer(str(folder.parent / f"{folder.name}-base"))
    steps = [transformer]
    transformer.max_seq_length = 24
    if kind != "clip":
        steps.append(modules.Pooling(32, pooling_mode="lasttoken" if kind == "last" else "mean"))
    if kind == "dense":
        steps.append(Dense(32, 16))
    prompts = {"query": "Instruct: find\nQuery: ", "document": ""} if kind == "last" else {"query": "query: "}
    model = SentenceTransformer(modules=[*steps, modules.Normalize()], prompts=prompts, device="cpu")
    model.save_pretrained(str(folder))


def save_late_interaction(folder: Path) -> None:
    """A tiny ColQwen2."""
    from transformers import ColQwen2Config, ColQwen2ForRetrieval, ColQwen2Processor

    from tiny_backbones import MULTIMODAL

    _, settings, processor = MULTIMODAL["qwen2_vl" if "qwen2_vl" in MULTIMODAL else "qwen2_5_vl"]()
    tokenizer = processor.tokenizer
    text = {**settings["text_config"], "model_type": "qwen2_vl_text"}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2}
    ids = {name: settings[name] for name in settings if name.endswith("token_id")}
    vlm = {"model_type": "qwen2_vl", "text_config": text, "vision_config": vision, **ids}
    torch.manual_seed(0)
    ColQwen2ForRetrieval(ColQwen2Config(vlm_config=vlm, embedding_dim=8)).eval().save_pretrained(folder)
    prefix = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>"
    ColQwen2Processor(processor.image_processor, tokenizer, visual_prompt_prefix=prefix).save_pretrained(folder)
