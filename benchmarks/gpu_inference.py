"""How fast a GPU draws, edits and answers with BAGEL: `python -m benchmarks.gpu_inference [--seconds 480]`.

A model of the released shape with random weights, made on the device. Sections run in order of importance until the
time is up; sections that are left out are named. Every exact variant is compared with a plain loop (whole rows with
masks through
the routed forward) in the same run. The table comes last; all numbers go into a JSON file as they are made.

Without a GPU the same code runs with a tiny shape, which shows that it works and that every variant is equal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedTokenizerFast

from uniedit_hf.attention import NOISE
from uniedit_hf.models.bagel.configuration_bagel import LATENT, TEXT, BagelConfig
from uniedit_hf.models.bagel.encoders_bagel import grid_index
from uniedit_hf.models.bagel.flow import guide, schedule
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.models.bagel.image_processing_bagel import BagelImageProcessor
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration
from uniedit_hf.models.bagel.processing_bagel import BagelProcessor
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


EDITING = {"image_guidance_scale": 2.0, "guidance_interval": (0.0, 1.0), "guidance_renorm": "text_channel"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative error of a norm


@dataclass
class Row:
    """One measured variant."""

    name: str
    seconds: float | None = None
    note: str = ""
    error: float | None = None
    peak_gib: float | None = None


@dataclass
class Bench:
    """The model under test, the sizes it is tested at, and what was measured."""

    model: BagelForConditionalGeneration
    processor: BagelProcessor
    device: torch.device
    large: int
    small: int
    steps: tuple[int, int]
    batches: tuple[int, ...]
    tokens: int
    output: Path
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, seconds: float | None = None, note: str = "", error: float | None = None) -> None:
        """Adds a result and writes all of them to the file."""
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        if error is not None and not error <= TOLERANCE[self.model.dtype]:
            self.failures.append(f"{name}: relative error {error:.1e}")
        self.rows.append(Row(name, seconds, note, error, peak))
        row = {key: value for key, value in asdict(self.rows[-1]).items() if value not in (None, "")}
        print(json.dumps(row), flush=True)
        self.output.write_text(json.dumps({"rows": [asdict(row) for row in self.rows], "failures": self.failures}))

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable) -> tuple[float, object]:
        """Seconds of the work, and its result."""
        self.synchronize()
        start = time.perf_counter()
        result = work()
        self.synchronize()
        return time.perf_counter() - start, result

    def contexts(self, edits: bool, side: int, number: int = 1) -> dict:
        """Inputs of `generate_latents` for requests with prompts of different lengths."""
        samples = []
        for index in range(number):
            views = ("vae", "vit") if edits else ()
            source = picture(side, index)
            samples.append(Sample([*(ImageSegment(source, view) for view in views), words(30 + 3 * index, index)]))
        return self.moved(self.processor.guidance_contexts(samples))

    def moved(self, features) -> dict:
        """Features on the device."""
        move = {torch.Tensor: lambda x: x.to(self.device), list: lambda x: [each.to(self.device) for each in x]}
        return {name: move[type(value)](value) if type(value) in move else value for name, value in features.items()}

    def draw(self, contexts: dict, side: int, timesteps: int, compiled: bool, **settings) -> list[torch.Tensor]:
        """Latent tokens (P, C) of every request."""
        self.model.compile_layers = compiled
        number = len(contexts["branches"])
        requests = [ImageSettings(side, side, seed=i, num_timesteps=timesteps, **settings) for i in range(number)]
        return self.model.generate_latents(requests, **contexts)

    def moves(self, latents: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """How far latents (P, C) have come from their noise."""
        return latents.cpu() - torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))


# --- the plain loop -------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_latents(model, contexts: dict, side: int, timesteps: int, settings: dict) -> torch.Tensor:
    """One image, by the routed forward over padded rows with masks: latent tokens (P, C)."""
    request = ImageSettings(side, side, num_timesteps=timesteps, **settings)
    rows = contexts["branches"][0].tolist()
    named = {name: value for name, value in contexts.items() if name != "branches"}
    kinds, mask = named["token_type_ids"], named["attention_mask"]
    cache = DynamicCache(config=model.config.text_config)
    images = {name: named[name] for name in ("vit_patches", "vit_grids", "vae_images") if name in named}
    embeds = model.embed_context(named["input_ids"], kinds, **images)
    names = ("token_type_ids", "position_ids", "attention_mask", "sample_ids", "split_ids", "split_kinds")
    model.model(inputs_embeds=embeds, past_key_values=cache, **{name: named[name] for name in names})
    position = torch.where(mask.bool(), named["position_ids"] + 1, 0).amax(-1)
    high, wide = model.latent_grid(request)
    number, length = len(kinds), high * wide
    ids = torch.zeros(number, length + 2, dtype=torch.long, device=kinds.device)
    ids[:, 0], ids[:, -1] = model.config.vision_start_token_id, model.config.vision_end_token_id
    types = torch.full_like(ids, LATENT)
    types[:, [0, -1]] = TEXT
    index = grid_index(high, wide, model.config.max_latent_size, kinds.device).repeat(number)
    latent = torch.randn(length, model.config.latent_token_size, generator=torch.Generator().manual_seed(0))
    latent, times = latent.to(kinds.device), schedule(timesteps, request.timestep_shift).tolist()
    splits = {"sample_ids": torch.zeros_like(ids), "split_ids": torch.zeros_like(ids)}
    splits["split_kinds"] = torch.full_like(ids, NOISE)
    for time_now, after in zip(times, times[1:]):
        moment = torch.full((number * length,), time_now, device=kinds.device)
        tokens = latent.repeat(number, 1)
        embeds = model.model.embed(ids, types, latents=tokens, latent_time=moment, latent_index=index)
        places = position[:, None].expand_as(ids)
        whole = torch.cat([mask, torch.ones_like(ids)], dim=-1)
        hidden = model.model(
            inputs_embeds=embeds, token_type_ids=types, position_ids=places, attention_mask=whole,
            past_key_values=cache, **splits,
        ).last_hidden_state  # fmt: skip
        cache.crop(-ids.shape[1])
        found = model.model.llm2vae(hidden[:, 1:-1]).float()
        low, high_time = request.guidance_interval
        acts = low < time_now <= high_time
        others = [found[row] if acts else None for row in rows[1:]]
        others = [each if scale > 1 else None for each, scale in zip(others, _scales(request))]
        velocity = guide(found[rows[0]], *others, *_scales(request), request.guidance_renorm)
        latent = latent - velocity * (time_now - after)
    return latent


def _scales(request: ImageSettings) -> tuple[float, float]:
    return request.text_guidance_scale, request.image_guidance_scale


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


# --- sections -------------------------------------------------------------------------------------------------------


def drawing(bench: Bench, edits: bool, side: int, timesteps: int) -> None:
    """Text to image, or edits, eager and compiled; both against the plain loop over a few steps."""
    name = f"{'edit' if edits else 'text to image'} {side} px, {timesteps} timesteps"
    settings = EDITING if edits else {}
    contexts = bench.contexts(edits, side)
    checked = settings | {"text_guidance_scale": 1.5} | ({"image_guidance_scale": 1.2} if edits else {})
    expected = bench.moves(plain_latents(bench.model, contexts, side, 4, checked))
    eager = bench.moves(bench.draw(contexts, side, 4, False, **checked)[0])
    first, compiled = bench.timed(lambda: bench.draw(contexts, side, 4, True, **checked)[0])
    seconds, latents = bench.timed(lambda: bench.draw(contexts, side, timesteps, True, **settings))
    bench.add(f"{name}, compiled", seconds, "with prefill", relative(bench.moves(compiled), expected))
    decoded = bench.model.unpatchify(latents, [ImageSettings(side, side)])
    decoding = [bench.timed(lambda: bench.model.decode_latents(decoded))[0] for _ in range(2)][-1]
    bench.add(f"{name}, autoencoder", decoding, f"first compiled drawing of 4 timesteps took {first:.1f} s")
    guided = settings | {"guidance_interval": (0, 1)}
    few, many = (bench.timed(lambda n=n: bench.draw(contexts, side, n, False, **guided))[0] for n in (2, 6))
    bench.add(f"{name}, a guided step, eager", (many - few) / 4, "", relative(eager, expected))
    if bench.device.type == "cuda":
        reads_nothing_back(bench, contexts, side, guided)


def reads_nothing_back(bench: Bench, contexts: dict, side: int, settings: dict) -> None:
    """Fails if a step after the first waits for the device."""

    def watch(step) -> None:
        torch.cuda.set_sync_debug_mode("error" if step.number < step.total else "default")

    requests = [ImageSettings(side, side, num_timesteps=4, **settings)]
    try:
        bench.model.generate_latents(requests, **contexts, callback_on_step_end=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def answering(bench: Bench, number: int, side: int) -> None:
    """Seconds a token: dynamic and static cache, the same logits as the routed forward gives."""
    views = [ImageSegment(picture(side, index), "vit") for index in range(number)]
    inputs = bench.moved(bench.processor([Sample([v, words(20 + 2 * i, i)]) for i, v in enumerate(views)]))
    bench.model.generation_config.eos_token_id = None
    bench.model.compile_layers = False
    expected = plain_tokens(bench, inputs, 3)
    few, many = 4, 4 + bench.tokens
    for cache, compiled in ((None, False), ("static", False), ("static", True)):
        bench.model.compile_layers = compiled
        options = {"do_sample": False, "cache_implementation": cache}
        start, out = bench.timed(
            lambda o=options: bench.model.generate(
                **inputs, max_new_tokens=few, return_dict_in_generate=True, output_logits=True, **o
            )
        )
        seconds = [
            bench.timed(lambda n=n, o=options: bench.model.generate(**inputs, max_new_tokens=n, **o))[0]
            for n in (few, many)
        ]
        token = (seconds[1] - seconds[0]) / (many - few)
        name = f"a token, {number} question(s) of {side} px, {cache or 'dynamic'} cache{', compiled' * compiled}"
        note = (
            f"{number / token:.0f} tokens/s; prefill and {few} tokens {seconds[0]:.2f} s, the first time {start:.1f} s"
        )
        bench.add(name, token, note, relative(out.logits[1], expected[1]))
    bench.model.compile_layers = None


@torch.no_grad()
def plain_tokens(bench: Bench, inputs: dict, number: int) -> list[torch.Tensor]:
    """Logits of a greedy answer through the routed forward, whose tokens have types."""
    model, cache, logits = bench.model, DynamicCache(config=bench.model.config.text_config), []
    step = dict(inputs)
    mask, position = step["attention_mask"], step["position_ids"][:, -1:]
    for _ in range(number):
        out = model(**step, past_key_values=cache, logits_to_keep=1)
        logits.append(out.logits[:, -1].float())
        token = logits[-1].argmax(-1, keepdim=True)
        mask, position = torch.cat([mask, torch.ones_like(token)], dim=-1), position + 1
        step = {"input_ids": token, "token_type_ids": torch.full_like(token, TEXT), "position_ids": position}
        step["attention_mask"] = mask
    return logits


def switches(bench: Bench) -> None:
    """Inexact settings: seconds, and the distance of the latents from the exact ones. With random weights the
    distance says little about images."""
    side, timesteps = bench.large, bench.steps[0]
    contexts = bench.contexts(False, side)
    exact = bench.moves(bench.draw(contexts, side, timesteps, True)[0])
    third = max(2, timesteps // 3)
    variants = {
        "compute_every=2": {"compute_every": 2},
        "compute_every=3": {"compute_every": 3},
        "guidance_every=2": {"guidance_every": 2},
        "both 2": {"compute_every": 2, "guidance_every": 2},
        f"unipc, {third} timesteps": {"sampler": "unipc", "timesteps": third},
        f"heun, {third} timesteps": {"sampler": "heun", "timesteps": third},
    }
    for name, settings in variants.items():
        number = settings.pop("timesteps", timesteps)
        seconds, found = bench.timed(lambda n=number, s=settings: bench.draw(contexts, side, n, True, **s)[0])
        distance = relative(bench.moves(found), exact)
        bench.add(f"text to image {side} px, {name}", seconds, f"distance of the latents {distance:.3f}")


def batches(bench: Bench) -> None:
    """Many requests side by side, each equal to itself alone."""
    side, timesteps = bench.small, bench.steps[1]
    for edits in (False, True):
        for number in bench.batches:
            contexts = bench.contexts(edits, side, number)
            settings = EDITING if edits else {}
            mild = settings | {"text_guidance_scale": 1.5} | ({"image_guidance_scale": 1.2} if edits else {})
            last = bench.draw(contexts, side, 4, True, **mild)[-1]
            seconds, _ = bench.timed(lambda c=contexts, s=settings: bench.draw(c, side, timesteps, True, **s))
            alone = bench.moved(bench.processor.guidance_contexts([_last_sample(edits, side, number)]))
            bench.model.compile_layers = True
            request = ImageSettings(side, side, seed=number - 1, num_timesteps=4, **mild)
            expected = bench.model.generate_latents([request], **alone)[0]
            kind = "edits" if edits else "texts to images"
            error = relative(*(bench.moves(each, number - 1) for each in (last, expected)))
            title = f"{number} {kind} {side} px, {timesteps} timesteps"
            bench.add(title, seconds, f"{seconds / number:.2f} s each", error)


def _last_sample(edits: bool, side: int, number: int) -> Sample:
    source, index = picture(side, number - 1), number - 1
    return Sample([*(ImageSegment(source, v) for v in ("vae", "vit") * edits), words(30 + 3 * index, index)])


def attention(bench: Bench) -> None:
    """Ways to attend at the released shape: an image behind its context, and one token a row behind a cache."""
    if bench.device.type != "cuda":
        return
    shape = {"device": bench.device, "dtype": torch.bfloat16}
    query, memory = torch.randn(1, 4098, 28, 128, **shape).transpose(1, 2), torch.randn(13200, 2, 4, 128, **shape)
    for number in (4138, 13200):
        keys, values = memory[None, :number].transpose(1, 3).unbind(2)
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):

            def image(backend=backend, keys=keys, values=values):
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(query, keys, values, enable_gqa=True)

            image()
            seconds = min(bench.timed(image)[0] for _ in range(5))
            rate = 4 * 4098 * number * 28 * 128 / seconds / 1e12
            bench.add(f"attention of an image, {number} keys, {backend.name.lower()}", seconds, f"{rate:.0f} TFLOP/s")
    for rows, keys in ((1, 5056), (16, 1408)):
        query, memory = torch.randn(rows, 4, 7, 128, **shape), torch.randn(2, rows, 4, keys, 128, **shape)
        mask = torch.ones(rows, 1, 1, keys, device=bench.device, dtype=torch.bool)

        def products(query=query, memory=memory, rows=rows):
            scores = torch.bmm(query.flatten(0, 1), memory[0].flatten(0, 1).mT, out_dtype=torch.float32)
            return torch.bmm(scores.softmax(-1).to(query.dtype), memory[1].flatten(0, 1)).unflatten(0, (rows, 4))

        expected, ways = products(), {"two products": products}
        for backend, given in (
            (SDPBackend.FLASH_ATTENTION, None), (SDPBackend.EFFICIENT_ATTENTION, None),
            (SDPBackend.EFFICIENT_ATTENTION, mask), (SDPBackend.CUDNN_ATTENTION, None),
            (SDPBackend.CUDNN_ATTENTION, mask),
        ):  # fmt: skip

            def sdpa(backend=backend, given=given, query=query, memory=memory):
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(query, *memory, attn_mask=given)

            ways[f"{backend.name.lower()}{' with mask' * (given is not None)}"] = sdpa
        for name, way in ways.items():
            try:
                error = relative(way(), expected)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    for _ in range(28):
                        way()
                seconds = min(bench.timed(graph.replay)[0] for _ in range(5)) / 28
                bench.add(f"attention of a token, {rows} x {keys} keys, {name}", seconds, error=error)
            except RuntimeError as error:  # a backend that does not take these shapes
                bench.add(f"attention of a token, {rows} x {keys} keys, {name}", note=str(error)[:80])


# --- the model ------------------------------------------------------------------------------------------------------


def words(number: int, seed: int) -> TextSegment:
    """A text of so many tokens."""
    return TextSegment(np.random.default_rng(seed).integers(10, 200, number).tolist())


def picture(side: int, seed: int) -> Image.Image:
    """A square of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST)


def build(device: torch.device, layers: int) -> BagelForConditionalGeneration:
    """The released shape in bf16 with its autoencoder in fp32, or a tiny one in fp32 on a CPU."""
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.set_default_dtype(torch.bfloat16)
        with device:
            model = BagelForConditionalGeneration(BagelConfig(text_config={"num_hidden_layers": layers}))
        torch.set_default_dtype(torch.float32)
        model.vae.float()
        rotary = model.model.language_model.rotary_emb
        rotary.inv_freq = rotary.inv_freq.float()
    else:
        text = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
        vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        vae = {"base_channels": 32, "channel_multipliers": [1, 1, 1, 1], "num_res_blocks": 1}
        config = BagelConfig(text_config=text, vision_config=vision, vae_config=vae)
        config.vision_start_token_id, config.vision_end_token_id = 4, 5
        model = BagelForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.llm2vae.weight, std=0.02)  # which starts as zero
    return model.eval()


def processor_for(config: BagelConfig) -> BagelProcessor:
    """Texts are token ids, so the tokenizer knows the markers alone."""
    markers = {"<|im_start|>": config.text_config.bos_token_id, "<|im_end|>": config.text_config.eos_token_id}
    markers |= {"<|vision_start|>": config.vision_start_token_id, "<|vision_end|>": config.vision_end_token_id}
    tokenizer = Tokenizer(models.WordLevel({"0": 0, **markers}, unk_token="0"))
    stride = config.vision_config.patch_size
    return BagelProcessor(
        BagelImageProcessor(vit_stride=stride, vae_stride=8 * config.latent_patch_size),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer),
    )


def bench_for(device: torch.device, layers: int, output: Path) -> Bench:
    """The sizes that others publish figures for, or tiny ones."""
    model = build(device, layers)
    processor = processor_for(model.config)
    if device.type == "cuda":
        return Bench(model, processor, device, 1024, 512, (50, 20), (4, 16), 48, output)
    for size in (processor.image_processor.vae_size, processor.image_processor.vit_size):
        size.update(longest_edge=112, shortest_edge=16)
    return Bench(model, processor, device, 64, 32, (6, 5), (3,), 8, output)


def table(bench: Bench) -> str:
    """All results in Markdown."""
    lines = ["| what | seconds | peak GiB | error | |", "|---|---|---|---|---|"]
    for row in bench.rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.4g}"
        peak = "" if row.peak_gib is None else f"{row.peak_gib:.1f}"
        error = "" if row.error is None else f"{row.error:.1e}"
        lines.append(f"| {row.name} | {seconds} | {peak} | {error} | {row.note} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="stop beginning sections when so much time is up")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--output", type=Path, help="the JSON file; in the folder $OUT by default")
    options = parser.parse_args()
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output = options.output or Path(os.environ.get("OUT", ".")) / "gpu_inference.json"
    bench = bench_for(device, options.layers, output)
    large, small, (many, few) = bench.large, bench.small, bench.steps
    # the seconds are what a section takes at most on an H200
    sections: list[tuple[str, float, Callable]] = [
        ("text to image, large", 45, lambda: drawing(bench, False, large, many)),
        ("edit, large", 50, lambda: drawing(bench, True, large, many)),
        ("answer, one question", 40, lambda: answering(bench, 1, large)),
        ("answers, 16 questions", 40, lambda: answering(bench, 16, small)),
        ("text to image, small", 12, lambda: drawing(bench, False, small, few)),
        ("edit, small", 15, lambda: drawing(bench, True, small, few)),
        ("attention of a token", 5, lambda: attention(bench)),
        ("named switches", 40, lambda: switches(bench)),
        ("batches", 60, lambda: batches(bench)),
    ]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, tiny shape"
    bench.add(f"{name}, torch {torch.__version__}: model made", time.perf_counter() - start)
    for title, needed, section in sections:
        left = options.seconds - (time.perf_counter() - start)
        if device.type == "cuda":
            if left < needed:
                bench.add(title, note=f"left out: {left:.0f} s were left")
                continue
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            section()
        except Exception as error:  # the other sections are still worth their time
            bench.failures.append(f"{title}: {error}")
            bench.add(title, note=f"failed: {type(error).__name__}")
            traceback.print_exc()
    print(f"\n{table(bench)}\n\nall of it took {time.perf_counter() - start:.0f} s")
    if bench.failures:
        raise SystemExit("; ".join(bench.failures))


if __name__ == "__main__":
    main()
