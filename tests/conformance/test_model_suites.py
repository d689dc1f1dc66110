"""transformers' common tests of configurations and models, run on the dual encoder and on the reader.

The dual encoder and the reader read different prompts with one configuration, so each has a class of its own, as in
transformers' tests of CLIP; the reader has one per fusion.
"""

from __future__ import annotations

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.models.auto import modeling_auto

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration, RavlmModel
from tiny import tiny_config


# The suites look classes up in these tables of names, in which registered classes do not stand.
modeling_auto.MODEL_MAPPING_NAMES["ravlm"] = "RavlmModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["ravlm"] = "RavlmForConditionalGeneration"

FIRST_WORD, WORDS = 8, 90  # below are the special tokens


def random_ids(*shape: int) -> torch.Tensor:
    """Token ids without special ones."""
    return ids_tensor(shape, WORDS) + FIRST_WORD


class DualEncoderTester:
    """A tiny dual encoder with a batch of queries, and as many passages, of pictures and words."""

    batch_size, seq_length, is_training = 3, 7, True
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4

    def get_config(self) -> RavlmConfig:
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        inputs = {
            "input_ids": random_ids(*shape),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "pixel_values": floats_tensor([self.batch_size, 3, 16, 16]),
            "passage_input_ids": random_ids(*shape),
            "passage_attention_mask": torch.ones(shape, dtype=torch.long),
            "passage_pixel_values": floats_tensor([self.batch_size, 3, 16, 16]),
        }
        return self.get_config(), inputs


class ReaderTester:
    """A tiny reader with a batch of prompts; with a fusion that reads evidence two passages for each."""

    batch_size, seq_length, is_training, vocab_size = 2, 30, True, 300
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4
    num_image_tokens, num_passages, passage_length = 4, 2, 7

    def __init__(self, fusion: str):
        self.fusion = fusion

    def get_config(self) -> RavlmConfig:
        return tiny_config(fusion=self.fusion)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        batch, passages, length = self.batch_size, self.num_passages, self.passage_length
        input_ids = random_ids(batch, self.seq_length)
        input_ids[:, : self.num_image_tokens] = config.image_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": floats_tensor([batch, 3, 16, 16]),
        }
        if self.fusion == "in_context":
            return config, inputs
        states = self.num_image_tokens + length  # of one passage: its picture, its words
        places = {"concat": states, "product": 1, "cross_attention": 0}.get(self.fusion, config.num_memory_tokens)
        end = self.num_image_tokens + passages * places
        input_ids[:, self.num_image_tokens : end] = config.evidence_token_id
        inputs |= {
            "evidence_input_ids": random_ids(batch, passages, length),
            "evidence_attention_mask": torch.ones(batch, passages, length, dtype=torch.long),
            "evidence_token_ids": random_ids(batch, passages, states),
            "evidence_alignment": torch.arange(states).flip(0).repeat(batch, passages, 1),
            "evidence_pixel_values": floats_tensor([batch, passages, 3, 16, 16]),
            "evidence_mask": torch.ones(batch, passages, dtype=torch.bool),
            "question_input_ids": random_ids(batch, 5),
            "question_attention_mask": torch.ones(batch, 5, dtype=torch.long),
        }
        return config, inputs


class DualEncoderTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (RavlmModel,)
    _is_composite = True

    def setUp(self):
        self.model_tester = DualEncoderTester()
        self.config_tester = ConfigTester(self, config_class=RavlmConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class ReaderSuite(ModelTesterMixin, GenerationTesterMixin):
    """What all readers share."""

    all_model_classes = (RavlmForConditionalGeneration,)
    _is_composite = True
    fusion = "in_context"

    def setUp(self):
        self.model_tester = ReaderTester(self.fusion)

    def _check_generate_outputs(self, output, config, **kwargs):
        # The generation suite takes `config.text_config` for the language model's; it is our text encoder's.
        super()._check_generate_outputs(output, config.get_text_config(decoder=True), **kwargs)


class InContextReaderTest(ReaderSuite, unittest.TestCase):
    pass


class ConcatReaderTest(ReaderSuite, unittest.TestCase):
    fusion = "concat"


class ProductReaderTest(ReaderSuite, unittest.TestCase):
    fusion = "product"


class AttentionReaderTest(ReaderSuite, unittest.TestCase):
    fusion = "attention"


class GatedReaderTest(ReaderSuite, unittest.TestCase):
    fusion = "gated"


class CrossAttentionReaderTest(ReaderSuite, unittest.TestCase):
    fusion = "cross_attention"
