"""docs/add_a_model.md is true: the family that it shows goes through trainer and pipeline, and the contract names what
trainer, pipeline and page really use."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES, picture, tiny_janus_tokenizer
from training_data import curve, edit_rows

from uniedit_hf import UniEditConfig, UniEditPipeline, UniEditTrainer
from uniedit_hf.models.family import FamilyModel, FamilyProcessor, PolicyModel, check_family, members
from uniedit_hf.recipes import RECIPES, edit_sample
from uniedit_hf.streams import Finished


ROOT = Path(__file__).parents[1]


@cache
def color_family() -> ModuleType:
    """The classes of the page's code block."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add_a_model.md").read_text(), flags=re.DOTALL)
    module = sys.modules["color_family"] = ModuleType("color_family")
    exec(compile(block, "add_a_model.md", "exec"), vars(module))
    return module


def color_model(seed: int = 0):
    torch.manual_seed(seed)
    return color_family().ColorModel(color_family().ColorConfig(vocab_size=64))


def color_processor():
    return color_family().ColorProcessor(tiny_janus_tokenizer())


def color_trainer(folder, rows, **changes) -> UniEditTrainer:
    defaults = {
        "output_dir": str(folder), "max_steps": 30, "learning_rate": 3e-2, "warmup_steps": 0, "logging_steps": 1,
        "max_tokens_per_pack": 60, "packing_window": 8, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "activation_checkpointing": False,
    }  # fmt: skip
    args = UniEditConfig(**defaults | changes)
    return UniEditTrainer(color_model(), args, rows, processing_class=color_processor())


# ---- the page's family


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recipe": "answer", "text_loss_weight": 1.0},
        {"recipe": "generate"},
        {"source_views": ["drawing", "understanding"], "drawing_dropout": 0.5, "full_dropout": 0.1},
    ],
)
def test_it_trains(tmp_path, changes):
    run = color_trainer(tmp_path, edit_rows(12), **changes)
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    run.train()
    losses = [log["loss"] for log in curve(run.state.log_history)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    moved = {name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])}
    frozen = "image_head" if changes.get("recipe") == "answer" else "text_head"
    assert moved == {name for name in before if not name.startswith(frozen)} - (
        {name for name in before if name.startswith("colors")} if changes.get("recipe") == "generate" else set()
    )


def test_batching_does_not_change_its_curve(tmp_path):
    curves = [
        curve(run.state.log_history)
        for size, steps in ((1, 4), (4, 1))
        for run in [
            color_trainer(
                tmp_path / str(size), edit_rows(16), max_steps=5, per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
            )
        ]
        if run.train()
    ]  # fmt: skip
    for first, second in zip(*curves, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


def test_it_resumes_exactly(tmp_path):
    whole = color_trainer(tmp_path / "whole", edit_rows(12), max_steps=6)
    whole.train()
    color_trainer(tmp_path / "half", edit_rows(12), max_steps=6, save_strategy="steps", save_steps=3).train()
    resumed = color_trainer(tmp_path / "half", edit_rows(12), max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))


def test_lengths_are_as_planned():
    processor = color_processor()
    for name in ("edit", "answer", "generate"):
        sample = RECIPES[name](edit_rows(1)[0], processor.conditioning)
        assert processor.num_tokens(sample) == processor.pack([sample])["input_ids"].shape[1]


def test_it_edits_answers_and_draws():
    pipe = UniEditPipeline(color_model(), color_processor(), batch_size=2)
    source = picture(24, 16)
    edits = pipe.edit([source] * 3, ["paint it red", "make it blue", "paint it red"], text_guidance_scale=[2, 2, 1])
    assert [image.size for image in edits] == [(24, 16)] * 3
    alone = pipe.edit(source, "make it blue", text_guidance_scale=2)
    assert np.array_equal(np.array(alone), np.array(edits[1]))
    assert not np.array_equal(np.array(edits[0]), np.array(edits[2]))
    assert pipe.generate("a red circle", size=(8, 12)).size == (8, 12) and pipe.generate("red").size == (32, 32)
    assert len(pipe.processor.token_ids(pipe.answer(source, "what is this", max_new_tokens=3))) <= 3
    (last,) = pipe.stream_edit(source, "make it blue", seed=0)  # a single step, so nothing comes before the result
    assert isinstance(last, Finished) and last.result.size == (24, 16)
    seen = []
    pipe.edit(source, "make it blue", callback_on_step_end=lambda pipe, index, time, shown: seen.append(shown))
    assert [each["num_steps"] for each in seen] == [1] and seen[0]["preview"]()[0].shape == (3, 16, 24)
    with pytest.raises(ValueError, match="ColorProcessor cannot be asked for thoughts"):
        pipe.edit(source, "make it blue", thinking_budget=4)
    with pytest.raises(ValueError, match="ColorModel has no layers that can be compiled"):
        pipe.compile()


def test_its_adapters_train(tmp_path):
    from peft import LoraConfig

    args = color_trainer(tmp_path, edit_rows(8)).args
    run = UniEditTrainer(
        color_model(), args, edit_rows(8), processing_class=color_processor(), peft_config=LoraConfig(r=2)
    )
    assert {name.split(".")[2] for name, weight in run.model.named_parameters() if weight.requires_grad} == {
        "colors", "image_head",
    }  # fmt: skip
    assert run.train().training_loss > 0


def test_options_of_other_families_are_refused(tmp_path):
    with pytest.raises(ValueError, match="timestep_shift is 3.0, but ColorModel has no use for it: leave it out"):
        color_trainer(tmp_path, edit_rows(2), timestep_shift=3.0)


# ---- the contract


def everyone():
    pairs = {name: lambda family=family: (family.model(), family.processor()) for name, family in FAMILIES.items()}
    return pairs | {"color": lambda: (color_model(), color_processor())}


@pytest.mark.parametrize("name", everyone())
def test_every_family_keeps_the_contract(name):
    model, processor = everyone()[name]()
    check_family(model, processor)
    for protocol, each in ((FamilyModel, model), (FamilyProcessor, processor)):
        for member in members(protocol):
            described = getattr(protocol, member, None)
            assert member in protocol.__annotations__ or described.__doc__, f"{member} has no description"
            assert hasattr(each, member)
    with pytest.raises(ValueError, match="Tensor has no check_image_settings, .*FamilyModel"):
        check_family(torch.zeros(1), processor)
    with pytest.raises(ValueError, match="object has no __call__, .*FamilyProcessor .* docs/add_a_model.md"):
        check_family(model, object())


@pytest.mark.parametrize("name", everyone())
def test_views_go_by_either_name(name):
    _, processor = everyone()[name]()
    image, (first, second) = picture(32, 32), processor.view_names
    conditioning = processor.make_conditioning(source_views=[second, processor.view_names[first]])
    assert conditioning.source_views == (first, second) == processor.source_views
    row = {"id": "a", "source_image": image, "instruction": "paint it red", "target_image": image}
    by_role = edit_sample(row, conditioning)
    by_name = processor.with_own_views(by_role)
    assert [s.view for s in by_name.segments if hasattr(s, "view")] == [
        processor.view_names[view] for view in (first, second, "drawing")
    ]
    packs = [processor.pack([sample]) for sample in (by_role, by_name)]
    assert all(np.array_equal(packs[0][key], packs[1][key]) for key in ("input_ids", "token_type_ids", "labels"))
    with pytest.raises(ValueError, match=f"There is no view 'clip': {type(processor).__name__} has the views"):
        processor.make_conditioning(source_views=["clip"])


@pytest.mark.parametrize("name", everyone())
def test_the_pipeline_shows_views_in_the_order_of_training(name):
    model, processor = everyone()[name]()
    pipe, settings = (
        UniEditPipeline(model, processor),
        {"seed": 0, "text_guidance_scale": 1, "image_guidance_scale": 1},
    )
    if "num_timesteps" in pipe.known_settings:
        settings["num_timesteps"] = 3
    names = [*processor.view_names.values()][::-1]
    turned, default = (
        np.array(pipe.edit(picture(32, 32), "paint it red", **settings, **views))
        for views in ({"source_views": names}, {})
    )
    assert np.array_equal(turned, default)


@pytest.mark.parametrize("name", everyone())
def test_a_pack_is_the_merge_of_its_samples(name):
    _, processor = everyone()[name]()
    samples = [edit_sample(row, processor.conditioning) for row in edit_rows(3)]
    together = processor.pack(samples, seed=1, epoch=2)
    merged = processor.merge([processor.pack([sample], seed=1, epoch=2) for sample in samples])
    for key, value in together.items():
        same = torch.equal if isinstance(value, torch.Tensor) else (lambda a, b: str(a) == str(b))
        assert same(value, merged[key]), key


@pytest.mark.parametrize("name", everyone())
def test_pixels_become_images(name):
    _, processor = everyone()[name]()
    assert isinstance(processor.to_pil(torch.zeros(3, 4, 6)), Image.Image)
    with pytest.raises(ValueError, match="values that are not numbers"):
        processor.to_pil(torch.full((3, 4, 6), torch.nan))


# What every `PreTrainedModel`, `PeftModel` or `ProcessorMixin` has, and the options of the command `train`.
OF_TRANSFORMERS = set(
    "set_attn_implementation activation_checkpointing_enable activation_checkpointing_disable "
    "config generation_config can_generate device dtype eval train training to parameters named_parameters modules "
    "named_modules state_dict load_state_dict _no_split_modules "
    "save_pretrained from_pretrained add_model_tags get_base_model get_submodule set_submodule merge_and_unload "
    "peft_config disable_adapter _hf_peft_config_loaded tokenizer decode batch_decode".split()
)


def uses(names: tuple[str, ...], files) -> set[str]:
    """The attributes that files read from variables of these names."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                value = node.value
                called = value.func if isinstance(value, ast.Call) else value
                if getattr(called, "id", getattr(called, "attr", None)) in names:
                    found.add(node.attr)
    return found


def test_trainer_pipeline_and_page_ask_for_nothing_else():
    package = ROOT / "uniedit_hf"
    files = [
        *(package / "training").rglob("*.py"),
        *(ROOT / "spaces" / "uniedit_demo" / "demo").glob("*.py"),
        package / "pipeline.py",
        package / "streams.py",
        package / "thinking.py",
        package / "recipes.py",
        package / "packing.py",
    ]
    # only after a check that the family has them: `training_options`, `compile()`, `set_autoencoder()`
    optional = {"with_vit_longest_edge", "compile_layers", "set_autoencoder"}
    model = uses(("model", "inner", "inner_model"), files) - OF_TRANSFORMERS - optional
    processor = uses(("processor", "processing_class"), files) - OF_TRANSFORMERS - optional
    asked = members(FamilyModel) | members(PolicyModel)
    assert model <= asked, model - asked
    assert processor <= members(FamilyProcessor), processor - members(FamilyProcessor)
    assert len(model) >= 8 and len(processor) >= 15, "the search still finds what it looks for"
