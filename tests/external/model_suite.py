"""What the library's model tests ask of us; copied beside them by run.py."""

import functools
import tempfile
import unittest
from unittest.mock import patch

import torch

from sca_hf import ScaConfig, ScaForConditionalGeneration
from sca_hf.testing import IMAGE_SIZE, VOCABULARY_SIZE, tiny_config

from ..generation.test_utils import GenerationTesterMixin
from ..test_configuration_common import ConfigTester
from ..test_modeling_common import ModelTesterMixin


class ScaModelTester:
    """Tiny configurations and inputs: two images, two boxes each, captions of seven tokens."""

    batch_size, regions, seq_length, is_training = 2, 2, 7, True

    def __init__(self, parent: unittest.TestCase, family: str, sam_type: str) -> None:
        self.parent, self.family, self.sam_type = parent, family, sam_type
        config = self.get_config()
        self.hidden_size = config.text_config.hidden_size
        self.num_hidden_layers = config.text_config.num_hidden_layers
        self.num_attention_heads = config.text_config.num_attention_heads
        # The caption's last token is predicted, not read.
        self.encoder_seq_length = config.mixer_config.prefix_length + self.seq_length - 1

    def get_config(self) -> ScaConfig:
        # The library trains every weight it finds.
        return tiny_config(self.family, self.sam_type, freeze_base_models=False)

    def prepare_config_and_inputs_for_common(self) -> tuple[ScaConfig, dict[str, torch.Tensor]]:
        corners = torch.rand(self.batch_size, self.regions, 2, 2) * IMAGE_SIZE
        text = (self.batch_size, self.regions, self.seq_length)
        inputs = dict(
            pixel_values=torch.randn(self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
            input_boxes=torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1),
            input_ids=torch.randint(4, VOCABULARY_SIZE, text),
            attention_mask=torch.ones(text, dtype=torch.long),
        )
        return self.get_config(), inputs


class ScaModelTests(ModelTesterMixin, GenerationTesterMixin):
    """The library's tests; a subclass names the language model and SAM."""

    family, sam_type = "gpt2", "sam"
    all_model_classes = (ScaForConditionalGeneration,)
    additional_model_inputs = ["input_boxes", "input_ids"]
    _is_composite = True
    test_torch_exportable = False
    # The caption loss does not reach the mask heads.
    test_all_params_have_gradient = False

    def setUp(self) -> None:
        self.model_tester = ScaModelTester(self, self.family, self.sam_type)
        self.config_tester = ConfigTester(
            self,
            config_class=ScaConfig,
            has_text_modality=False,
            common_properties=["label_smoothing", "max_caption_length"],
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = self._keep_coordinates(inputs_dict)
        if return_labels:
            inputs["labels"] = inputs["input_ids"]
        return inputs

    @staticmethod
    def _keep_coordinates(inputs: dict) -> dict:
        # Half-precision coordinates are refused; the library's helper casts whatever is a float.
        return {name: x.float() if name == "input_boxes" else x for name, x in inputs.items()}

    @unittest.skip("three models side by side have no common base model")
    def test_model_base_model_prefix(self) -> None:
        pass

    def test_sdpa_can_dispatch_composite_models(self) -> None:
        # The library's own looks for a vision tower and skips ours, whose parts are SAM, mixer and language model.
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        with tempfile.TemporaryDirectory() as folder:
            ScaForConditionalGeneration(config).save_pretrained(folder)
            for wanted in ("sdpa", "eager"):
                model = ScaForConditionalGeneration.from_pretrained(folder, attn_implementation=wanted)
                parts = (model, model.sam, model.sam.vision_encoder, model.mixer, model.language_model)
                self.assertEqual({part.config._attn_implementation for part in parts}, {wanted})

    def test_model_weights_reload_no_missing_tied_weights(self) -> None:
        # It takes most weights away and asks which are reported missing; ours is an error unless told otherwise.
        lenient = functools.partial(ScaForConditionalGeneration.from_pretrained, strict=False)
        with patch.object(ScaForConditionalGeneration, "from_pretrained", lenient):
            super().test_model_weights_reload_no_missing_tied_weights()


class ScaGpt2Test(ScaModelTests, unittest.TestCase):
    pass


class ScaLlamaTest(ScaModelTests, unittest.TestCase):
    family = "smollm"


class ScaHqQwen3Test(ScaModelTests, unittest.TestCase):
    family, sam_type = "qwen3", "sam_hq"
