"""What training is made of: gradients, checkpointing, dtypes, adapters, devices."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from diffusers import AutoencoderKL
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import picture, tiny_bagel, tiny_bagel_config, tiny_bagel_processor
from torch import nn

from uniedit_hf.models.bagel import BagelForConditionalGeneration
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


@pytest.fixture
def model():
    return tiny_bagel()


@pytest.fixture(scope="module")
def processor():
    return tiny_bagel_processor()


def samples() -> dict[str, Sample]:
    first, second = picture(64, 48, 1), picture(40, 72, 2)
    vit, text = ImageSegment(first, "vit"), TextSegment("paint the circle red")
    target = ImageSegment(second, "vae", loss=True)
    return {
        "edit": Sample([ImageSegment(first, "vae"), vit, text, target], "edit"),
        "drawing": Sample([text, target], "drawing"),
        "answer": Sample([vit, text, TextSegment("a red circle", loss=True)], "answer"),
        "text": Sample([TextSegment("yes and no", loss=True)], "text"),
        "reading": Sample([vit, text], "reading"),
    }


def pack(processor, *names: str):
    return processor.pack([samples()[name] for name in names], seed=1)


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    losses = model(**batch)
    (losses.text + losses.image).backward()
    return {name: x.grad for name, x in model.named_parameters() if x.requires_grad}


# ---- gradients


FIXED = re.compile(r"vae\.|model\.(vit|latent)_pos_embed\.")


@pytest.mark.parametrize("names", [["edit", "answer"], ["edit"], ["drawing"], ["answer"], ["text"], ["reading"]])
def test_every_trained_parameter_gets_a_gradient(model, processor, names):
    """Whatever is missing in a pack, as distributed training needs it; and only what the losses reach is moved."""
    found = gradients(model.train(), pack(processor, *names))
    assert {name for name, _ in model.named_parameters() if not FIXED.match(name)} == found.keys()
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in found.values())
    moved = {name for name, gradient in found.items() if gradient.any()}
    assert ("lm_head.weight" in moved) == bool({"answer", "text"} & set(names))
    for part in ("vae2llm.weight", "time_embedder.mlp.0.weight", "llm2vae.weight"):
        assert (f"model.{part}" in moved) == bool({"edit", "drawing"} & set(names))
    for part in ("connector.fc1.weight", "vit_model.vision_model.embeddings.patch_embedding.weight"):
        assert (f"model.{part}" in moved) == bool({"edit", "answer"} & set(names))
    assert ("model.language_model.layers.0.mlp_moe_gen.up_proj.weight" in moved) == bool(
        {"edit", "drawing"} & set(names)
    )


def test_absent_images_change_nothing(model, processor):
    batch = pack(processor, "text")
    with torch.no_grad():
        expected = model(**batch)
    found = model(**batch)
    assert torch.equal(found.text_sum, expected.text_sum) and found.image_sum == 0 and found.image_count == 0


def test_trainable_parts_are_all_parameters_once(model):
    parts = model.trainable_parts()
    listed = [parameter for part in parts.values() for parameter in part]
    assert len(listed) == len({id(parameter) for parameter in listed}) == len(list(model.parameters()))
    fixed = {id(parameter) for parameter in parts["fixed"]}
    assert fixed == {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}


def test_what_no_image_loss_reaches(model, processor):
    """`text_only` is exactly what stays still under an image loss alone."""
    found = gradients(model.train(), pack(processor, "edit"))
    still = {name for name, gradient in found.items() if not gradient.any()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    text_only = {names[id(parameter)] for parameter in model.trainable_parts()["text_only"]}
    # an output projection of the understanding expert has no bias, and key biases cancel in a softmax
    assert text_only == {name for name in still if "k_proj.bias" not in name}


# ---- gradient checkpointing


class Calls:
    """How often each module ran."""

    def __init__(self, **modules: nn.Module):
        self.count = dict.fromkeys(modules, 0)
        # before the module runs: recomputing ends as soon as it has what it needs
        self.hooks = [module.register_forward_pre_hook(self._add(name)) for name, module in modules.items()]

    def _add(self, name: str):
        def hook(*_):
            self.count[name] += 1

        return hook


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("vit_frozen", [False, True])
def test_checkpointing_recomputes_what_is_trained_and_nothing_else(model, processor, vit_frozen, use_reentrant):
    model.train()
    model.model.vit_model.requires_grad_(not vit_frozen)
    batch = pack(processor, "edit", "answer")
    expected = gradients(model, batch)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    vit_layer = model.model.vit_model.vision_model.encoder.layers[0]
    calls = Calls(
        layer=model.model.language_model.layers[1].mlp, vit=vit_layer.layer_norm1, vae=model.vae.encoder.mid_block
    )
    found = gradients(model, batch)
    # four images of two sizes: two batches of the autoencoder; one size of the ViT
    assert calls.count == {"layer": 2, "vit": 1 if vit_frozen else 2, "vae": 2}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert not model.vae.is_gradient_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


# ---- dtypes


def assert_vae_in_fp32(model) -> None:
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float32}
    rest = {parameter.dtype for name, parameter in model.named_parameters() if not name.startswith("vae.")}
    assert rest == {torch.bfloat16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("saved")
    tiny_bagel().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_autoencoder_stays_in_fp32(saved, tmp_path):
    expected = tiny_bagel().vae.state_dict()
    model = BagelForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    assert_vae_in_fp32(model)
    model.save_pretrained(tmp_path)
    casts = [
        model,
        BagelForConditionalGeneration.from_pretrained(tmp_path),
        tiny_bagel().to(torch.bfloat16),
        tiny_bagel().bfloat16(),
        copy.deepcopy(tiny_bagel()).to("cpu", torch.bfloat16),
    ]
    for each in casts:
        assert_vae_in_fp32(each)
        for name, tensor in each.vae.state_dict().items():
            assert torch.equal(tensor, expected[name])
    assert_vae_in_fp32(BagelForConditionalGeneration._from_config(tiny_bagel_config(), dtype=torch.bfloat16))
    assert isinstance(model.vae, AutoencoderKL)


def test_dtypes_of_what_comes_out(saved, processor):
    """Losses, latents and pixels in fp32, logits in the model's own dtype."""
    model = BagelForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    losses = model(**pack(processor, "edit", "answer"))
    assert losses.text_sum.dtype == losses.image_sum.dtype == torch.float32
    assert losses.text_count.dtype == losses.image_count.dtype == torch.int64
    (losses.text + losses.image).backward()
    exact = tiny_bagel()(**pack(processor, "edit", "answer"))
    assert losses.text.item() == pytest.approx(exact.text.item(), rel=0.05)
    assert losses.image.item() == pytest.approx(exact.image.item(), rel=0.05)
    assert model(**processor(samples()["reading"])).logits.dtype == torch.bfloat16
    (latents,) = model.encode_images([torch.zeros(3, 32, 32)])
    assert latents.dtype == torch.float32
    pipe = UniEditPipeline(model, processor)
    pipe.edit(picture(), "paint the circle red", num_timesteps=3, callback_on_step_end=check_fp32)
    assert pipe.answer(picture(), "what is this", max_new_tokens=4) is not None


def check_fp32(pipe: UniEditPipeline, index: int, timestep: torch.Tensor, shown: dict) -> None:
    assert all(each.dtype == torch.float32 for each in shown["latents"])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_autocast_trains(model, processor, implementation):
    """Weights in fp32, matrices in bf16: gradients near those of fp32, the autoencoder exact."""
    model.set_attn_implementation(implementation)
    batch = pack(processor, "edit", "answer")
    expected = gradients(model.train(), batch)
    latents = model.encode_images(batch["vae_images"])
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, batch)
        assert all(torch.equal(*pair) for pair in zip(model.encode_images(batch["vae_images"]), latents))
    norms = [torch.stack([g.norm() for g in each.values()]).norm().item() for each in (found, expected)]
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        before = sum(gradients_and_losses(model, batch, optimizer) for _ in range(3))
        after = sum(gradients_and_losses(model, batch, optimizer) for _ in range(3))
    assert after < before


def gradients_and_losses(model, batch, optimizer) -> float:
    optimizer.zero_grad()
    losses = model(**batch)
    loss = losses.text + losses.image
    loss.backward()
    optimizer.step()
    return loss.item()


# ---- adapters


EXPERTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEARS = {
    f"model.language_model.layers.{layer}.{block}"
    for layer in range(3)
    for name in EXPERTS
    for block in (
        [f"mlp.{name}", f"mlp_moe_gen.{name}"]
        if name in EXPERTS[4:]
        else [f"self_attn.{name}", f"self_attn.{name}_moe_gen"]
    )
}


def with_adapters(model, **options) -> PeftModel:
    pattern = model.lora_target_modules(**options)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=pattern, init_lora_weights=False))
    return tuned.eval()


def adapted(tuned: PeftModel) -> set[str]:
    names = (name for name, module in tuned.named_modules() if hasattr(module, "lora_A") and module.lora_A)
    return {name.removeprefix("base_model.model.") for name in names}


def outputs(model, processor) -> list[torch.Tensor]:
    with torch.no_grad():
        losses = model(**pack(processor, "edit", "answer"))
        logits = model(**processor(samples()["reading"])).logits
    return [losses.text_sum, losses.image_sum, logits]


def test_adapters_go_to_the_linear_layers_of_both_experts(model):
    assert adapted(with_adapters(model, text=True)) == LINEARS and len(LINEARS) == 3 * 14


def test_adapters_of_one_expert(model):
    last = {f"model.language_model.layers.2.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj")}
    last |= {f"model.language_model.layers.2.mlp.{name}" for name in EXPERTS[4:]}
    und = {name for name in LINEARS if "_moe_gen" not in name}
    assert adapted(with_adapters(copy.deepcopy(model))) == LINEARS - last
    assert adapted(with_adapters(copy.deepcopy(model), und=False)) == LINEARS - und
    assert adapted(with_adapters(copy.deepcopy(model), gen=False)) == und - last


def test_only_adapters_train(model, processor):
    tuned = with_adapters(model, text=True).train()
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    found = gradients(tuned, pack(processor, "edit", "answer"))
    assert all(gradient.any() for gradient in found.values())


def test_adapters_with_checkpointing(model, processor):
    tuned = with_adapters(model, text=True).train()
    batch = pack(processor, "edit", "answer")
    expected = gradients(tuned, batch)
    tuned.activation_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(tuned, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_adapters_save_load_and_merge(model, processor, tmp_path):
    plain = outputs(model, processor)
    tuned = with_adapters(model, text=True)
    expected = outputs(tuned, processor)
    assert not any(torch.allclose(*pair) for pair in zip(plain, expected))
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bagel(), tmp_path).eval()
    assert all(torch.equal(*pair) for pair in zip(outputs(loaded, processor), expected))
    merged = loaded.merge_and_unload()
    assert type(merged) is BagelForConditionalGeneration
    for found, wanted in zip(outputs(merged, processor), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = BagelForConditionalGeneration.from_pretrained(tmp_path / "merged")
    for found, wanted in zip(outputs(again, processor), outputs(merged, processor)):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_folder_of_adapters_loads_with_its_base(saved, processor, tmp_path):
    """As the Hub shows them: `adapter_config.json` names the base model."""
    tuned = with_adapters(BagelForConditionalGeneration.from_pretrained(saved), text=True)
    expected = outputs(tuned, processor)
    tuned.save_pretrained(tmp_path)
    loaded = BagelForConditionalGeneration.from_pretrained(tmp_path)
    for found, wanted in zip(outputs(loaded, processor), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    processor.save_pretrained(tmp_path)
    pipe = UniEditPipeline.from_pretrained(tmp_path)
    assert pipe.answer(picture(), "what is this", max_new_tokens=3) is not None


# ---- devices


def test_device_maps(saved, processor, tmp_path):
    expected = outputs(BagelForConditionalGeneration.from_pretrained(saved), processor)
    on_cpu = BagelForConditionalGeneration.from_pretrained(saved, device_map={"": "cpu"})
    assert all(torch.equal(*pair) for pair in zip(outputs(on_cpu, processor), expected))
    places = {"model.language_model.layers.1": "disk", "model.language_model.layers.2": "disk"}
    places |= {"model.language_model.layers.0": "cpu", "lm_head": "cpu", "vae": "cpu"}
    others = ("embed_tokens", "norm", "norm_moe_gen", "rotary_emb")
    places |= {f"model.language_model.{name}": "cpu" for name in others}
    others = ("vit_model", "connector", "vit_pos_embed", "latent_pos_embed", "time_embedder", "vae2llm", "llm2vae")
    places |= {f"model.{name}": "cpu" for name in others}
    offloaded = BagelForConditionalGeneration.from_pretrained(saved, device_map=places, offload_folder=tmp_path)
    assert offloaded.model.language_model.layers[2].mlp.up_proj.weight.is_meta
    for found, wanted in zip(outputs(offloaded, processor), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    pipes = [UniEditPipeline(each, processor) for each in (on_cpu, offloaded)]
    answers = [pipe.answer(picture(), "what is this", max_new_tokens=5) for pipe in pipes]
    assert answers[0] == answers[1]
