"""Knows the shipped model: which backbones, how large, and the losses of its training stages.

1. Matching: a small ResNet learns from scratch which drawings show the same flag, whatever the style, on small
   pictures first, and then on sharper ones.
2. Asking: a small BERT learns which passage answers which question; the picture tower stays as it is.
3. Reading: a small Llama learns to copy the answer out of passages; the dual encoder stays as it is.
4. Choosing: three layers deeper, it learns to understand any words, and which of many passages tells what they ask.

Everything is small because the task is: the demo answers in seconds on a laptop, and no pretrained part is needed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flags.copying import NUM_LAYERS, start_as_copier
from flags.questions import OFFICIAL
from flags.reading import turn_mask
from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration, RavlmProcessor
from hf_ravlm.model.modeling_ravlm import info_nce
from hf_ravlm.training import RavlmTrainer


# Drawings fill the picture in use, and stand in a frame or on a pole in much of training: there they are smaller, and
# what was learned of them fits larger pictures best (Touvron et al. 2019, arXiv 1906.06423).
COARSE_SIZE, FINE_SIZE, IMAGE_SIZE, MEAN, STD = 64, 128, 160, 0.5, 0.3
MAX_LENGTH, MAX_PASSAGE_LENGTH, MAX_TEXT_LENGTH = 960, 320, 96


def build_processor(tokenizer: PreTrainedTokenizerBase) -> RavlmProcessor:
    """The processor: margins trimmed, pictures squeezed to 160 x 160, one tokenizer for both towers."""
    images = ViTImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    return RavlmProcessor(
        images,
        tokenizer,
        tokenizer,
        max_length=MAX_LENGTH,
        max_passage_length=MAX_PASSAGE_LENGTH,
        max_text_length=MAX_TEXT_LENGTH,
        trim_image_margins=True,
    )


def build_model(processor: RavlmProcessor, seed: int = 0) -> RavlmForConditionalGeneration:
    """The model with random weights, 6 million parameters; its reader starts with a circuit that copies."""
    torch.manual_seed(seed)
    vocab_size = len(processor.tokenizer)
    config = RavlmConfig(
        vision_config={
            "model_type": "resnet",
            "embedding_size": 48,
            "hidden_sizes": [48, 96, 192],
            "depths": [1, 2, 2],
            "layer_type": "basic",
        },
        text_config={
            "model_type": "bert",
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "max_position_embeddings": processor.max_text_length,
        },
        generator_config={
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": 256,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 2048,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "pad_token_id": processor.tokenizer.pad_token_id,
            "bos_token_id": processor.tokenizer.bos_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
        },
        projection_dim=256,
        pooling_grid=4,
        logit_scale_init=math.log(20),
        text_weight_init=0.2,
        num_passages=1,  # the search puts the right one first; a reader this small trips over others
        num_image_tokens=processor.num_image_tokens,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
        evidence_token_id=processor.tokenizer.convert_tokens_to_ids("<evidence>"),
        default_prompt=OFFICIAL["describe"],
    )
    model = RavlmForConditionalGeneration(config)
    marks = processor.markers  # of prompts, never of answers
    never = [marks.image, marks.evidence, marks.passage, marks.question, marks.answer]
    model.generation_config.suppress_tokens = never
    answer, colon = processor.tokenizer.convert_tokens_to_ids(["<answer>", ":"])
    start_as_copier(model.language_model, seed=seed, alike=(answer, colon))
    return model


class MatchingTrainer(RavlmTrainer):
    """Stage 1: of all drawings in the batch, the other one of the same flag shall be the nearest."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """InfoNCE between all drawings `(2n, 3, height, width)`; rows `i` and `i + n` show one flag."""
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"].contiguous(memory_format=torch.channels_last))
        partner = torch.arange(len(labels), device=labels.device).roll(len(labels) // 2)
        embeds = outputs.query_embeds
        loss = info_nce(embeds, embeds[partner], outputs.logit_scale, labels, labels[partner])
        return (loss, outputs) if return_outputs else loss


class AskingTrainer(RavlmTrainer):
    """Stage 2: the right passage for each query, while words stay out of the pictures' way.

    Besides InfoNCE, the mean squared cosine of texts and pictures is kept small. Where it is zero, a search by picture
    alone ranks countries exactly as the pictures do, whatever is written in the passages. And words weigh little
    beside a picture, so that they learn slowly there: a second InfoNCE, of words alone, tells kinds of question apart.
    """

    crosstalk_weight, kind_scale = 20.0, 20.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`inputs` are those of [`RavlmModel`], with `image_embeds` for pictures, and `same_kind`."""
        model = self.accelerator.unwrap_model(model)
        images, texts, embeds = [], [], []
        for side in ("", "passage_"):
            given = {name.removeprefix(side): tensor for name, tensor in inputs.items() if name.startswith(side)}
            images.append(given["image_embeds"])
            text = None
            if "input_ids" in given:
                text = model.get_text_features(given["input_ids"], given["attention_mask"]).pooler_output
                texts.append(text)
            embeds.append(model.combine(images[-1], given["image_mask"], text, given.get("text_mask")))
        loss = info_nce(*embeds, model.logit_scale.exp(), inputs["query_labels"], inputs["passage_labels"])
        crosstalk = (torch.cat(texts) @ torch.cat(images).mT).square().mean()
        loss = loss + self.crosstalk_weight * crosstalk
        if "same_kind" in inputs:
            logits = self.kind_scale * texts[0] @ texts[1].mT
            rows = torch.arange(len(logits), device=logits.device)
            rivals = ~inputs["same_kind"]
            rivals[rows, rows] = True  # passage `i` answers question `i`
            loss = loss + F.cross_entropy(logits.masked_fill(~rivals, -torch.inf), rows)
        return (loss, {"loss": loss}) if return_outputs else loss


class ReadingTrainer(RavlmTrainer):
    """Stages 3 and 4: every answer counts alike, and its first token most: finding the place is the task."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted mean cross-entropy among the tokens that an answer may hold.

        `labels` and `token_weights` are `(B, L)`, rows padded on the right.
        """
        labels, weights = inputs["labels"][:, 1:], inputs["token_weights"][:, 1:]
        asked = {name: inputs[name] for name in ("input_ids", "pixel_values", "position_ids")}
        outputs = model(**asked, attention_mask=turn_mask(inputs["turns"]))
        keep = labels != -100
        logits = outputs.logits[:, :-1][keep].float()
        never = self.accelerator.unwrap_model(model).generation_config.suppress_tokens
        logits[:, never] = -torch.inf  # the answer's mark has a colon's embedding, and would take half of its share
        losses = F.cross_entropy(logits, labels[keep], reduction="none")
        loss = (losses * weights[keep]).sum() / weights[keep].sum()
        return (loss, outputs) if return_outputs else loss
