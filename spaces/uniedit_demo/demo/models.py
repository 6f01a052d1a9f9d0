"""The two models of the page, and their device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from uniedit_hf import UniEditPipeline

Decorate = Callable[[Callable], Callable]
SMALL_WORLD = 128  # pixels: models that draw no larger ones are of the quickstart's kind


@dataclass(frozen=True)
class Defaults:
    """Settings that suit a model: the reference's, or those of the small world.

    Args:
        steps: Steps of a drawing.
        text_guidance: Text guidance scale of edits and drawings.
        image_guidance: Image guidance scale of edits.
        edit_renorm: Renormalization of the guidance of edits.
        drawing_interval: Flow times at which drawings are guided.
        temperature: Temperature of models that draw token by token.
        answer_tokens: The longest answer.
        thinking: The largest budget of thoughts.
    """

    steps: int = 49
    text_guidance: float = 4.0
    image_guidance: float = 2.0
    edit_renorm: str = "text_channel"
    drawing_interval: tuple[float, float] = (0.4, 1.0)
    temperature: float = 1.0
    answer_tokens: int = 512
    thinking: int = 1024


# As the small world is measured with (uniedit_hf/small_world/suite.py).
SMALL = {
    "bagel": Defaults(11, 2.5, 1.0, "global", (0.0, 1.0), answer_tokens=16, thinking=32),
    "janus": Defaults(text_guidance=1.5, image_guidance=1.0, temperature=0.5, answer_tokens=16),
}


@dataclass(frozen=True)
class Pair:
    """Base and tuned model, with the names to show."""

    base: UniEditPipeline
    tuned: UniEditPipeline
    base_name: str
    tuned_name: str

    @property
    def side(self) -> int:
        """The longest side that the models draw, in pixels."""
        return max(self.base.processor.default_size(self.base.model.config))

    @property
    def defaults(self) -> Defaults:
        """Settings that suit the models: of small ones those of the small world, of others their family's."""
        if self.side <= SMALL_WORLD:
            return SMALL[self.base.model.config.model_type]
        own = self.base.model.image_settings.editing
        return Defaults(text_guidance=own["text_guidance_scale"], image_guidance=own["image_guidance_scale"])

    @property
    def draws_in_steps(self) -> bool:
        """Whether the number of steps can be chosen; a family that draws token by token has none to choose."""
        return "num_timesteps" in self.base.known_settings

    @property
    def thinks(self) -> bool:
        """Whether the models can be asked to think first."""
        return self.base.processor.thinking_prompts is not None

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the tokenizer does not know, each once; those of large models know all."""
        tokenizer = self.base.processor.tokenizer
        if tokenizer.unk_token_id is None:
            return []
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pieces = zip(tokens["input_ids"], tokens["offset_mapping"])
        unknown = [text[start:end].strip() for token, (start, end) in pieces if token == tokenizer.unk_token_id]
        return list(dict.fromkeys(word for word in unknown if any(sign.isalnum() for sign in word)))

    def what_runs(self) -> list[str]:
        """The running models, in a few words each."""
        millions = sum(parameter.numel() for parameter in self.base.model.parameters()) / 1e6
        size = f"{millions / 1000:.1f} billion" if millions >= 1000 else f"{millions:.1f} million"
        return [
            f"Base: {self.base_name}",
            f"Tuned: {self.tuned_name}",
            f"{size} parameters, {str(self.base.model.dtype).removeprefix('torch.')}",
            "GPU" if self.base.device.type == "cuda" else "CPU",
            f"images up to {self.side} px",
        ]


def load_pair(base: str, tuned: str) -> Pair:
    """Loads both models, in bfloat16 onto the GPU if there is one (or ZeroGPU). Without a GPU the two, which run at
    the same time, share the cores.

    Raises:
        OSError: If one of them is not there.
        ValueError: If a checkpoint is broken, or the two are of different families.
    """
    import torch

    from uniedit_hf import UniEditPipeline

    on_gpu = torch.cuda.is_available()
    options = {"dtype": torch.bfloat16} if on_gpu else {"dtype": torch.float32}
    pipes = [UniEditPipeline.from_pretrained(name, **options) for name in (base, tuned)]
    if type(pipes[0].model) is not type(pipes[1].model):
        kinds = " and ".join(pipe.model.config.model_type for pipe in pipes)
        raise ValueError(
            f"{base} and {tuned} are of different families, {kinds}: give a model and the same model tuned."
        )
    if on_gpu:
        pipes = [pipe.to("cuda") for pipe in pipes]
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    return Pair(*pipes, _short(base), _short(tuned))


def _short(name: str) -> str:
    """A Hub id as it is; of a folder the last parts."""
    return "/".join(Path(name).resolve().parts[-2:]) if Path(name).is_dir() else name


def zero_gpu() -> Callable[[int], Decorate]:
    """ZeroGPU's decorator for functions that need the GPU for so many seconds; without ZeroGPU one that does nothing.

    In the root of a clone, the folder `spaces/` can be imported as an empty package of that name, so finding one is
    not enough.
    """
    decorator = getattr(import_module("spaces"), "GPU", None) if find_spec("spaces") else None
    if decorator is None:
        return lambda seconds: lambda function: function
    return lambda seconds: decorator(duration=seconds)
