"""What `UniEditPipeline.from_pretrained` hands on to the model, for both families: dtype, device map, quantization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_bagel, tiny_bagel_processor, tiny_janus, tiny_janus_processor
from transformers import TorchAoConfig

from uniedit_hf import UniEditPipeline


FAMILIES = {"bagel": (tiny_bagel, tiny_bagel_processor), "janus": (tiny_janus, tiny_janus_processor)}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = FAMILIES[request.param]
    UniEditPipeline(model(), processor()).save_pretrained(folder)
    return folder


def answer_and_edit(pipe: UniEditPipeline) -> tuple[str, np.ndarray]:
    settings = {"num_timesteps": 4} if "num_timesteps" in pipe.known_settings else {"temperature": 0.0}
    edit = pipe.edit(picture(), "paint the circle red", seed=1, **settings)
    return pipe.answer(picture(), "what is this", max_new_tokens=3), np.asarray(edit).astype(int)


def test_dtype_and_device_map(folder):
    plain = UniEditPipeline.from_pretrained(folder)
    mapped = UniEditPipeline.from_pretrained(folder, device_map="cpu")
    for expected, found in zip(answer_and_edit(plain), answer_and_edit(mapped)):
        assert np.array_equal(expected, found)
    half = UniEditPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and answer_and_edit(half)[1].shape == answer_and_edit(plain)[1].shape


def test_eight_bits_by_torchao(folder):
    quantization = pytest.importorskip("torchao.quantization", reason="needs the extra quantization")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pipe = UniEditPipeline.from_pretrained(folder, quantization_config=config)
    stored = [type(weight.data).__name__ for weight in pipe.model.parameters()]
    assert sum("Int8" in kind or "Quantized" in kind for kind in stored) > 20
    plain = UniEditPipeline.from_pretrained(folder)
    (answer, edit), (expected_answer, expected) = answer_and_edit(pipe), answer_and_edit(plain)
    assert edit.shape == expected.shape and answer.split()[0] == expected_answer.split()[0]
