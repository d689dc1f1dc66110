"""From three backbones to one model, with every pretrained weight in its place.

What is loaded is put in as it is; only what is ours (projections, fusion) starts from new numbers. A causal generator
gets embeddings for the marks of our prompts that its tokenizer lacks, each the mean of the old ones; an
image-text-to-text generator keeps its vocabulary.
"""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .backbones import Backbone, load_generator, load_text_encoder, load_vision_tower, reads_images
from .configuration_ravlm import RavlmConfig
from .fusions.cross_attention import attach_cross_attention
from .processor_assembly import load_tokenizer, marked_tokenizer
from .prompts.layout import SPECIAL_TOKENS


MARKS = ("image", "evidence")  # whose ids the config holds


def assemble_model(
    cls: type[PreTrainedModel],
    vision: Backbone,
    text: Backbone,
    generator: Backbone,
    *,
    tokenizer=None,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    **settings,
) -> PreTrainedModel:
    """A model of class `cls` out of three backbones, in eval mode; arguments as in `from_backbones`.

    The marks of our prompts get the ids that `RavlmProcessor.from_backbones` gives them.

    Raises:
        `InvalidInputError`: if a backbone does not fit its role, or its checkpoint lacks weights.
    """
    loading = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    language_model = load_generator(generator, **loading)
    loading["dtype"] = dtype = language_model.dtype if dtype == "auto" else language_model.dtype
    parts = {
        "model.vision_tower": load_vision_tower(vision, **loading).to(dtype),
        "model.text_encoder": load_text_encoder(text, **loading).to(dtype),
        "language_model": language_model,
    }
    if reads_images(language_model.config):
        image_token_id = getattr(language_model.config, "image_token_id", None)
        marks = {} if image_token_id is None else {"image_token_id": image_token_id}
    else:
        tokenizer = marked_tokenizer(tokenizer or load_tokenizer(generator, "tokenizer", trust_remote_code))
        add_embeddings(language_model, len(tokenizer))
        marks = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[name]) for name in MARKS}
    config = RavlmConfig(
        vision_config=part_config(parts["model.vision_tower"]),
        text_config=part_config(parts["model.text_encoder"]),
        generator_config=part_config(language_model),
        **{**marks, **settings},
    )
    config.dtype = dtype
    return put_together(cls, config, parts)


def put_together(
    cls: type[PreTrainedModel], config: PreTrainedConfig, parts: dict[str, PreTrainedModel]
) -> PreTrainedModel:
    """A model with `parts` in their places and the rest initialised; the parts' own weights are never touched."""
    with torch.device("meta"):  # so that what is loaded already is not made a second time
        model = cls(config)
    for name, part in parts.items():
        model.set_submodule(name, part)
    if config.fusion == "cross_attention":  # its hooks were on the language model that stood there before
        attach_cross_attention(model.language_model)
    loaded = {id(module) for part in parts.values() for module in part.modules()}
    for module in model.modules():
        module._is_hf_initialized = id(module) in loaded  # what `initialize_weights` goes by
        if id(module) not in loaded:
            module.to_empty(device=model.language_model.device, recurse=False)
    model.initialize_weights()
    for module in model.modules():
        if id(module) not in loaded:
            for tensor in module.parameters(recurse=False):
                tensor.data = tensor.data.to(config.dtype)
    own = getattr(model.language_model, "generation_config", None)
    if own is not None:
        model.generation_config = copy.deepcopy(own)
    return model.eval()


def part_config(part: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of a part, without where it came from."""
    config = copy.deepcopy(part.config)
    config._name_or_path = ""
    quantization = getattr(config, "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    method = getattr(quantization, "quant_method", method)
    if str(getattr(method, "value", method)) == "gguf":  # unpacked when it was loaded
        del config.quantization_config
    return config


def add_embeddings(language_model: PreTrainedModel, num_tokens: int) -> None:
    """Grows the vocabulary to `num_tokens`, if it is smaller; every new row is the mean of the old ones."""
    before = language_model.get_input_embeddings().num_embeddings
    if num_tokens <= before:
        return
    language_model.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if tensor is not None and len(tensor) == num_tokens:
                    tensor[before:] = tensor[:before].float().mean(dim=0).to(tensor.dtype)
