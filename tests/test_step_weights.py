"""Steps of drawing and writing on the experts' weights: the numbers of the modules, and the modules where they are not
plain."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import picture, tiny_bagel, tiny_bagel_processor
from torch import nn

from uniedit_hf.models.bagel import decoder_bagel
from uniedit_hf.models.bagel.decoder_bagel import EAGER
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration
from uniedit_hf.models.bagel.step_weights import PLAIN, side_by_side, step_experts
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


BOTH = ("", "_moe_gen")


def changed(model):
    """With norms and biases that are not those of a new model."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("expert", range(2))
def test_weights_compute_what_modules_do(dtype, bound, expert):
    decoder = changed(tiny_bagel()).to(dtype).model.language_model
    experts, regions = step_experts(decoder, BOTH, EAGER)
    assert regions is PLAIN
    size = decoder.layers[0].self_attn.head_dim
    with torch.no_grad():
        hidden = 3 * torch.randn(5, decoder.config.hidden_size).to(dtype)
        tables = decoder_bagel.rotary_tables(decoder.rotary_emb, hidden, torch.arange(5))
        for layer, weights in zip(decoder.layers, experts):
            modules = layer.expert(BOTH[expert])
            expected = decoder_bagel.project(modules, hidden, *tables)
            found = regions.project(weights[expert], hidden, *tables)
            attended = torch.randn(5, decoder.config.num_attention_heads * size).to(dtype)
            expected += (decoder_bagel.absorb(modules, hidden, attended),)
            found += (regions.absorb(weights[expert], hidden, attended),)
            for one, other in zip(found, expected):
                assert one.dtype == dtype and one.shape == other.shape
                assert (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e18])
def test_norms_of_extreme_lengths(value):
    decoder = tiny_bagel().model.language_model
    experts, _ = step_experts(decoder, BOTH, EAGER)
    states = torch.full((2, decoder.config.hidden_size), value)
    with torch.no_grad():
        expected = decoder.layers[0].input_layernorm(states)
        assert torch.allclose(experts[0][0].input_norm(states), expected, rtol=1e-5, atol=0)


def test_what_is_not_plain_runs_through_modules():
    model = tiny_bagel()
    assert step_experts(model.model.language_model, BOTH, EAGER)[1] is PLAIN
    linear = model.model.language_model.layers[1].mlp.up_proj

    def regions():
        return step_experts(model.model.language_model, BOTH, EAGER)[1]

    hook = linear.register_forward_hook(lambda *_: None)
    assert regions() is EAGER
    hook.remove()
    linear.weight.data = linear.weight.data.double()
    assert regions() is EAGER
    linear.weight.data = linear.weight.data.float()
    with torch.autocast("cpu"):
        assert regions() is EAGER
    compiled = EAGER._replace(project=lambda *_: None)
    assert step_experts(model.model.language_model, BOTH, compiled)[1] is compiled
    assert regions() is PLAIN
    get_peft_model(model, LoraConfig(target_modules=model.lora_target_modules()))
    assert regions() is EAGER


def results(model, processor):
    """Latents of an edit, and the tokens of an answer."""
    views = [ImageSegment(picture(64, 48, 1), "vae"), ImageSegment(picture(64, 48, 1), "vit")]
    contexts = processor.guidance_contexts([Sample([*views, TextSegment("paint it")])])
    settings = ImageSettings(48, 64, num_timesteps=4, image_guidance_scale=2.0, guidance_interval=(0.0, 1.0))
    (latents,) = model.generate_latents([settings], **contexts)
    inputs = processor([Sample([views[1], TextSegment("what colour is this")])])
    return latents, model.generate(**inputs, max_new_tokens=8, do_sample=False)


def test_changed_weights_are_seen():
    """Between calls, in place or not: adapters, other weights, another dtype and back."""
    processor, model, other = tiny_bagel_processor(), changed(tiny_bagel()), tiny_bagel()
    first = results(model, processor)
    with torch.no_grad():
        for parameter, new in zip(model.parameters(), other.parameters()):
            parameter.copy_(new)
    latents, tokens = results(model, processor)
    expected = results(other, processor)
    assert torch.equal(tokens, expected[1]) and torch.allclose(latents, expected[0], atol=1e-5)
    assert not torch.allclose(latents, first[0], atol=1e-3)
    for parameter, new in zip(model.parameters(), changed(tiny_bagel()).parameters()):
        parameter.data = new.data.clone()
    latents, tokens = results(model.double().float(), processor)
    assert torch.equal(tokens, first[1]) and torch.allclose(latents, first[0], atol=1e-5)


def test_a_model_that_has_drawn_is_saved_copied_and_trained(tmp_path):
    """Queries, keys and values share memory from then on, each as a slice of its own."""
    processor, model = tiny_bagel_processor(), changed(tiny_bagel())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    latents, tokens = results(model, processor)
    attention = model.model.language_model.layers[0].self_attn
    assert attention.k_proj.weight.untyped_storage().data_ptr() == attention.q_proj.weight.untyped_storage().data_ptr()
    model.save_pretrained(tmp_path)
    for again in (BagelForConditionalGeneration.from_pretrained(tmp_path).eval(), copy.deepcopy(model)):
        assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
        found = results(again, processor)
        assert torch.equal(found[0], latents) and torch.equal(found[1], tokens)
    moved = model.to(torch.bfloat16).to(torch.float32)
    assert results(moved, processor)[0].shape == latents.shape
    optimizer = torch.optim.SGD([attention.q_proj.weight], lr=1.0)
    attention.q_proj.weight.grad = torch.ones_like(attention.q_proj.weight)
    key = attention.k_proj.weight.clone()
    optimizer.step()
    assert torch.equal(attention.k_proj.weight, key)


def test_parameters_side_by_side():
    parts = [nn.Parameter(torch.randn(n, 3)) for n in (4, 2, 2)]
    values = torch.cat([part.data.clone() for part in parts])
    whole = side_by_side(parts)
    again = side_by_side(parts)
    assert torch.equal(whole, values) and again.data_ptr() == whole.data_ptr() and torch.equal(again, values)
    parts[1].data = parts[1].data.clone()
    moved = side_by_side(parts)
    assert moved.data_ptr() != whole.data_ptr() and torch.equal(moved, values)
    swapped = side_by_side([parts[0], parts[2], parts[1]])
    assert torch.equal(swapped, values[[0, 1, 2, 3, 6, 7, 4, 5]])
