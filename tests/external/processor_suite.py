"""What the library's processor tests ask of us; copied beside them by run.py."""

import unittest
from unittest.mock import patch

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.testing import CAPTIONS, tiny_config

from ..test_processing_common import ProcessorTesterMixin


class ScaProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ScaProcessor

    @staticmethod
    def prepare_processor_dict():
        return {
            "tasks": ["caption", "recognition"],
            "max_caption_length": 12,
            "caption_add_bos": True,
            "mask_size": 32,
        }

    @classmethod
    def _setup_tokenizer(cls):
        # Special tokens last: the library decodes ids 0 to 9, and our captions leave special tokens out.
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(CAPTIONS, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )

    @classmethod
    def _setup_image_processor(cls):
        return ScaProcessor.from_config(tiny_config(), cls._setup_tokenizer()).image_processor

    def prepare_text_inputs(self, batch_size=None, modalities=None):
        # The model takes no text but the name of a task.
        return "caption" if batch_size is None else ["caption"] * batch_size

    def _test_kwargs_overrides_default_modality_processor_kwargs(self, modality):
        # The test counts tokens on the second axis, where we have regions: show it the first region's.
        call = ScaProcessor.__call__

        def first_region(processor, **inputs):
            batch = call(processor, **inputs)
            batch["input_ids"] = batch["input_ids"][:, 0]
            return batch

        with patch.object(ScaProcessor, "__call__", first_region):
            super()._test_kwargs_overrides_default_modality_processor_kwargs(modality)

    def _test_modality_processor_defaults_preserved_by_modality_kwargs(self, modality):
        self.maybe_skip_typed_test_for_modality(modality, self.processor_class.get_attributes())
        self.skipTest("captions are padded and cut by the processor's own settings, whatever the tokenizer's are")

    @unittest.skip("every entry of a batch is an image; an entry of text alone has nothing to be captioned")
    def test_processor_text_has_no_visual(self):
        pass
