"""Training a BAGEL of full size on one GPU: `python -m benchmarks.gpu_training [--seconds 460] [--output FILE]`.

Sections, the most important first; one that no longer fits into the time is left out and named:

    decoder    forward and backward of the decoder over two edits (11,060 tokens): attention by splits and
               FlexAttention, eager and compiled, with every kind of activation checkpointing
    kernels    where the time of the best decoder step goes
    attention  one layer's attention alone, forward and backward, and its errors in bf16 against fp32; new shapes too
    trainer    `UniEditTrainer` over packs of edits: all weights (8-bit AdamW with stochastic rounding), LoRA, QLoRA
    ceilings   a large product and a large copy

Weights are random. MFU counts 6 x the parameters that a token meets x tokens, against the datasheet's dense bf16 rate.
Prints a table last and writes every figure as JSON. Without a GPU the same code runs with a tiny shape, which only
shows that it works.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_training_parts import (
    Shape,
    build_model,
    drawn_pack,
    edit_data,
    layout_of,
    peak_rate,
    tiny_processor,
)
from uniedit_hf import split_attention
from uniedit_hf.models.bagel.decoder_bagel import EAGER, compiled_regions
from uniedit_hf.training.cards import card_at_hand
from uniedit_hf.training.layer_options import set_checkpointing
from uniedit_hf.training.memory_plan import Way, plan_row
from uniedit_hf.training.meters import LOGGED


SECTIONS = ("decoder", "kernels", "attention", "trainer", "ceilings")
# (compiled, attention, checkpointing), the most telling first
DECODER_WAYS = (
    (True, "split_sdpa", "selective"),
    (True, "split_sdpa", "full"),
    (False, "flex_attention", "full"),
    (False, "split_sdpa", "full"),
    (True, "flex_attention", "selective"),
    (False, "split_sdpa", "selective"),
    (False, "split_sdpa", "none"),
)


class Clock:
    """The time that is left, and CUDA-aware timings."""

    def __init__(self, seconds: float, device: torch.device):
        self.end = time.monotonic() + seconds
        self.device = device

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def median(self, work: Callable[[], Any], repeats: int) -> float:
        """Median seconds of a call behind one warm-up."""
        work()
        return statistics.median(self.once(work) for _ in range(repeats))


class Report:
    """Figures as they come: printed, kept, and written after every one, so that a kill loses nothing."""

    def __init__(self, path: Path | None):
        self.path = path
        self.lines: list[dict[str, Any]] = []

    def add(self, section: str, **figures: Any) -> None:
        """One line of a section."""
        self.lines.append({"section": section, **figures})
        print(json.dumps(self.lines[-1]), flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps(self.lines, indent=1))

    def table(self) -> str:
        """All figures as Markdown."""
        rows = ["| section | what | figures |", "|---|---|---|"]
        for line in self.lines:
            figures = ", ".join(f"{k} {v}" for k, v in line.items() if k not in ("section", "way"))
            rows.append(f"| {line['section']} | {line.get('way', '')} | {figures} |")
        return "\n".join(rows)


def rounded(value: float, digits: int = 4) -> float:
    """To significant digits."""
    return float(f"{value:.{digits}g}")


def free() -> None:
    """Gives memory back and starts the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most memory that tensors took since `free`."""
    return rounded(torch.cuda.max_memory_allocated() / 2**30) if torch.cuda.is_available() else 0.0


@contextmanager
def reporting(report: Report, section: str, way: str) -> Iterator[None]:
    """A way that does not fit or does not work is a line of the table, and the others still run."""
    try:
        yield
    except torch.OutOfMemoryError:
        report.add(section, way=way, failed="out of memory")
    except Exception as error:  # any error is reported, and the other sections still run
        traceback.print_exc()
        report.add(section, way=way, failed=f"{type(error).__name__}: {str(error)[:200]}")
    free()


# --- decoder --------------------------------------------------------------------------------------------------------


def decoder_step(model, pack) -> Callable[[], None]:
    """Forward and backward of the decoder's layers and final norms over a drawn pack."""
    decoder = model.model.language_model

    def step() -> None:
        layout = layout_of(model, pack)
        und, gen = decoder.run_layers(pack.und, pack.gen, pack.routing.positions, layout)
        loss = decoder.norm(und).float().square().mean() + decoder.norm_moe_gen(gen).float().square().mean()
        loss.backward()
        for tensor in (*decoder.parameters(), pack.und, pack.gen):
            tensor.grad = None

    return step


def set_way(model, compiled: bool, attention: str, checkpointing: str) -> None:
    """Puts the decoder into one of `DECODER_WAYS`."""
    model.set_attn_implementation({"text_config": attention})
    regions = compiled_regions() if compiled else EAGER
    for layer in model.model.language_model.layers:
        layer.regions = regions
    set_checkpointing(model, checkpointing, compiled)


def decoder(model, shape: Shape, clock: Clock, report: Report) -> None:
    """Every way of `DECODER_WAYS`."""
    model.train()
    model.requires_grad_(False)
    model.model.language_model.layers.requires_grad_(True)
    pack = drawn_pack(model, shape)
    tokens = len(pack.routing.order)
    per_token = sum(p.numel() for p in model.model.language_model.layers.parameters()) / 2  # one expert a token
    for compiled, attention, checkpointing in DECODER_WAYS:
        way = f"{'compiled' if compiled else 'eager'}, {attention}, {checkpointing}"
        if clock.left < shape.least_seconds:
            report.add("decoder", way=way, failed="no time left")
            continue
        with reporting(report, "decoder", way):
            set_way(model, compiled, attention, checkpointing)
            step = decoder_step(model, pack)
            first = clock.once(step)
            free()
            seconds = clock.median(step, 3)
            rate = 6 * per_token * tokens / seconds
            report.add(
                "decoder",
                way=way,
                milliseconds=rounded(1000 * seconds),
                tokens_per_second=round(tokens / seconds),
                teraflops_6n=rounded(rate / 1e12),
                mfu_6n=rounded(rate / peak_rate(), 3),
                peak_gib=peak_gib(),
                first_call_seconds=rounded(first, 3),
            )


# --- attention ------------------------------------------------------------------------------------------------------


def dense_reference(query, key, value, pack, scaling: float) -> torch.Tensor:
    """Attention in fp32 with a dense mask, sample by sample: (N, H, E)."""
    from uniedit_hf.attention import Splits, dense_mask

    order, sample = pack.routing.order, pack.splits.sample[0]
    output = torch.zeros_like(query)
    for number in sample.unique():
        rows = (sample[order] == number).nonzero()[:, 0]
        places = order[rows]
        mask = dense_mask(Splits(*(each[:, sample == number] for each in pack.splits)))[0]
        mask = mask[places - places.min()][:, places - places.min()]
        groups = query.shape[1] // key.shape[1]
        states = (query[rows], key[rows].repeat_interleave(groups, 1), value[rows].repeat_interleave(groups, 1))
        q, k, v = (each.transpose(0, 1) for each in states)
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~mask, float("-inf"))
        output = output.index_copy(0, rows, (scores.softmax(-1) @ v).transpose(0, 1))
    return output


def attention_call(name: str, pack, model) -> Callable:
    """One of the ways of attention, from states (N, heads, E) to (N, H, E)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    implementation = name.split(",")[0]
    module, layout = model.model.language_model.layers[0].self_attn, layout_of(model, pack, implementation)
    attend = ALL_ATTENTION_FUNCTIONS[implementation]

    def call(*states):
        rows = (each.transpose(0, 1)[None] for each in states)
        return attend(module, *rows, layout.mask, scaling=module.scaling)[0][0]

    return call


def attention(model, shape: Shape, clock: Clock, report: Report) -> None:
    """Times and errors of one layer's attention."""
    first = split_attention.KERNELS
    flash_first = [first[1], first[0], *first[2:]]
    ways = {"split_sdpa": first, "flex_attention": first, "split_sdpa, flash first": flash_first}
    pack, config = drawn_pack(model, shape), model.config.text_config
    size, heads = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    generator = torch.Generator(clock.device).manual_seed(1)
    tokens = len(pack.routing.order)
    drawn = [
        torch.randn(tokens, count, size, generator=generator, device=clock.device)
        for count in (heads, config.num_key_value_heads, config.num_key_value_heads, heads)
    ]
    gradient = drawn.pop()
    wanted = gradients(lambda *states: dense_reference(*states, pack, size**-0.5), drawn, gradient)
    states = [each.to(model.dtype) for each in drawn]
    for way, kernels in ways.items():
        if clock.left < shape.least_seconds / 2:
            report.add("attention", way=way, failed="no time left")
            continue
        with reporting(report, "attention", way):
            split_attention.KERNELS = kernels
            learns = way.startswith("split") or clock.device.type == "cuda"  # FlexAttention does not on a CPU
            figures = attention_figures(attention_call(way, pack, model), states, gradient, wanted, clock, learns)
            report.add("attention", way=way, **figures)
    split_attention.KERNELS = first
    new_shapes(model, shape, clock, report)


def attention_figures(call: Callable, states, gradient, wanted, clock: Clock, learns: bool) -> dict[str, float]:
    """Milliseconds of one call and its backward, and relative errors against `wanted`."""
    with torch.no_grad():
        forward = clock.median(lambda: call(*states), 10)
    figures = {"forward_milliseconds": rounded(1000 * forward)}
    if not learns:
        return figures
    gradient = gradient.to(states[0].dtype)
    both = clock.median(lambda: gradients(call, states, gradient), 5)
    figures["backward_milliseconds"] = rounded(1000 * (both - forward))
    found = gradients(call, states, gradient)
    for name, ours, reference in zip(("output", "query", "key", "value"), found, wanted):
        figures[f"{name}_error"] = rounded(((ours.float() - reference).norm() / reference.norm()).item(), 2)
    return figures


def gradients(call: Callable, states, gradient) -> list[torch.Tensor]:
    """Output and gradients of queries, keys and values."""
    leaves = [each.clone().requires_grad_() for each in states]
    output = call(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def new_shapes(model, shape: Shape, clock: Clock, report: Report) -> None:
    """The cost of the first forward and backward over a pack with new lengths, as in real data."""
    for way in ("split_sdpa", "flex_attention")[: 2 if clock.device.type == "cuda" else 1]:
        with reporting(report, "attention", f"{way}, new shapes"):
            first = [first_call(model, shape.changed(number), way, clock) for number in range(5)]
            report.add("attention", way=f"{way}, new shapes", first_milliseconds=first)


def first_call(model, shape: Shape, way: str, clock: Clock) -> float:
    """Milliseconds of one forward and backward of attention over a pack that was not met before."""
    config = model.config.text_config
    size = config.hidden_size // config.num_attention_heads
    pack = drawn_pack(model, shape)
    counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    drawn = {"device": clock.device, "dtype": model.dtype}
    states = [torch.randn(len(pack.routing.order), count, size, **drawn) for count in counts]
    call, gradient = attention_call(way, pack, model), torch.randn_like(states[0])
    return rounded(1000 * clock.once(lambda: gradients(call, states, gradient)), 3)


# --- trainer --------------------------------------------------------------------------------------------------------


def trainer_section(model, shape: Shape, clock: Clock, report: Report, folder: Path) -> None:
    """Full tuning, LoRA and QLoRA through `UniEditTrainer`."""
    from peft import LoraConfig

    adapters = LoraConfig(r=64 if shape.full else 4, lora_alpha=64)
    optimizer = {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"} if shape.full else {}
    tried: dict[str, bool] = {}
    for way, peft, settings in (
        ("full, selective", None, optimizer),
        ("full, full", None, optimizer),
        ("LoRA, selective", adapters, {"bf16": True}),
        ("QLoRA, selective", adapters, {"bf16": True}),
    ):
        if way == "full, full" and tried.get("full, selective"):
            continue  # only where memory did not do for more
        if clock.left < shape.trainer_seconds:
            report.add("trainer", way=way, failed="no time left")
            continue
        with reporting(report, "trainer", way):
            if way.startswith("QLoRA"):
                quantize(model)
            run_trainer(model, way, peft, settings, shape, clock, report, folder)
            tried[way] = True


def run_trainer(model, way: str, peft, settings, shape: Shape, clock: Clock, report: Report, folder: Path) -> None:
    """Three steps, of which the first also compiles."""
    from uniedit_hf.training import UniEditConfig, UniEditTrainer

    settings = {"bf16": False} | settings
    args = UniEditConfig(
        output_dir=str(folder),
        max_steps=3,
        max_tokens_per_pack=shape.pack_tokens,
        packing_window=8,
        gradient_accumulation_steps=shape.accumulation,
        activation_checkpointing=way.split(", ")[1],
        use_cpu=not shape.full,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=shape.workers,
        torch_compile=shape.full,
        **settings,
    )
    data = edit_data(shape, args.max_steps * shape.accumulation * 3)
    trainer = UniEditTrainer(model, args, train_dataset=data, processing_class=tiny_processor(shape), peft_config=peft)
    free()
    start = clock.once(trainer.train)
    logs = [log for log in trainer.state.log_history if "tokens_per_second" in log]
    report.add(
        "trainer",
        way=way,
        **planned(model, way, peft, args),
        **{name: logs[-1][name] for name in LOGGED if name in logs[-1]},
        tokens_per_second=[log["tokens_per_second"] for log in logs],
        data_wait_seconds=[log["data_wait_seconds"] for log in logs],
        pack_fill=logs[-1]["pack_fill"],
        peak_gib=peak_gib(),
        seconds=rounded(start),
    )
    if peft is not None:
        trainer.model.unload()
    trainer.model.zero_grad(set_to_none=True)


def planned(model, way: str, peft, args) -> dict[str, float]:
    """The memory plan of a way, to compare with the measurement."""
    bits = 4 if way.startswith("QLoRA") else None
    kind = Way(way, model.dtype, str(getattr(args.optim, "value", args.optim)), adapters=peft is not None, bits=bits)
    row = plan_row(model.config, args.max_tokens_per_pack, kind, way.split(", ")[1], args=args, adapters=peft)
    seconds = row.seconds(card_at_hand(args.device))
    return {"planned_gib": rounded(row.peak / 2**30), "planned_step_seconds": seconds and rounded(seconds)}


def quantize(model) -> None:
    """The decoder's linear layers in 4 bit (NF4), in place."""
    import bitsandbytes as bnb

    for layer in model.model.language_model.layers:
        for name, module in list(layer.named_modules()):
            if type(module) is not torch.nn.Linear:
                continue
            stored = bnb.nn.Linear4bit(
                module.in_features, module.out_features, module.bias is not None,
                compute_dtype=model.dtype, quant_type="nf4", device="meta",
            )  # fmt: skip
            weight = bnb.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            stored.weight, stored.bias = weight.to(module.weight.device), module.bias
            parent, _, child = name.rpartition(".")
            setattr(layer.get_submodule(parent), child, stored)
    model.is_loaded_in_4bit = True


# --- kernels and ceilings -------------------------------------------------------------------------------------------

KINDS = {
    "attention": ("flash", "fmha", "attention", "cudnn", "flex"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "mm_"),
    "fused": ("triton",),
}


def kernels(model, shape: Shape, clock: Clock, report: Report) -> None:
    """The kernels of one step of the best way, by kind and by name."""
    from torch.profiler import ProfilerActivity, profile

    best = [line for line in report.lines if line["section"] == "decoder" and "milliseconds" in line]
    way = min(best, key=lambda line: line["milliseconds"])["way"] if best else None
    names = {f"{'compiled' if w[0] else 'eager'}, {w[1]}, {w[2]}": w for w in DECODER_WAYS}
    set_way(model, *names.get(way, (False, "split_sdpa", "full")))
    step = decoder_step(model, drawn_pack(model, shape))
    step()
    gpu = clock.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        step()
        clock.synchronize()
    spent_of = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = [(each.key, getattr(each, spent_of) / 1000, each.count) for each in profiler.key_averages()]
    kinds: dict[str, float] = {}
    for name, spent, _ in events:
        kind = next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")
        kinds[kind] = kinds.get(kind, 0.0) + spent
    kinds = {kind: rounded(spent) for kind, spent in kinds.items()}
    report.add("kernels", way=way, launches=sum(count for *_, count in events), **kinds)
    for name, spent, count in sorted(events, key=lambda event: -event[1])[:12]:
        report.add("kernels", way=name[:90], milliseconds=rounded(spent), calls=count)


def ceilings(model, shape: Shape, clock: Clock, report: Report) -> None:
    """The rates that a product and a copy reach here."""
    side, count = (8192, 2**31) if shape.full else (256, 2**20)
    left, right = (torch.randn(side, side, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = clock.median(lambda: left @ right, 10)
    report.add("ceilings", way=f"product of {side} x {side} x {side}", teraflops=rounded(2 * side**3 / seconds / 1e12))
    source = torch.empty(count, device=clock.device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    seconds = clock.median(lambda: target.copy_(source), 10)
    report.add("ceilings", way="copy, read and written", terabytes_per_second=rounded(4 * count / seconds / 1e12))


def main() -> None:
    """Runs the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=460, help="how long all of it may take")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--layers", type=int, default=28, help="layers of the decoder on a GPU")
    parser.add_argument("--output", type=Path, help="JSON file; gpu_training.json under $OUT if that is set")
    options = parser.parse_args()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch._dynamo.config.recompile_limit = 64  # full tuning, LoRA and QLoRA in one process
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    folder = Path(os.environ.get("OUT", "."))
    path = options.output or (folder / "gpu_training.json" if "OUT" in os.environ else None)
    clock, report = Clock(options.seconds, device), Report(path)
    shape = Shape.released(options.layers) if gpu else Shape.tiny()
    report.add("machine", way=torch.cuda.get_device_name() if gpu else "CPU, tiny shape", torch=torch.__version__)
    begun = time.monotonic()
    model = build_model(shape, device)
    report.add("machine", way="model built", seconds=rounded(time.monotonic() - begun, 3), peak_gib=peak_gib())
    work = {"decoder": decoder, "attention": attention, "kernels": kernels, "ceilings": ceilings}
    for section in SECTIONS:
        if section not in options.sections:
            continue
        with reporting(report, section, section):
            if section == "trainer":
                trainer_section(model, shape, clock, report, Path(os.environ.get("TMPDIR", "/tmp"), "gpu_training"))
            else:
                work[section](model, shape, clock, report)
        report.add("machine", way=f"{section} done", seconds_left=rounded(clock.left, 3))
    print(report.table())


if __name__ == "__main__":
    main()
