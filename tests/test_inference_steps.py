"""The steps of drawing and writing: nothing is read back from the device, few operations, the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_models import picture, tiny_bagel, tiny_bagel_processor, tiny_janus, tiny_janus_processor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

from benchmarks.reference import Reference
from uniedit_hf.models.bagel import answer_step, denoising_bagel
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.models.bagel.token_step import CapturedStep
from uniedit_hf.models.janus.generation_janus import JanusImageSettings
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


FIXTURE = Path(__file__).parent / "fixtures" / "bagel_tiny"

# `aten::` calls of one step of this file's model at f82ce24, by `calls_a_step` below.
BEFORE = {"draw": 2005, "edit": 2062, "token": 1063, "static token": 1100, "static tokens": 1104}


@pytest.fixture
def model():
    return tiny_bagel()


@pytest.fixture(scope="module")
def processor():
    return tiny_bagel_processor()


def edit() -> Sample:
    source = picture(64, 48, 1)
    return Sample([ImageSegment(source, "vae"), ImageSegment(source, "vit"), TextSegment("paint it")])


def question(words: str = "what colour is this", seed: int = 1) -> Sample:
    return Sample([ImageSegment(picture(64, 48, seed), "vit"), TextSegment(words)])


def drawn(model, processor, sample: Sample, timesteps: int, callback=None, **settings) -> torch.Tensor:
    guided = {"image_guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)}
    request = ImageSettings(48, 64, num_timesteps=timesteps, **guided | settings)
    contexts = processor.guidance_contexts([sample])
    return model.generate_latents([request], **contexts, callback_on_step_end=callback)[0]


def written(model, processor, samples: list[Sample], tokens: int, **options) -> torch.Tensor:
    inputs = processor(samples)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
    return output[:, inputs["input_ids"].shape[1] :]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# ---- nothing is read back


class NothingReadBack(TorchDispatchMode):
    """Fails at operations whose result decides what the host does next, which on a GPU would wait for the device."""

    seen = 0  # operations
    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "_unique2", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        by_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        assert name not in self.WAITING and not by_mask, f"{func} reads from the device"
        self.seen += 1
        return func(*args, **kwargs or {})

    def after_the_first_step(self, step) -> None:
        """As a callback of a drawing: watches from the end of the first step to the end of the last."""
        if step.number == 1:
            self.__enter__()
        elif step.number == step.total:
            self.__exit__(None, None, None)


@pytest.mark.parametrize("settings", [{}, {"guidance_interval": (0.4, 1.0)}, {"guidance_renorm": "channel"}])
def test_a_denoising_step_reads_nothing_back(model, processor, settings):
    watch = NothingReadBack()
    drawn(model, processor, edit(), 8, watch.after_the_first_step, **settings)
    assert watch.seen > 0
    with watch, pytest.raises(AssertionError, match="reads from the device"):
        torch.ones(3).nonzero()


@pytest.mark.parametrize("static", [False, True])
def test_a_step_of_text_reads_nothing_back(model, processor, static):
    inputs = processor([question(), Sample([TextSegment("make it")])])
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.text_config, max_cache_len=length + 8) if static else None
    with torch.no_grad():
        output = model(**inputs, past_key_values=cache)
        kwargs = {"attention_mask": inputs["attention_mask"], "position_ids": inputs["position_ids"]}
        kwargs |= {"use_cache": True, "token_type_ids": inputs["token_type_ids"]}
        with NothingReadBack() as watch:
            kwargs = model._update_model_kwargs_for_generation(output, kwargs)
            ids = torch.cat([inputs["input_ids"], output.logits[:, -1].argmax(-1, keepdim=True)], dim=-1)
            step = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **kwargs)
            logits = model(**step).logits
    assert watch.seen > 0 and logits.shape[:2] == (2, 1)


# ---- few operations


def calls_a_step(run) -> float:
    """`aten::` calls of the profiler that one more step makes, of eight more."""

    def calls(steps: int) -> int:
        run(steps)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            run(steps)
        names = Counter(event.name for event in recorded.events())
        return sum(count for name, count in names.items() if name.startswith("aten::"))

    few = calls(10)
    return (calls(18) - few) / 8


# The largest shares of these that hold: as the steps run by default, and compiled as `pipe.compile()` does.
EAGER_SHARES = {"draw": 1 / 3, "edit": 1 / 3, "token": 1 / 4, "static token": 1 / 4, "static tokens": 1 / 4}
COMPILED_SHARES = EAGER_SHARES | {"token": 0.4}


def share_of_operations(model, processor, kind: str) -> float:
    """Calls of one step in parts of those at f82ce24."""
    model.generation_config.eos_token_id = None
    if kind in ("draw", "edit"):
        sample = edit() if kind == "edit" else Sample([TextSegment("a red circle")])
        return calls_a_step(lambda steps: drawn(model, processor, sample, steps + 1)) / BEFORE[kind]
    samples = [question(), *[Sample([TextSegment("make it")])] * (kind == "static tokens")]
    options = {"cache_implementation": "static"} if kind.startswith("static") else {}
    return calls_a_step(lambda steps: written(model, processor, samples, steps, **options)) / BEFORE[kind]


@pytest.mark.parametrize("kind", BEFORE)
def test_operations_of_an_eager_step(model, processor, kind):
    assert share_of_operations(model, processor, kind) <= EAGER_SHARES[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BEFORE)
def test_operations_of_a_compiled_step(model, processor, kind):
    """The static cache is captured as a graph on a GPU, where a step is one launch."""
    UniEditPipeline(model, processor).compile()
    assert share_of_operations(model, processor, kind) <= COMPILED_SHARES[kind]


# ---- the same numbers


def test_a_static_batch_is_its_singles(model, processor):
    samples = [question(), Sample([TextSegment("make it")]), question("is this a red circle and then", 2)]
    together = written(model, processor, samples, 8, cache_implementation="static")
    for row, sample in zip(together, samples):
        alone = written(model, processor, [sample], 8)[0]
        assert torch.equal(row[: len(alone)], alone)


@pytest.mark.slow
def test_compiled_is_eager(model, processor):
    samples = [question(), Sample([TextSegment("make it")])]
    eager = drawn(model, processor, edit(), 6), written(model, processor, samples, 8)
    UniEditPipeline(model, processor).compile()
    assert relative_error(drawn(model, processor, edit(), 6), eager[0]) < 1e-4
    for options in ({}, {"cache_implementation": "static"}):
        assert torch.equal(written(model, processor, samples, 8, **options), eager[1])
        assert torch.equal(written(model, processor, samples[:1], 8, **options)[0], eager[1][0])


@pytest.mark.slow
def test_the_reference_holds_when_compiled():
    reference = Reference(FIXTURE)
    reference.model.compile_layers = True
    found = reference.drawing()
    assert found["latents"] < 1e-4 and found["images"] < 1e-4
    reference.model._prepare_cache_for_generation = static_cache_of(reference.model)
    error, same = reference.answer()
    assert error["answer_logits"] < 1e-4 and same


def test_the_reference_holds_with_a_static_cache():
    reference = Reference(FIXTURE)
    reference.model._prepare_cache_for_generation = static_cache_of(reference.model)
    error, same = reference.answer()
    assert error["answer_logits"] < 1e-4 and same


def static_cache_of(model):
    """What makes `generate` use a static cache without being asked."""
    prepare = model._prepare_cache_for_generation

    def static(config, *args, **kwargs):
        config.cache_implementation = "static"
        return prepare(config, *args, **kwargs)

    return static


def test_images_of_a_batch_are_read_in_one_pass(model, processor):
    """Whatever their sizes, and each as alone."""
    pictures = [picture(width, height, width) for width, height in ((64, 48), (84, 84), (30, 60), (64, 48))]
    samples = [Sample([ImageSegment(each, "vit"), TextSegment("what is this")]) for each in pictures]
    passes = []
    layer = model.model.vit_model.vision_model.encoder.layers[0]
    hook = layer.register_forward_pre_hook(lambda *_: passes.append(1))
    together = model(**processor(samples)).logits[:, -1]
    hook.remove()
    assert len(passes) == 1
    for logits, sample in zip(together, samples):
        assert relative_error(logits, model(**processor([sample])).logits[0, -1]) < 1e-4


@pytest.mark.slow
def test_the_gpu_benchmark_finds_every_variant_equal(tmp_path):
    """In its tiny shape; on a GPU the same command measures."""
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu_inference", "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    found = json.loads(output.read_text())
    errors = [row["error"] for row in found["rows"] if row["error"] is not None]
    assert not found["failures"] and len(errors) == 16 and max(errors) < 1e-4
    assert "| a token, 16 question(s)" in run.stdout.split("all of it took")[0]


# ---- the captured step


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_captured_steps_write_the_same(model, processor, options, monkeypatch):
    """As on a GPU, but for the graph: the step runs over tensors of its own. transformers does not ask for it for
    beams."""
    monkeypatch.setattr(answer_step, "_has_step", lambda *_: False)  # which only a CPU has

    class Captured(type(model)):
        def get_compiled_call(self, compile_config=None):
            steps.append(CapturedStep(self))
            return steps[-1]

        def _valid_auto_compile_criteria(self, *_):
            return True

    samples = [question(), Sample([TextSegment("make it")])]
    results, steps = [], []
    for kind in (type(model), Captured):
        model.__class__ = kind
        inputs = processor(samples)
        torch.manual_seed(0)
        options = {"do_sample": False, "max_new_tokens": 8, "cache_implementation": "static"} | options
        results.append(model.generate(**inputs, **options))
    assert torch.equal(*results)
    assert [each.step.calls for each in steps] == ([] if "num_beams" in options else [7])


# ---- Janus-Pro


def janus_tokens(model, callback=None) -> torch.Tensor:
    processor = tiny_janus_processor()
    source = picture(32, 32, 1)
    views = [ImageSegment(source, "siglip"), ImageSegment(source, "vq")]
    samples = [Sample([*views, TextSegment("paint the circle red")]), Sample([TextSegment("a circle")])]
    requests = [JanusImageSettings(32, 32, seed=i, image_guidance_scale=2.0) for i in range(2)]
    return model.generate_tokens(requests, **processor.guidance_contexts(samples), callback_on_step_end=callback)


def test_a_token_of_an_image_reads_nothing_back():
    watch = NothingReadBack()
    janus_tokens(tiny_janus(), watch.after_the_first_step)
    assert watch.seen > 0


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_operations_of_a_token_of_an_image(compiled):
    """Less than half of the 688 at f82ce24, by the difference between 16 tokens and one; this model has two layers."""
    model = tiny_janus()
    plain = janus_tokens(model)
    model.compile_layers = compiled
    assert torch.equal(janus_tokens(model), plain)

    def stop(step) -> None:
        step.stop = True

    def calls(callback=None) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            janus_tokens(model, callback)
        return sum(event.name.startswith("aten::") for event in recorded.events())

    assert (calls(lambda step: None) - calls(stop)) / 15 <= 688 / 2


# ---- what is not exact


def test_better_integrators_need_fewer_steps(model, processor):
    exact = drawn(model, processor, edit(), 200)
    errors = {
        name: relative_error(drawn(model, processor, edit(), 20, sampler=name), exact)
        for name in ("euler", "heun", "unipc")
    }
    assert errors["heun"] < 0.5 * errors["euler"] and errors["unipc"] < errors["euler"]


def branches_seen(model, processor, sample, timesteps, **settings) -> list[int]:
    """Branches of every pass of the decoder over images of 12 tokens."""
    seen = []
    hook = model.model.llm2vae.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0]) // 12))
    drawn(model, processor, sample, timesteps, **settings)
    hook.remove()
    return seen


def test_steps_that_are_not_computed(model, processor):
    seen = {
        name: branches_seen(model, processor, edit(), 10, **settings)
        for name, settings in {
            "exact": {},
            "compute_every": {"compute_every": 3},
            "guidance_every": {"guidance_every": 3},
            "both": {"compute_every": 2, "guidance_every": 2},
            "interval": {"compute_every": 2, "guidance_interval": (0.9, 1.0)},
            "heun": {"sampler": "heun"},
        }.items()
    }
    assert seen["exact"] == [3] * 9
    assert seen["compute_every"] == [3] * 6  # the first three, every third, the last
    assert seen["guidance_every"] == [3, 1, 1] * 3
    assert seen["both"] == [3, 1, 3, 1, 3, 1, 3]
    assert seen["interval"] == [3, 3, 3, 1, 1, 1, 1]
    assert seen["heun"] == [3] * 17


@pytest.mark.parametrize(
    "settings", [{"compute_every": 2}, {"guidance_every": 2}, {"compute_every": 2, "sampler": "heun"}]
)
def test_shortcuts_converge(model, processor, settings):
    exact = drawn(model, processor, edit(), 200)
    errors = [relative_error(drawn(model, processor, edit(), steps, **settings), exact) for steps in (15, 120)]
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.1


def test_requests_with_and_without_shortcuts_share_a_batch(model, processor):
    guided = {"num_timesteps": 8, "image_guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)}
    requests = [ImageSettings(48, 64, seed=i, **guided, compute_every=1 + i, guidance_every=1 + i) for i in range(3)]
    together = model.generate_latents(requests, **processor.guidance_contexts([edit()] * 3))
    for request, latents in zip(requests, together):
        (alone,) = model.generate_latents([request], **processor.guidance_contexts([edit()]))
        assert relative_error(latents, alone) < 1e-4


def layers_run(model, processor, monkeypatch, sample, timesteps, **settings) -> list[int]:
    """How many layers every pass over the latents took."""
    seen, denoise = [], denoising_bagel.denoise

    def watched(decoder, experts, *rest):
        seen.append(len(experts))
        return denoise(decoder, experts, *rest)

    monkeypatch.setattr(denoising_bagel, "denoise", watched)
    drawn(model, processor, sample, timesteps, **settings)
    monkeypatch.undo()
    return seen


def test_layers_behind_the_first_are_skipped(model, processor, monkeypatch):
    depth = len(model.model.language_model.layers)
    full = [1, depth]  # the first layer runs to look, and again with all
    runs = {
        threshold: layers_run(model, processor, monkeypatch, edit(), 12, first_layer_threshold=threshold)
        for threshold in (0, 1e-9, 0.2, 0.5)
    }
    assert runs[0] == [depth] * 11
    assert runs[1e-9] == full * 11
    assert [len(run) - 11 for run in runs.values()] == [0, 11, 6, 3]
    assert runs[0.5][:4] == [*full, 1, 1]


def test_contexts_that_guidance_adds_run_all_layers_first(model, processor, monkeypatch):
    options = {"first_layer_threshold": 0.999, "guidance_interval": (0.0, 0.95)}
    runs = layers_run(model, processor, monkeypatch, edit(), 5, **options)
    depth = len(model.model.language_model.layers)
    assert runs[:4] == [1, depth, 1, depth]


def test_a_small_threshold_is_close_and_none_is_exact(model, processor):
    exact = drawn(model, processor, edit(), 40)
    errors = [
        relative_error(drawn(model, processor, edit(), 40, first_layer_threshold=threshold), exact)
        for threshold in (1e-9, 0.02, 0.2)
    ]
    assert errors[0] < 1e-6 < errors[1] < 0.1 * errors[2]


def test_thresholds_of_a_batch_are_each_requests_own(model, processor):
    guided = {"num_timesteps": 10, "image_guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)}
    requests = [ImageSettings(48, 64, seed=i, **guided, first_layer_threshold=0.05 * i) for i in range(3)]
    together = model.generate_latents(requests, **processor.guidance_contexts([edit()] * 3))
    for request, latents in zip(requests, together):
        (alone,) = model.generate_latents([request], **processor.guidance_contexts([edit()]))
        assert relative_error(latents, alone) < 1e-4


def test_an_autoencoder_of_16_bit_or_tiles(model, processor):
    """Latents and pixels come in fp32 all the same; images that fit a tile stay whole."""
    pipe = UniEditPipeline(model, processor)
    pixels = [processor.prepare_target(picture(96, 96, 1))]
    (exact,) = model.round_trip(pixels)
    errors = []
    for options in ({"tile": 64}, {"tile": 96}, {"dtype": torch.bfloat16}):
        (found,) = pipe.set_autoencoder(**options).model.round_trip(pixels)
        assert found.dtype == torch.float32 and found.shape == exact.shape
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[0] > 0 and errors[1] == 0 and 0 < errors[2] < 0.1
    with pytest.raises(ValueError, match="tile is 100: use a multiple of 8"):
        pipe.set_autoencoder(tile=100)
    with pytest.raises(ValueError, match="has no autoencoder of latents: leave out set_autoencoder"):
        UniEditPipeline(tiny_janus(), tiny_janus_processor()).set_autoencoder(tile=64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "ddim"}, "sampler is 'ddim': use one of euler, heun, unipc"),
        ({"compute_every": 0}, "compute_every is 0: use 1, which is exact, or more"),
        ({"guidance_every": -1}, "guidance_every is -1: use 1, which is exact, or more"),
        ({"first_layer_threshold": 1.0}, "first_layer_threshold is 1.0: use 0, which is exact, or a share below 1"),
    ],
)
def test_wrong_shortcuts(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings(32, 32, **settings)


def test_samplers_of_a_batch_agree(model):
    with pytest.raises(ValueError, match="samplers euler, heun: use one"):
        model.check_image_settings([ImageSettings(32, 32, sampler=name) for name in ("heun", "euler")])
