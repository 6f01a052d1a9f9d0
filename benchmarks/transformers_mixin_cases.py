"""Our models and processors as transformers' test mixins take them; run by `benchmarks.transformers_mixins`.

The models are those of our own tests at the size that the mixins ask for; every batch is two contexts of an image and
a text each.
"""

from __future__ import annotations

import copy
import tempfile
import unittest

import torch
from tiny_models import picture, tiny_bagel_config, tiny_bagel_processor, tiny_janus_config, tiny_janus_processor
from transformers import ProcessorMixin
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_processing_common import ProcessorTesterMixin

from uniedit_hf.models.bagel import BagelConfig, BagelForConditionalGeneration, BagelModel, BagelProcessor
from uniedit_hf.models.janus import JanusForConditionalGeneration, JanusProcessor
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


def contexts(processor, view: str, width: int, height: int) -> dict:
    """A processor's output for two contexts of equal length."""
    texts = ("what color is this", "paint the circle red")
    samples = [
        Sample([ImageSegment(picture(width, height, seed), view), TextSegment(text)])
        for seed, text in enumerate(texts)
    ]
    return dict(processor(samples))


class BagelTester:
    """Configuration and inputs of a tiny BAGEL."""

    batch_size = 2
    is_training = True
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    image_size, patch_size = 28, 14

    def __init__(self, parent):
        self.parent = parent
        self.seq_length = self.prepare_config_and_inputs_for_common()[1]["input_ids"].shape[1]

    def get_config(self) -> BagelConfig:
        """Two layers of 32 channels."""
        config = tiny_bagel_config()
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        text = config.text_config.to_dict() | sizes | {"layer_types": None}
        vision = config.vision_config.to_dict() | sizes
        return tiny_bagel_config(text_config=text, vision_config=vision, max_latent_size=4)

    def prepare_config_and_inputs_for_common(self):
        """With a ViT view of 4 tokens."""
        return self.get_config(), contexts(tiny_bagel_processor(), "vit", 28, 28)

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class BagelModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """Both BAGEL classes."""

    all_model_classes = (BagelModel, BagelForConditionalGeneration)
    all_generative_model_classes = (BagelForConditionalGeneration,)
    _is_composite = True
    skip_test_image_features_output_shape = True  # patches of all images lie end to end

    def setUp(self):
        self.model_tester = BagelTester(self)
        self.config_tester = ConfigTester(self, config_class=BagelConfig, has_text_modality=False)

    def test_config(self):
        """`ConfigTester` as a whole."""
        self.config_tester.run_common_tests()

    def prepare_config_and_inputs_for_generate(self, batch_size=2):
        """The mixin would take the first two rows of all tensors, patches included."""
        config, inputs = super().prepare_config_and_inputs_for_generate(batch_size)
        patches = self.model_tester.prepare_config_and_inputs()[1]["vit_patches"]
        return config, inputs | {"vit_patches": patches[: inputs["vit_grids"].prod(1).sum()]}

    def _image_features_prepare_config_and_inputs(self):
        """Images are patches with grids."""
        config, inputs = self.model_tester.prepare_config_and_inputs()
        return config, {name: inputs[name] for name in ("vit_patches", "vit_grids")}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """`noise` is the mixin's own, of masked autoencoders."""
        inputs = copy.deepcopy(inputs_dict)
        inputs.pop("noise", None)
        if return_labels and model_class is BagelForConditionalGeneration:
            inputs["labels"] = torch.zeros(inputs["input_ids"].shape, dtype=torch.long)
        return inputs


class JanusTester:
    """Configuration and inputs of a tiny Janus, as transformers' own processor makes them."""

    batch_size = 2
    is_training = True
    num_hidden_layers = 2
    hidden_size = 64
    num_attention_heads = 4

    def __init__(self, parent):
        self.parent = parent
        self.seq_length = self.prepare_config_and_inputs_for_common()[1]["input_ids"].shape[1]

    def get_config(self):
        """That of our tests."""
        return tiny_janus_config()

    def prepare_config_and_inputs_for_common(self):
        """An image and a text each."""
        processor = tiny_janus_processor()
        texts = ["<image_placeholder> what color is this", "<image_placeholder> paint the circle red"]
        images = [picture(32, 32, seed) for seed in range(2)]
        return self.get_config(), dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class JanusModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """Our Janus."""

    all_model_classes = (JanusForConditionalGeneration,)
    all_generative_model_classes = (JanusForConditionalGeneration,)
    _is_composite = True
    test_all_params_have_gradient = False  # as in transformers' own tests: a text's loss reaches no layer of drawing

    def setUp(self):
        self.model_tester = JanusTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:
            inputs["labels"] = torch.zeros(inputs["input_ids"].shape, dtype=torch.long)
        return inputs


class ProcessorCase(ProcessorTesterMixin):
    """A processor of our tests, saved and loaded as the mixin asks."""

    make = None

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        """Whether transformers' method is overridden, wherever among the bases."""
        return getattr(processor_class, method_name) is not getattr(ProcessorMixin, method_name)

    @classmethod
    def setUpClass(cls):
        cls.tmpdirname, cls.full_tmpdirname = tempfile.mkdtemp(), None
        processor = cls.make()
        cls._setup_test_attributes(processor)
        processor.save_pretrained(cls.tmpdirname)

    @classmethod
    def _setup_tokenizer(cls):
        return cls.make().tokenizer

    @classmethod
    def _setup_image_processor(cls):
        return cls.make().image_processor


class BagelProcessorTest(ProcessorCase, unittest.TestCase):
    """BAGEL's."""

    processor_class = BagelProcessor
    make = staticmethod(tiny_bagel_processor)
    images_input_name = "vit_patches"
    grids_input_name = "vit_grids"

    def _test_apply_chat_template(self, modality, batch_size, return_tensors, input_name, *rest):
        """Images are counted by their grids: their patches lie end to end."""
        super()._test_apply_chat_template(modality, batch_size, return_tensors, "grids_input_name", *rest)


class JanusProcessorTest(ProcessorCase, unittest.TestCase):
    """Janus-Pro's."""

    processor_class = JanusProcessor
    make = staticmethod(tiny_janus_processor)

    @staticmethod
    def prepare_processor_dict():
        """Tokens of an image of the tiny model."""
        return {"num_image_tokens": 16}
