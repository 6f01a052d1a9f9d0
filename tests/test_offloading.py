"""Parts of a model that take turns on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_bagel, tiny_bagel_processor, tiny_janus, tiny_janus_processor

from uniedit_hf.models.offloading import at_work, take_turns
from uniedit_hf.pipeline import UniEditPipeline


def results(pipe: UniEditPipeline) -> list:
    """An edit with a preview in its middle, an answer with either cache, and a drawing."""

    def look(pipe, index, timestep, shown):
        if index == 1:
            shown["preview"]()

    image, settings = picture(64, 48, 1), {"seed": 0, "num_timesteps": 5}
    edited = pipe.edit(image, "paint it", **settings, callback_on_step_end=look)
    answers = [
        pipe.answer(image, "what is this", max_new_tokens=6, cache_implementation=cache) for cache in (None, "static")
    ]
    return [edited.tobytes(), *answers, pipe.generate("a circle", size=(64, 64), **settings).tobytes()]


def watch(hook, name: str, calls: list[str]) -> None:
    """Notes every time the hook is asked."""
    asked = hook.pre_forward

    def noted(*arguments, **options):
        calls.append(name)
        return asked(*arguments, **options)

    hook.pre_forward = noted


def test_parts_that_take_turns_give_the_same():
    """On a CPU nothing moves, but every part is asked for before it works and the one before it is sent back."""
    expected = results(UniEditPipeline(tiny_bagel(), tiny_bagel_processor()))
    pipe = UniEditPipeline(tiny_bagel(), tiny_bagel_processor()).enable_model_cpu_offload("cpu")
    calls = []
    names = ("autoencoder", "encoder", "decoder")
    for name, part in zip(names, pipe.model.parts_in_turn):
        asked = part._hf_hook.pre_forward
        part._hf_hook.pre_forward = lambda *args, name=name, asked=asked, **kw: (
            calls.append(name),
            asked(*args, **kw),
        )[1]
    for found, wanted in zip(results(pipe), expected, strict=True):
        if isinstance(wanted, bytes):  # hooks take the way through modules, which may round otherwise
            levels = (np.frombuffer(each, np.uint8).astype(int) for each in (found, wanted))
            assert np.abs(np.subtract(*levels)).max() <= 1
        else:
            assert found == wanted
    order = [name for name, before in zip(calls, [None, *calls]) if name != before]
    drawing = ["decoder", "autoencoder"]
    assert order[:2] == ["autoencoder", "encoder"] and order[2:6] == drawing * 2  # the preview, the image
    assert order[6:] == ["encoder", "decoder", "encoder", "decoder", "autoencoder"]


def test_only_the_part_at_work_is_on_the_device():
    """`meta` stands for a GPU: tensors really go there, and come back without their values."""
    parts = tiny_bagel().parts_in_turn
    for _ in range(2):  # once more changes nothing
        take_turns(torch.nn.ModuleList(parts), parts, torch.device("meta"))
    for part in parts:
        part.to = lambda device, part=part: part.to_empty(device=device)

    def places() -> list[set[str]]:
        return [{each.device.type for each in part.parameters()} for part in parts]

    assert places() == [{"cpu"}] * 3
    for number in (2, 0, 2, 1, 1, 2, 0):  # any may follow any
        at_work(parts[number])
        assert places() == [{"meta"} if each == number else {"cpu"} for each in range(3)]


def test_what_cannot_take_turns():
    with pytest.raises(ValueError, match="JanusForConditionalGeneration has no parts that take turns: load it with"):
        UniEditPipeline(tiny_janus(), tiny_janus_processor()).enable_model_cpu_offload("cpu")
    model = tiny_bagel()
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="There is no GPU to offload from: leave out enable_model_cpu_offload"):
            UniEditPipeline(model, tiny_bagel_processor()).enable_model_cpu_offload()
    model.hf_device_map = {"": "cpu"}
    with pytest.raises(ValueError, match="was quantized or placed by device_map when it was loaded"):
        UniEditPipeline(model, tiny_bagel_processor()).enable_model_cpu_offload("cpu")
