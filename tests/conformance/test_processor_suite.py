"""transformers' common tests of processors, run on ours."""

from __future__ import annotations

import unittest

from tests.test_processing_common import ProcessorTesterMixin
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import RavlmProcessor
from tiny import tiny_tokenizer


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = RavlmProcessor

    @classmethod
    def _setup_image_processor(cls):
        return ViTImageProcessorPil(size={"height": 16, "width": 16})

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer()

    @classmethod
    def _setup_text_tokenizer(cls):
        return tiny_tokenizer()

    @staticmethod
    def prepare_processor_dict():
        return {}
