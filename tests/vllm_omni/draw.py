"""Loads an exported BAGEL folder with vLLM-Omni's own strict loader on a CPU and draws: python draw.py FOLDER OUT PORT

Runs in an environment of its own, see requirements.txt. FOLDER is what `uniedit convert --to official` writes, of a
model with the released autoencoder's shape and 26 ViT layers, since the server knows no other. OUT gets `noise` and
`latents` of a drawing of 64 x 64 pixels: 5 timesteps, text guidance 4 between the flow times 0.4 and 1, in fp32; and
the size that images are read in.
"""

from __future__ import annotations

import os
import sys

import torch
from safetensors.torch import save_file


os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
folder, out, os.environ["MASTER_PORT"] = sys.argv[1:4]

from vllm_omni.platforms.interface import UnspecifiedOmniPlatform as Platform  # noqa: E402


# what a platform plug-in for the CPU would say
SDPA = "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"
Platform.get_diffusion_attn_backend_cls = classmethod(lambda cls, *args, **options: SDPA)
Platform.get_torch_device = classmethod(lambda cls, *args, **options: torch.device("cpu"))
Platform.get_device_count = classmethod(lambda cls: 1)
Platform.set_device = classmethod(lambda cls, device: None)
Platform.dist_backend = "gloo"

import vllm_omni.diffusion.attention.backends.sdpa as sdpa  # noqa: E402
import vllm_omni.diffusion.models.bagel.bagel_transformer as transformer  # noqa: E402
import vllm_omni.diffusion.models.bagel.pipeline_bagel as bagel  # noqa: E402
from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.config.load import LoadConfig  # noqa: E402
from vllm_omni.diffusion.data import OmniDiffusionConfig  # noqa: E402
from vllm_omni.diffusion.distributed.parallel_state import (  # noqa: E402
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm_omni.diffusion.forward_context import set_forward_context  # noqa: E402
from vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader  # noqa: E402
from vllm_omni.inputs.data import OmniDiffusionSamplingParams  # noqa: E402


class Fp32Torch:
    """Answers bfloat16 with float32: the server casts inside its layers."""

    def __getattr__(self, name: str):
        return torch.float32 if name == "bfloat16" else getattr(torch, name)


def loaded(config: OmniDiffusionConfig) -> bagel.BagelPipeline:
    """The server's pipeline, every tensor of it filled from the folder."""
    pipe = bagel.BagelPipeline(od_config=config)
    loader = DiffusersPipelineLoader(LoadConfig(), config)
    loader.counter_before_loading_weights = 0
    loader.load_weights(pipe)  # raises where a tensor is not filled
    loader._process_weights_after_loading(pipe, torch.device("cpu"))
    torch.set_default_dtype(torch.float32)
    sdpa.SDPAImpl.forward = sdpa.SDPAImpl.forward_cuda
    return pipe.eval()


def drawn(pipe: bagel.BagelPipeline) -> dict[str, torch.Tensor]:
    """Noise and latents of a drawing."""
    kept, draw = {}, pipe.bagel.generate_image

    def keep(*args, **options):
        kept["noise"] = options["packed_init_noises"]
        result = draw(*args, **options)
        kept["latents"] = (result[0] if isinstance(result, tuple) else result)[0]
        return result

    pipe.bagel.generate_image = keep
    asked = OmniDiffusionSamplingParams(height=64, width=64, num_inference_steps=5, seed=7)
    asked.extra_args = {"cfg_text_scale": 4.0, "cfg_img_scale": 1.0, "cfg_interval": (0.4, 1.0)}
    pipe._forward_single({"prompt": "a red circle", "modalities": ["image"]}, asked)
    return kept


bagel.torch = transformer.torch = Fp32Torch()
bagel.get_local_device = lambda: torch.device("cpu")
config = OmniDiffusionConfig(model=folder, dtype=torch.float32)
config.enrich_config()
server = VllmConfig()
with set_current_vllm_config(server):
    init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
    initialize_model_parallel(backend="gloo")
    torch.set_default_dtype(torch.float32)
    pipe = loaded(config)
    with set_forward_context(vllm_config=server, omni_diffusion_config=config):
        found = drawn(pipe)
size = pipe.image_processor.size
found["vit_size"] = torch.tensor([size["height"], size["width"]])
save_file({name: tensor.contiguous().cpu() for name, tensor in found.items()}, out)
sys.stdout.write(f"{config.model_class_name}: {len(pipe.state_dict())} tensors\n")
