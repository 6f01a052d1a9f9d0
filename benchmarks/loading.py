"""Memory and time to load a checkpoint in bf16: `python -m benchmarks.loading [--gigabytes 2]`.

Writes synthetic checkpoints of about that size into a temporary folder and loads each in a process of its own: the
official folder in bf16, our layout in bf16, and shards in fp32 as Uni-Edit is released. Prints one JSON line each:

    checkpoint_gb  size of the files
    weights_gb     size of the loaded weights (the autoencoder stays in fp32)
    peak_rss_gb    most memory the process had at any time, libraries and mapped pages of files included
    peak_anon_gb   the same without pages of files, which the kernel takes back when it needs them
    used_rss_gb    peak_rss_gb after every weight was used once, which brings mapped weights into memory
    before_gb      memory after the imports, before loading
    seconds        time to load, from a warm page cache

Exits with 1 if used_rss_gb is over checkpoint_gb plus 0.5 (GB are 10^9 bytes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from uniedit_hf.models.bagel.configuration_bagel import BagelConfig
from uniedit_hf.models.bagel.layouts_bagel import convert
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration


ALLOWANCE_GB = 0.5
HIDDEN, VOCABULARY = 1024, 8192
GB = 1e9


def synthetic_config(num_layers: int) -> BagelConfig:
    """Layers of 30 million parameters each."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    markers = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return BagelConfig(
        text_config=text | markers,
        vision_config={"num_hidden_layers": 1, "image_size": 140},
        max_latent_size=16,
        vae_config={"base_channels": 32},
        **markers,
        vision_start_token_id=None,
        vision_end_token_id=None,
    )


def shapes(config: BagelConfig) -> dict[str, torch.Size]:
    """Official names and shapes of all tensors."""
    with torch.device("meta"):
        model = BagelForConditionalGeneration(config)
    return {name: tensor.shape for name, tensor in revert_weight_conversion(model, model.state_dict()).items()}


def write_checkpoint(folder: Path, gigabytes: float, dtype: torch.dtype, num_shards: int = 0) -> None:
    """An official folder, or with `num_shards` one as Uni-Edit's, with weights of about this size."""
    base, one_more = (sum(s.numel() for s in shapes(synthetic_config(n)).values()) for n in (1, 2))
    num_layers = max(1, 1 + round((gigabytes * GB / dtype.itemsize - base) / (one_more - base)))
    config = synthetic_config(num_layers)
    block = torch.randn(1 << 20) / 50
    tensors: dict[bool, dict[str, torch.Tensor]] = {True: {}, False: {}}
    for name, shape in shapes(config).items():
        is_vae = name.startswith(("encoder.", "decoder."))
        values = block.to(torch.float32 if is_vae else dtype)
        tensors[is_vae][name] = values.repeat(-(-shape.numel() // len(values)))[: shape.numel()].view(shape)
    folder.mkdir()
    save_file(tensors[True], folder / "ae.safetensors")
    names = sorted(tensors[False])
    for shard in range(num_shards or 1):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors" if num_shards else "ema.safetensors"
        save_file({name: tensors[False][name] for name in names[shard :: num_shards or 1]}, folder / file)
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    vision["num_hidden_layers"] += 1
    for name, content in (("llm_config", text), ("vit_config", vision)):
        (folder / f"{name}.json").write_text(json.dumps(content, default=str))


class PeakAnonymousMemory(threading.Thread):
    """The most anonymous memory of this process, looked up every few milliseconds."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(0.005):
            self.peak = max(self.peak, status("RssAnon"))


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(folder: Path) -> dict[str, float]:
    """Loads the checkpoint in this process."""
    logging.disable_progress_bar()
    before = status("VmRSS")
    watch = PeakAnonymousMemory()
    watch.start()
    start = time.perf_counter()
    model = BagelForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    seconds = time.perf_counter() - start
    watch.stopped.set()
    watch.join()
    peak = status("VmHWM")  # ru_maxrss would count what the parent process had
    for parameter in model.parameters():
        parameter.sum()
    found = {
        "checkpoint_gb": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "weights_gb": sum(parameter.nbytes for parameter in model.parameters()),
        "peak_rss_gb": peak,
        "peak_anon_gb": watch.peak,
        "used_rss_gb": status("VmHWM"),
        "before_gb": before,
    }
    return {name: round(size / GB, 3) for name, size in found.items()} | {"seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--load", type=Path, help="only load this folder and print its line")
    options = parser.parse_args()
    if options.load:
        print(json.dumps(measure(options.load)))
        return
    over = []
    with tempfile.TemporaryDirectory() as temporary:
        layouts = {name: Path(temporary, name) for name in ("official", "ours", "fp32-shards")}
        write_checkpoint(layouts["official"], options.gigabytes, torch.bfloat16)
        convert(layouts["official"], layouts["ours"], to="transformers")
        write_checkpoint(layouts["fp32-shards"], options.gigabytes, torch.float32, num_shards=3)
        for name, folder in layouts.items():
            command = [sys.executable, "-m", "benchmarks.loading", "--load", str(folder)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(result.stdout.splitlines()[-1])
            print(json.dumps({"layout": name} | found), flush=True)
            if found["used_rss_gb"] > found["checkpoint_gb"] + ALLOWANCE_GB:
                over.append(f"{name} takes {found['used_rss_gb']} GB for a checkpoint of {found['checkpoint_gb']} GB")
    if over:
        sys.exit("; ".join(over))


if __name__ == "__main__":
    main()
