"""A training step of BAGEL asks nothing of the device, and how its layers run does not change what they compute."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from tiny_models import picture, tiny_bagel, tiny_bagel_processor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from training_data import curve, edit_rows, settings, trainer

from uniedit_hf.models.bagel.decoder_bagel import EAGER
from uniedit_hf.segments import ImageSegment, Sample, TextSegment
from uniedit_hf.training.layer_options import set_checkpointing


SYNCHRONIZING = {"aten::nonzero", "aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::masked_select"}


def pack(width: int = 64, text_loss: bool = False):
    """Two edits of different sizes, as the loader hands them over."""
    processor = tiny_bagel_processor()
    samples = []
    for number, size in enumerate(((width, 48), (32, 64))):
        segments = [ImageSegment(picture(*size, number), "vit"), ImageSegment(picture(*size, number), "vae")]
        segments += [TextSegment("paint the circle red", loss=text_loss)]
        segments += [ImageSegment(picture(*size, number + 5), "vae", loss=True)]
        samples.append(Sample(segments, str(number)))
    merged = processor.merge([processor.pack([sample], seed=1, posterior="sample") for sample in samples])
    return {name: value for name, value in merged.items() if not name.startswith("num_")}


def losses_and_gradients(model, features) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses = model(**features)
    loss = losses.image + losses.text
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance: float = 1e-5) -> None:
    """To the tolerance of the largest gradient of all: some are zero but for rounding."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    scale = max(gradient.abs().max() for gradient in expected[1].values())
    assert max((found[1][name] - expected[1][name]).abs().max() for name in found[1]) < tolerance * scale


@pytest.fixture
def model():
    return tiny_bagel().train()


def operations(work) -> Counter:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return Counter(event.name for event in profiler.events())


def test_a_forward_and_backward_ask_nothing_of_the_device(model):
    features = pack(text_loss=True)
    losses = []
    forward = operations(lambda: losses.append(model(**features)))
    assert not SYNCHRONIZING & forward.keys()
    backward = operations((losses[0].image_sum + losses[0].text_sum).backward)
    assert not SYNCHRONIZING & backward.keys()


def test_the_passes_of_a_run_ask_nothing_of_the_device(tmp_path):
    run = trainer(tmp_path, edit_rows(), gradient_accumulation_steps=4, max_steps=2)
    asked, passes = [], run.training_step

    def counted(*args, **kwargs):
        losses = []
        asked.append(SYNCHRONIZING & operations(lambda: losses.append(passes(*args, **kwargs))).keys())
        return losses[0]

    run.training_step = counted
    run.train()
    assert asked == [set()] * 8


def test_evaluation_asks_nothing_either(model):
    features = pack()
    with torch.no_grad():
        assert not SYNCHRONIZING & operations(lambda: model.eval()(**features)).keys()


def test_a_pack_without_routing_is_routed_by_the_model(model):
    features = pack(text_loss=True)
    by_hand = {name: value for name, value in features.items() if name != "routing"}
    assert_same(losses_and_gradients(model, by_hand), losses_and_gradients(model, features), tolerance=1e-7)


def test_a_routing_goes_between_processes(model):
    features = pack()
    sent = features | {"routing": pickle.loads(pickle.dumps(features["routing"]))}
    assert torch.equal(model(**sent).image_sum, model(**features).image_sum)


@pytest.mark.parametrize("implementation", ["eager", "split_sdpa"])
def test_every_attention_learns_the_same(model, implementation):
    features = pack(text_loss=True)
    expected = losses_and_gradients(model, features)
    model.set_attn_implementation(implementation)
    assert_same(losses_and_gradients(model, features), expected)


def test_the_last_layer_leaves_out_what_is_not_read(model):
    """Where no text is learned the losses are the same with fewer operations, and with text nothing is left out."""
    last = model.model.language_model.layers[-1]
    features = pack()
    with FlopCounterMode(display=False) as whole:
        expected = model(**features)
    assert last.writes
    for part in (last.mlp, last.self_attn.q_proj, last.self_attn.q_norm, last.self_attn.o_proj):
        part.requires_grad_(False)
    last.post_attention_layernorm.requires_grad_(False)
    assert not last.writes
    with FlopCounterMode(display=False) as less:
        found = model(**features)
    torch.testing.assert_close(found.image_sum, expected.image_sum)
    assert less.get_total_flops() < whole.get_total_flops()
    assert features["routing"].gen_splits is not None and pack(text_loss=True)["routing"].gen_splits is None


# ---- how the layers run


@pytest.mark.parametrize("mode", ["full", "selective", "none"])
def test_checkpoints_change_no_gradient(model, mode):
    features = pack(text_loss=True)
    expected = losses_and_gradients(model, features)
    set_checkpointing(model, mode, compiled=False)
    assert_same(losses_and_gradients(model, features), expected, tolerance=1e-7)


def test_selective_checkpoints_repeat_no_product(model):
    """A norm runs again in the backward pass; a product does so under full checkpoints alone."""
    features, repeated = pack(), {}
    for mode in ("none", "selective", "full"):
        set_checkpointing(model, mode, compiled=False)
        loss = model(**features).image_sum
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        repeated[mode] = counter.get_total_flops()
    assert repeated["none"] == repeated["selective"] < repeated["full"]


def compiled(model, backend: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_for_training(backend)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_are_compiled_once_and_compute_the_same(model, backend):
    """One piece of code for each region serves both experts in all layers and packs of any size."""
    packs = [pack(64, text_loss=True), pack(96, text_loss=True), pack(32, text_loss=True)]
    expected = [losses_and_gradients(model, features) for features in packs]
    compiled(model, backend)
    for features, wanted in zip(packs, expected):
        assert_same(losses_and_gradients(model, features), wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_compiled_layers_in_bf16_are_as_exact_as_eager_ones(model):
    """Against fp32 both are off by the rounding of bf16, about 1e-2, and neither by more than twice the other."""
    features = pack(text_loss=True)
    exact = model.pack_hidden_states(**features)
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    errors = []
    for regions in (EAGER, None):
        if regions is None:
            compiled(narrow, "inductor")
        found = narrow.pack_hidden_states(**features).float()
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert max(errors) < 3e-2 and max(errors) < 2 * min(errors)


@pytest.mark.parametrize("family", ["bagel", "janus"])
def test_a_run_with_compiled_layers_has_the_same_curve(tmp_path, family):
    torch._dynamo.reset()
    plain = trainer(tmp_path / "plain", edit_rows(), family=family)
    plain.train()
    fast = trainer(
        tmp_path / "fast", edit_rows(), family=family, torch_compile_backend="aot_eager",
        activation_checkpointing="selective",
    )  # fmt: skip
    assert fast.args.torch_compile and fast.args.activation_checkpointing == "selective"
    fast.train()
    losses = [[log["loss"] for log in curve(run.state.log_history)] for run in (plain, fast)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# ---- settings


def test_checkpointing_is_said_in_words(tmp_path):
    said = {"full": True, True: True, "none": False, False: False, "selective": "selective", "false": False}
    for asked, meant in said.items():
        assert settings(tmp_path, activation_checkpointing=asked).activation_checkpointing == meant
    with pytest.raises(ValueError, match="activation_checkpointing is 'some': use 'full', 'selective' or 'none'"):
        settings(tmp_path, activation_checkpointing="some")


def test_without_a_compiler_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="torch_compile needs a C compiler .*, which is not installed: install it"):
        settings(tmp_path, torch_compile=True)
    assert not settings(tmp_path).torch_compile
    assert settings(tmp_path, torch_compile_backend="aot_eager").torch_compile


def test_the_compiler_leaves_fp32_as_it_is(tmp_path):
    before = torch.get_float32_matmul_precision()
    settings(tmp_path, torch_compile_backend="aot_eager")
    assert torch.get_float32_matmul_precision() == before
