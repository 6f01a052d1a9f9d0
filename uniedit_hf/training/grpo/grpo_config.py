"""Settings of a run of reinforcement learning, under TRL's names where TRL has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..config import SHOWN_OPTIONS, Posterior, UniEditConfig, one_of
from .advantages import ScaleRewards


ObjectiveName = Literal["nft", "grpo"]
DROPOUTS = ("text_dropout", "understanding_dropout", "drawing_dropout", "full_dropout")
RECIPES = ("edit", "generate", "answer")


@dataclass
class UniEditGRPOConfig(UniEditConfig):
    r"""Arguments of [`UniEditGRPOTrainer`], beside those of [`UniEditConfig`].

    Parameters:
        > Parameters that control what is drawn

        num_generations (`int`, *optional*, defaults to `8`):
            Completions of each prompt: images that are drawn, or texts that are written.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Completions that are made at a time, over all devices; a multiple of `num_generations`.
        steps_per_generation (`int`, *optional*, defaults to `1`):
            Optimizer steps that share out a generation batch, by prompt.
        num_iterations (`int`, *optional*, defaults to `1`):
            How often a generation batch is gone through.
        rollout_batch_size (`int`, *optional*, defaults to `32`):
            Completions that a device makes side by side.
        generation_kwargs (`dict`, *optional*):
            Settings of the model's drawings, such as `num_timesteps`, `sampler`, `noise_level` or `sde_window` for
            BAGEL and `temperature` for Janus-Pro; guidance is off unless set here.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of texts.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Tokens of a text at most.

        > Parameters that control the rewards

        reward_weights (`list[float]`, *optional*):
            Of the reward functions; all 1 if not set.
        reward_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds that one call of a reward function may take.
        scale_rewards (`str`, *optional*, defaults to `"group"`):
            What advantages are divided by: the standard deviation of the `"group"` of a prompt, of the `"batch"`, or
            `"none"`.

        > Parameters that control what is learned

        objective (`str`, *optional*):
            How drawings are learned: `"nft"` (DiffusionNFT, likelihood-free) or `"grpo"`. The model's own default if
            not set: `"nft"` for BAGEL, `"grpo"` for Janus-Pro. Texts are always learned with GRPO.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the divergence from the model that the run began with. Above 0, full tuning keeps a copy of it.
        epsilon (`float`, *optional*):
            Clipping of the ratio in GRPO. If not set, 0.2 for texts and the model's own for drawings.
        nft_strength (`float`, *optional*, defaults to `1.0`):
            How far the implicit policies of DiffusionNFT are from the one that drew (its beta).
        advantage_clip (`float`, *optional*, defaults to `5.0`):
            The largest advantage that counts in DiffusionNFT.
        ratio_tolerance (`float`, *optional*):
            How far the mean ratio of probabilities in training and in drawing may be from 1 before the first update:
            0.001 if not set, and 0.05 with 16-bit arithmetic.

        > Parameters that control what is shown

        log_completions (`bool`, *optional*, defaults to `False`):
            Save a grid of the newest images with their rewards under `completions/` whenever there is a log, and hand
            it to the reporters.

    > [!NOTE]
    > Defaults that differ from `UniEditConfig`: `learning_rate` 1e-5 (1e-4 suits adapters), `posterior` `"mean"`, as
    > in drawing, and `text_loss_weight` 1 with the recipe `"answer"`.

    Raises:
        ValueError: If settings cannot work together; the message names the one to change.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    posterior: Posterior = field(default="mean", metadata={"help": "What the VAE gives."})
    text_loss_weight: float | None = field(default=None, metadata={"help": "Weight of what texts teach."})

    num_generations: int = field(default=8, metadata={"help": "Completions of each prompt."})
    generation_batch_size: int = field(default=64, metadata={"help": "Completions made at a time, on all devices."})
    steps_per_generation: int = field(default=1, metadata={"help": "Steps that share out a generation batch."})
    num_iterations: int = field(default=1, metadata={"help": "Passes over each generation batch."})
    rollout_batch_size: int = field(default=32, metadata={"help": "Completions that a device makes side by side."})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of drawings, as JSON."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of texts."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of a text at most."})

    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weights of the rewards."})
    reward_timeout: float = field(default=600.0, metadata={"help": "Seconds that a call of a reward may take."})
    scale_rewards: ScaleRewards = field(default="group", metadata={"help": "What advantages are divided by."})

    objective: ObjectiveName | None = field(default=None, metadata={"help": "How drawings are learned."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the divergence from the first model."})
    epsilon: float | None = field(default=None, metadata={"help": "Clipping of the ratio in GRPO."})
    nft_strength: float = field(default=1.0, metadata={"help": "Distance of DiffusionNFT's implicit policies."})
    advantage_clip: float = field(default=5.0, metadata={"help": "The largest advantage that counts in NFT."})
    ratio_tolerance: float | None = field(
        default=None, metadata={"help": "Largest distance of the on-policy ratio from 1."}
    )

    log_completions: bool = field(default=False, metadata={"help": "Save grids of images with their rewards."})

    SHOWN_OPTIONS = SHOWN_OPTIONS
    _VALID_DICT_FIELDS = UniEditConfig._VALID_DICT_FIELDS + ["generation_kwargs"]

    def __post_init__(self):
        if self.text_loss_weight is None:
            self.text_loss_weight = 1.0 if self.recipe == "answer" else 0.0
        if self.recipe == "answer":
            self.image_loss_weight = self.image_loss_weight or 1.0
        self._check_unused()
        for name in DROPOUTS:
            setattr(self, name, 0.0)
        super().__post_init__()
        if self.ratio_tolerance is None:
            self.ratio_tolerance = 0.05 if self.bf16 or self.fp16 else 1e-3
        self._check_generations()

    @property
    def prompts_per_generation(self) -> int:
        """Prompts of a generation batch."""
        return self.generation_batch_size // self.num_generations

    @property
    def steps_of_a_generation(self) -> int:
        """Optimizer steps from one generation batch to the next."""
        return self.steps_per_generation * self.num_iterations

    def _check_generations(self) -> None:
        one_of("scale_rewards", self.scale_rewards, get_args(ScaleRewards))
        if self.objective is not None:
            one_of("objective", self.objective, get_args(ObjectiveName))
        names = ("steps_per_generation", "num_iterations", "rollout_batch_size", "max_completion_length")
        for name in ("generation_batch_size", *names):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1 or more.")
        for name in ("reward_timeout", "temperature", "nft_strength", "advantage_clip", "ratio_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: use a number above 0.")
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}, but completions are compared with others of their "
                "prompt: use 2 or more."
            )
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"generation_batch_size is {self.generation_batch_size}, which is not a multiple of "
                f"num_generations={self.num_generations}: make it one."
            )
        shares = self.steps_per_generation * self.world_size
        if self.prompts_per_generation % shares:
            raise ValueError(
                f"A generation batch has {self.prompts_per_generation} prompts, which {self.steps_per_generation} "
                f"step(s) on {self.world_size} process(es) cannot share out evenly: make generation_batch_size a "
                f"multiple of {shares * self.num_generations}."
            )
        if self.save_strategy == "steps" and self.save_steps >= 1 and self.save_steps % self.steps_of_a_generation:
            raise ValueError(
                f"save_steps is {self.save_steps}, but a run resumes at generation batches, every "
                f"{self.steps_of_a_generation} steps: make it a multiple."
            )

    def _check_unused(self) -> None:
        """Options of training with targets that have no meaning here."""
        one_of("recipe", self.recipe, RECIPES)
        for name in DROPOUTS:
            if getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but rewards are about whole prompts, of which nothing is "
                    "dropped: leave it out."
                )
        if self.thinking_loss:
            raise ValueError("thinking_loss learns from a column of texts, not from rewards: leave it out.")
        if self.bad_rows != "raise":
            raise ValueError(
                "bad_rows='quarantine' leaves out rows while packs are planned, but here rows are met as they are "
                "drawn for: check the data with `uniedit dataset validate`, and leave it out."
            )
