"""A public server draws with our export: vLLM-Omni, installed for the CPU into an environment of its own, loads it
strictly and draws as we do. Slow: about 3 GB are installed once, under runs/."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_bagel, tiny_bagel_processor

from uniedit_hf import UniEditPipeline
from uniedit_hf.cli import main
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.segments import Sample, TextSegment


PARTS = Path(__file__).parent / "vllm_omni"
ENVIRONMENT = Path(__file__).parents[1] / "runs" / "vllm_omni_env"
# the server builds no other autoencoder and no other number of ViT layers
RELEASED_VAE = {"base_channels": 128, "channel_multipliers": [1, 2, 4, 4], "num_res_blocks": 2}
RELEASED_VIT_LAYERS = 26


def python_with_vllm_omni() -> Path:
    """The interpreter of the environment, which is made on first use."""
    requirements = PARTS / "requirements.txt"
    stamp, wanted = ENVIRONMENT / "installed", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = ENVIRONMENT / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"vLLM-Omni cannot be installed here: {done.stderr.strip().splitlines()[-1][:300]}")
        stamp.write_text(wanted)
    return python


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_vllm_omni_loads_an_export_and_draws_as_we_do(tmp_path):
    python = python_with_vllm_omni()
    vision = tiny_bagel().config.vision_config.to_dict() | {"num_hidden_layers": RELEASED_VIT_LAYERS}
    pipe = UniEditPipeline(tiny_bagel(vae_config=RELEASED_VAE, vision_config=vision), tiny_bagel_processor())
    pipe.save_pretrained(tmp_path / "ours")
    folders = ["--input_dir", str(tmp_path / "ours"), "--output_dir", str(tmp_path / "export")]
    assert main(["convert", *folders, "--to", "official"]) == 0
    out = tmp_path / "drawn.safetensors"
    command = [str(python), str(PARTS / "draw.py"), str(tmp_path / "export"), str(out), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "BagelPipeline: " in done.stdout
    theirs = load_file(out)
    assert theirs["vit_size"].tolist() == [84, 84], "the server reads images in the size of our ViT"
    settings = {"height": 64, "width": 64, "num_timesteps": 5, "guidance_interval": (0.4, 1.0), "timestep_shift": 3.0}
    contexts = pipe.processor.guidance_contexts([Sample([TextSegment("a red circle")])])

    def apart(scale: float) -> float:
        asked = ImageSettings(text_guidance_scale=scale, **settings)
        (ours,) = pipe.model.generate_latents([asked], noise=[theirs["noise"]], **contexts)
        return float((ours - theirs["latents"]).norm() / theirs["latents"].norm())

    sys.stderr.write(f"{done.stdout.strip().splitlines()[-1]}; relative difference {apart(4.0):.1e}\n")
    assert apart(4.0) < 1e-4 < 0.1 < apart(1.0)
    assert torch.isfinite(theirs["latents"]).all()
