"""Settings of a training run. The paper's recipe is the default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from uniedit_hf.recipes import PAPER, Conditioning, NamedRecipe
from uniedit_hf.renamed import refuse_former_names
from uniedit_hf.segments import DRAWING, UNDERSTANDING

from .layer_options import checkpointing_mode, wants_compiler


RecipeName = Literal["edit", "answer", "generate", "interleaved"]
BadRows = Literal["raise", "quarantine"]
Posterior = Literal["sample", "mean"]
Planning = Literal["show", "auto"]
FLASH_ADAMW = "flash_adamw"  # from the package flashoptim, which transformers does not support
CONDITIONING = tuple(each.name for each in fields(Conditioning))
BOTH_VIEWS = Conditioning(source_views=(UNDERSTANDING, DRAWING))
# Values of `report_to` that equal the name of their package.
REPORTERS = ("clearml", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
# Options of `TrainingArguments` that must be 1 or more, and those that may be 0.
COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
NOT_NEGATIVE = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed",
    "dataloader_num_workers", "eval_delay", "eval_steps",
)  # fmt: skip
# Options of `TrainingArguments` that `uniedit train --help` shows together with ours.
SHOWN_OPTIONS = {
    "output_dir": "folder for checkpoints and the model (required)",
    "max_steps": "optimizer steps; -1: use epochs",
    "num_train_epochs": "passes over the data",
    "learning_rate": "peak learning rate",
    "seed": "seed of all random draws",
    "save_steps": "steps between checkpoints",
    "resume_from_checkpoint": "true for the newest one, or its path",
    "push_to_hub": "push the model and its card",
}


@refuse_former_names
@dataclass
class UniEditConfig(TrainingArguments):
    r"""Arguments of [`UniEditTrainer`].

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of `from_pretrained` when the model is given as a folder or Hub id, such as `dtype`.
        freeze_und (`bool`, *optional*, defaults to `False`):
            Freeze the understanding expert, the text embeddings and the connector.
        freeze_gen (`bool`, *optional*, defaults to `False`):
            Freeze the generation expert and the layers to and from latent tokens. The recipe `"answer"` does not use
            them, so there they are always frozen.
        freeze_vit (`bool`, *optional*, defaults to `True`):
            Keep the understanding encoder as it is.

        plan (`str`, *optional*):
            `"show"` prints which ways of training fit the devices at hand; the command then ends. `"auto"` takes the
            best way that fits, adapters among them. Otherwise dtype, optimizer and activation checkpointing follow
            the plan on a GPU where they are not set, see `uniedit_hf.training.ways`.
        plan_memory (`str`, *optional*):
            Memory of each device to plan for, such as `"80GB"`, instead of that of the device at hand. With
            `plan="show"` the device is a GPU, even on a machine without one.
        optim (`str`, *optional*):
            As in `TrainingArguments`, or `"flash_adamw"` of the package flashoptim, which keeps a correction of the
            weights to 24 bits.
        activation_checkpointing (`str` or `bool`, *optional*):
            Which activations the backward pass recomputes: all (`"full"` or `True`), the cheap ones (`"selective"`:
            norms, activation functions, rotary positions), or none (`"none"` or `False`). Unset, it is the fastest of
            these that fits the memory, and `"full"` for a model that is loaded already.
        torch_compile (`bool`, *optional*):
            Compile the parts of the decoder's layers around attention, once for all layers; on by default if there is
            a GPU. The rest of the model is not compiled.

        > Parameters that control the data

        recipe (`str`, *optional*, defaults to `"edit"`):
            The recipe that makes a sample of a row: `"edit"`, `"answer"`, `"generate"` or `"interleaved"`, see
            `uniedit_hf.recipes`. A `TrainingPart` has its own.
        source_views (`list[str]`, *optional*):
            Views of the source image while training: `"understanding"` (ViT in BAGEL, SigLIP in Janus-Pro),
            `"drawing"` (VAE or VQ) or both; the family's own names `"vit"`, `"vae"`, `"siglip"` and `"vq"` work too.
            This and the dropouts are the processor's own `conditioning` if not set: for BAGEL the paper's,
            `["understanding"]` and a text dropout of 0.1.
        text_dropout (`float`, *optional*):
            Probability of training a sample without its text.
        understanding_dropout (`float`, *optional*):
            Probability of dropping the understanding view of the source.
        drawing_dropout (`float`, *optional*):
            Probability of dropping the clean drawing view of the source.
        full_dropout (`float`, *optional*):
            Probability of dropping the whole condition, images and text together.
        thinking_loss (`bool`, *optional*, defaults to `False`):
            Learn to write the column `thinking` before the edit.
        max_tokens_per_pack (`int`, *optional*, defaults to `11520`):
            Maximum number of tokens in a pack. `per_device_train_batch_size` and `per_device_eval_batch_size` count
            packs.
        packing_window (`int`, *optional*, defaults to `64`):
            Number of samples to choose from while packs are filled.
        bad_rows (`str`, *optional*, defaults to `"raise"`):
            `"raise"` on a row that cannot be used, or `"quarantine"`: leave it out, count it and list it with its
            reason in `quarantine_0.jsonl`, where 0 is the process that met it.
        vit_longest_edge (`int`, *optional*):
            Longest side of the ViT view while training, in pixels; the processor's own if not set. The paper trains
            with 518 and draws with 980.
        posterior (`str`, *optional*, defaults to `"sample"`):
            `"sample"` or `"mean"` of the VAE's posterior.

        > Parameters that control the losses

        image_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the mean image loss.
        text_loss_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the mean text loss. At 0 the parameters that only the text loss reaches are neither computed nor
            trained.
        timestep_shift (`float`, *optional*, defaults to `1.0`):
            Shift of the flow time while training.
        ema_decay (`float`, *optional*):
            Keep an exponential moving average of the trained weights with this decay, saved under `ema/`; the paper's
            is 0.9999.

        > Parameters that control sample images

        sample_steps (`int`, *optional*):
            Draw the first rows of the evaluation data every `sample_steps` steps, into `samples/`, with the recipe
            `"edit"` or `"generate"`.
        num_samples (`int`, *optional*, defaults to `4`):
            Number of rows to draw.
        sample_timesteps (`int`, *optional*, defaults to `20`):
            Timesteps of these drawings.

    > [!NOTE]
    > Defaults that differ from `TrainingArguments`: `learning_rate` 2e-5, `lr_scheduler_type`
    > `"constant_with_warmup"`, `warmup_steps` 0.05 (a share of the run; the paper's 2,000 steps are most of its
    > first 2,500), `adam_beta2` 0.95, `adam_epsilon` 1e-15, both batch sizes 1,
    > `torch_compile` True where there is a GPU, `logging_steps` 10,
    > `bf16` True where there is a GPU (`True` on a CPU without 16-bit arithmetic warns, with the measured factor),
    > `logging_nan_inf_filter` False (training stops at such a loss, and the filter would wait for the device in every
    > forward pass), `remove_unused_columns` False, `ddp_find_unused_parameters` False (every trained parameter is in
    > the graph of every step).

    Raises:
        ValueError: If settings cannot work together; the message names the one to change.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of the run if below 1."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second moment decay of AdamW."})
    adam_epsilon: float = field(default=1e-15, metadata={"help": "Epsilon of AdamW."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Packs per device and forward pass."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "Packs per device while evaluating."})
    activation_checkpointing: str | None = field(
        default=None, metadata={"help": "Activations to recompute in the backward pass: full, selective or none."}
    )
    torch_compile: bool | None = field(
        default=None, metadata={"help": "Compile the decoder's layers; on where there is a GPU."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs, or a share of the run below 1."})
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16 mixed precision; on where there is a GPU."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave losses out of the log that are not finite; training stops at one anyway."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Recipes read the columns they need."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search the graph for parameters without gradient; there are none."}
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of from_pretrained, as JSON."}
    )
    plan: Planning | None = field(
        default=None,
        metadata={
            "help": "show: print what fits the devices; auto: use the best.",
            "nargs": "?",
            "const": "show",
        },
    )
    plan_memory: str | None = field(default=None, metadata={"help": "Memory of each device to plan for, as in 80GB."})
    optim: str | None = field(default=None, metadata={"help": "The optimizer; the plan decides if not set."})
    freeze_und: bool = field(default=False, metadata={"help": "Freeze the understanding expert."})
    freeze_gen: bool = field(default=False, metadata={"help": "Freeze the generation expert."})
    freeze_vit: bool = field(default=True, metadata={"help": "Freeze the understanding encoder."})

    recipe: RecipeName = field(default="edit", metadata={"help": "How a row becomes a sample."})
    source_views: list[str] | None = field(
        default=None, metadata={"help": "Views of the source image: understanding, drawing or both."}
    )
    text_dropout: float | None = field(default=None, metadata={"help": "Probability of training without the text."})
    understanding_dropout: float | None = field(
        default=None, metadata={"help": "Probability of dropping the understanding view of the source."}
    )
    drawing_dropout: float | None = field(
        default=None, metadata={"help": "Probability of dropping the clean drawing view of the source."}
    )
    full_dropout: float | None = field(
        default=None, metadata={"help": "Probability of dropping the whole condition, images and text."}
    )
    thinking_loss: bool = field(default=False, metadata={"help": "Learn to write the column thinking."})
    max_tokens_per_pack: int = field(default=11520, metadata={"help": "Most tokens in a pack."})
    packing_window: int = field(default=64, metadata={"help": "Samples to choose from while filling packs."})
    bad_rows: BadRows = field(default="raise", metadata={"help": "What to do with rows that cannot be used."})
    vit_longest_edge: int | None = field(default=None, metadata={"help": "Longest side of the ViT view, pixels."})
    posterior: Posterior = field(default="sample", metadata={"help": "Sample the VAE's posterior, or use its mean."})

    image_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the mean image loss."})
    text_loss_weight: float = field(default=0.0, metadata={"help": "Weight of the mean text loss."})
    timestep_shift: float = field(default=1.0, metadata={"help": "Shift of the flow time while training."})
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of a moving average, saved under ema/."})

    sample_steps: int | None = field(default=None, metadata={"help": "Steps between sample images; none if not set."})
    num_samples: int = field(default=4, metadata={"help": "Number of sample images."})
    sample_timesteps: int = field(default=20, metadata={"help": "Timesteps of the sample images."})

    FORMER_NAMES = Conditioning.FORMER_NAMES
    SHOWN_OPTIONS = SHOWN_OPTIONS
    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS + ["model_init_kwargs"]

    def __post_init__(self):
        bf16 = self.bf16
        if self.bf16 is None:
            import torch

            self.bf16 = not self.fp16 and torch.cuda.is_available() and not self.use_cpu
        checkpointing = (self.activation_checkpointing, self.gradient_checkpointing)
        self.left_open = {name for name in ("optim", "output_dir") if getattr(self, name) is None}
        if checkpointing == (None, None):
            self.left_open.add("activation_checkpointing")
        asked = next((each for each in checkpointing if each is not None), "full")
        self.activation_checkpointing = checkpointing_mode(asked)
        self._resolve_inherited()
        if self.bf16 and self.device.type == "cpu":
            from uniedit_hf.arithmetic import warn_if_bfloat16_is_slow

            warn_if_bfloat16_is_slow()
        if bf16 is None and self._plans_another_device:
            self.bf16 = True  # nothing runs here, so this machine need not be able to
        self._check_values()
        self._check_losses()
        self._check_inherited()

    @property
    def _plans_another_device(self) -> bool:
        """Whether only a plan is wanted, for a device of a given memory: a GPU, even if this machine has none."""
        return self.plan == "show" and self.plan_memory is not None and not self.use_cpu and not self.fp16

    def _resolve_inherited(self) -> None:
        """transformers' own checks, except for two options: it does not support flash_adamw, and for the compiler it
        would switch all fp32 arithmetic to TF32.
        """
        optim, default = self.optim, TrainingArguments.__dataclass_fields__["optim"].default
        backend, mode = self.torch_compile_backend, self.torch_compile_mode
        compiles = wants_compiler(self.torch_compile, backend, mode, self.use_cpu)
        self.optim = default if optim in (None, FLASH_ADAMW) else optim
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None
        super().__post_init__()
        self.optim = FLASH_ADAMW if optim == FLASH_ADAMW else self.optim
        if compiles:
            self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = True, backend or "inductor", mode

    @property
    def conditioning_overrides(self) -> dict[str, Any]:
        """The source views and dropouts that were set; the others are the processor's own."""
        return {name: getattr(self, name) for name in CONDITIONING if getattr(self, name) is not None}

    def set_conditioning(self, conditioning: Conditioning) -> None:
        """Stores the effective conditioning in these arguments, so that it is saved and logged."""
        for name in CONDITIONING:
            setattr(self, name, getattr(conditioning, name))
        self.source_views = list(conditioning.source_views)

    def make_recipe(self, name: str | None = None) -> NamedRecipe:
        """A recipe by name (`recipe` by default) with these source views and dropouts; those that are not set follow
        the model.
        """
        name = name or self.recipe
        options = {"thinking_loss": self.thinking_loss} if name == "edit" else {}
        return NamedRecipe(name, self.conditioning_overrides, options)

    @property
    def packs_per_step(self) -> int:
        """Packs per optimizer step, over batch, accumulation and devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def draw_seed(self) -> int:
        """The seed of plans, dropouts, times and noise."""
        return self.seed if self.data_seed is None else self.data_seed

    def _check_values(self) -> None:
        one_of("recipe", self.recipe, get_args(RecipeName))
        one_of("bad_rows", self.bad_rows, get_args(BadRows))
        one_of("posterior", self.posterior, get_args(Posterior))
        overrides = self.conditioning_overrides
        if overrides.keys() >= {"source_views"} and set(self.source_views) <= {UNDERSTANDING, DRAWING}:
            PAPER.override(**overrides)
        else:  # only the processor can check the views; the numbers can be checked now
            BOTH_VIEWS.override(**{name: each for name, each in overrides.items() if name != "source_views"})
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: use a number between 0 and 1, 0.9999 in the paper.")
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift is {self.timestep_shift}: use a number above 0; 1 does not shift.")
        counts = ("max_tokens_per_pack", "packing_window", "num_samples", "sample_timesteps", *COUNTS)
        optional = ("sample_steps", "vit_longest_edge", "save_total_limit", "eval_accumulation_steps")
        for name in (*counts, *(name for name in optional if getattr(self, name) is not None)):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1 or more.")
        for name in NOT_NEGATIVE:
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: use 0 or more.")
        for name in ("save", "logging", "eval"):
            number = getattr(self, f"{name}_steps")
            if getattr(self, f"{name}_strategy") == "steps" and not number > 0:
                raise ValueError(f"{name}_steps is {number}: use a number above 0, or {name}_strategy no.")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps is {self.max_steps}: use 1 or more, or -1 to train for num_train_epochs.")
        if self.max_steps < 0 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}: use a number above 0, or give max_steps.")
        if self.freeze_vit and self.freeze_und and self.freeze_gen:
            raise ValueError("freeze_vit, freeze_und and freeze_gen leave nothing to train: set one of them to false.")

    def _check_losses(self) -> None:
        for name in ("image_loss_weight", "text_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: use 0 or more.")
        if not self.image_loss_weight and not self.text_loss_weight:
            raise ValueError("image_loss_weight and text_loss_weight are both 0, so nothing is learned: raise one.")
        if self.thinking_loss and self.recipe != "edit":
            raise ValueError(f"thinking_loss is for the recipe 'edit', not for {self.recipe!r}: leave it out.")
        if self.thinking_loss and not self.text_loss_weight:
            raise ValueError("thinking_loss learns to write text, but text_loss_weight is 0: raise text_loss_weight.")

    def _check_inherited(self) -> None:
        """Refuses options of `TrainingArguments` that have no meaning for packs."""
        not_for_packs = {
            "label_smoothing_factor": "losses are exact means",
            "auto_find_batch_size": "packs are planned for one size",
            "dataloader_drop_last": "no sample is ever dropped",
            "enable_jit_checkpoint": "SIGTERM saves a checkpoint already",
        }
        for name, reason in not_for_packs.items():
            if getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}, which does nothing here ({reason}): leave it out.")
        for name in self.report_to:
            if name in REPORTERS and find_spec(name) is None:
                raise ValueError(f"report_to names {name!r}, which is not installed: pip install {name}.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}, but packs are planned and balanced "
                "over devices: leave it out."
            )


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` if an option has a value that is not one of these."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: use {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}.")
