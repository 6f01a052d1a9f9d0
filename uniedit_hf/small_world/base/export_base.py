"""Makes a checkpoint folder, which `UniEditPipeline.from_pretrained` reads, from the weights written by the GPU
programs.

    python -m uniedit_hf.small_world.base.export_base --weights base.pt --log base/log.jsonl --measure_vae \
        --output_dir runs/base2
    python -m uniedit_hf.small_world.base.export_base --weights base.pt --tuned self-drawn.pt --output_dir runs/tuned2

The folder holds `model`, and `vae.json` with the figures of the autoencoder, so that `publish.py` takes it as
`--base`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.base.scenes import real_scenes
from uniedit_hf.small_world.base.static_model import ModelShape
from uniedit_hf.small_world.base.vae import measure


FIRST_BASE = Path(__file__).resolve().parents[3] / "assets" / "small_bagel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="of gpu_base.py")
    parser.add_argument("--tuned", type=Path, help="of gpu_recipes.py: these weights in place of the base's")
    parser.add_argument("--first_base", type=Path, default=FIRST_BASE, help="whose autoencoder and processor are kept")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--log", type=Path, help="log.jsonl of the training, for publish.py")
    parser.add_argument("--measure_vae", action="store_true", help="also write vae.json, which publish.py reads")
    options = parser.parse_args()
    stored = torch.load(options.weights, weights_only=True)
    weights = stored["weights"]
    if options.tuned:
        weights = weights | torch.load(options.tuned, weights_only=True)["weights"]
    export(weights, ModelShape(**stored["shape"]), options.first_base, options.output_dir / "model")
    if options.log:
        shutil.copyfile(options.log, options.output_dir / "training_log.jsonl")
    if options.measure_vae:
        pipe = UniEditPipeline.from_pretrained(options.output_dir / "model")
        figures = measure(lambda pixels: torch.stack(pipe.model.round_trip(list(pixels))), *real_scenes("test"))
        (options.output_dir / "vae.json").write_text(json.dumps(figures) + "\n")


def export(weights: dict[str, torch.Tensor], shape: ModelShape, first_base: Path, folder: Path) -> None:
    """Writes a checkpoint in 16 bit, which loads as 32 bit.

    Args:
        weights: Weights of one model, with the checkpoint's names.
        shape: Shape of the model.
        first_base: Folder with the autoencoder, the processor and the configuration to start from.
        folder: The folder to write; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(first_base / name, folder / name)
    config = json.loads((first_base / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "layer_types": ["full_attention"] * shape.layers,
        "vocab_size": shape.vocabulary,
    }
    config["vision_config"] |= {
        "hidden_size": shape.vit_hidden,
        "intermediate_size": shape.vit_intermediate,
        "num_hidden_layers": shape.vit_layers,
        "num_attention_heads": shape.vit_heads,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    first = load_file(first_base / "model.safetensors")
    kept = {name: weight for name, weight in first.items() if name.startswith(("encoder.", "decoder."))}
    ours = {name: weight.half().contiguous() for name, weight in weights.items()}
    save_file(ours | kept, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
