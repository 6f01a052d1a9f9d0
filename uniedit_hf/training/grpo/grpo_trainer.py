"""`UniEditGRPOTrainer`: drawings, edits and answers that rewards call better become likelier.

Every generation batch is drawn by the model that is trained, rewarded, turned into packs, and trained on for a few
steps. Everything else, from the exact mean over devices to checkpoints and cards, is `UniEditTrainer`'s.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback

from uniedit_hf.models.loading import inner_model

from ..config import FLASH_ADAMW
from ..data import TrainingPart
from ..metrics import SUMMED
from ..trainer import UniEditTrainer
from .advantages import advantages_of, alike
from .completion_grid import save_completions
from .grpo_config import UniEditGRPOConfig
from .learning import LearningBatches
from .objectives import Hyperparameters
from .prompt_rows import PromptPlan, plan_prompts, read_prompt
from .reward_calls import RewardCalls, RewardFunc
from .rollouts import Completion, Rollouts


PAPERS = {
    "nft": {"title": "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", "id": "2509.16117"},
    "grpo": {
        "title": "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "id": "2402.03300",
    },
    "flow": {"title": "Flow-GRPO: Training Flow Matching Models via Online RL", "id": "2505.05470"},
}
SUMS = (
    "reward_sum", "reward_count", "group_std_sum", "groups", "groups_alike", "rollout_seconds", "ratio_sum",
    "ratio_count", "clipped_sum", "kl_sum", "kl_count", "ratio_error_sum", "ratio_error_count",
)  # fmt: skip


class UniEditGRPOTrainer(UniEditTrainer):
    r"""Trains a unified multimodal model with rewards on what it draws and writes.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            As in [`UniEditTrainer`].
        reward_funcs (`Callable` or `str` or a list of these):
            Functions, coroutine functions or names of `uniedit_hf.rewards`. A function gets lists under the names
            `images`, `sources`, `instructions`, `texts`, `trainer_state` and every column of the rows, images opened,
            and returns one number or `None` for each completion.
        args ([`UniEditGRPOConfig`], *optional*):
            The settings.
        train_dataset (`Dataset` or `list[TrainingPart]`, *optional*):
            Rows with the columns that the recipe reads, without targets, and what the rewards read.
        eval_dataset, processing_class, callbacks, optimizers, quantization_config, peft_config, unsupported:
            As in [`UniEditTrainer`].

    Raises:
        ValueError: If the settings, the model, the data and the rewards do not go together.
        RewardError: If a reward fails while training.

    Example:
        >>> trainer = UniEditGRPOTrainer("me/bagel-uniedit", ["small_world"], train_dataset=edits)
        >>> trainer.train()
    """

    _name = "Uni-Edit GRPO"
    _tag_names = [*UniEditTrainer._tag_names, "grpo", "reinforcement-learning"]

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | str | Sequence[RewardFunc | str],
        args: UniEditGRPOConfig | None = None,
        train_dataset: Dataset | Sequence[TrainingPart] | None = None,
        eval_dataset: Dataset | TrainingPart | dict[str, Dataset | TrainingPart] | None = None,
        processing_class=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config=None,
        peft_config: PeftConfig | None = None,
        **unsupported,
    ):
        name = model if isinstance(model, str) else model.config.name_or_path
        args = args or UniEditGRPOConfig(output_dir=f"{Path(name).name or 'model'}-GRPO")
        if isinstance(train_dataset, IterableDataset):
            raise ValueError(
                "A stream has no length, but prompts are drawn in a new order in every epoch: load the data without "
                "streaming=True."
            )
        self.rewards = RewardCalls(reward_funcs, args.reward_weights, args.reward_timeout)
        own = [f"{kind}_{name}" for name in self.rewards.names for kind in ("sum", "squares", "count")]
        self.summed_names = (*SUMMED, *SUMS, *own)
        super().__init__(
            model, args, train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config,
            peft_config, **unsupported,
        )  # fmt: skip
        inner = inner_model(self.model)
        objective = objective_of(inner, args, any(_draws(part) for part in self.parts))
        self._check_trained_dtype()
        flows = objective == "grpo" and "nft" in inner.image_objectives
        self._paper = PAPERS["flow" if flows else objective or "grpo"]
        self.rollouts = Rollouts(inner, self.reader.processor, args, objective)  # of the sizes that are trained
        self.learning = LearningBatches(self, objective, self._hyperparameters(inner))
        self.reference = None
        if args.beta and not isinstance(self.model, PeftModel):
            if self.is_fsdp_enabled:
                raise ValueError(
                    f"beta is {args.beta}, for which every device would keep a whole copy of the first model beside "
                    "its shard: set beta=0, or give peft_config, whose base is the reference."
                )
            self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._batches: list[list[dict[str, Any]]] = []
        self._newest: tuple[list[Completion], torch.Tensor] | None = None
        self.add_callback(WholeGenerationsCallback(args.steps_of_a_generation))

    def _plan_data(self, args) -> PromptPlan | None:
        return plan_prompts(self.parts, args) if self.parts else None

    def get_train_dataloader(self) -> range:
        """Nothing is loaded: the batches of a step are drawn when it begins."""
        return range(len(self.data.plan))

    def _hyperparameters(self, model) -> Hyperparameters:
        args = self.args
        return Hyperparameters(
            beta=args.beta,
            epsilon_text=0.2 if args.epsilon is None else args.epsilon,
            epsilon_image=model.policy_epsilon if args.epsilon is None else args.epsilon,
            temperature=args.temperature,
            nft_strength=args.nft_strength,
            advantage_clip=args.advantage_clip,
        )

    def _check_trained_dtype(self) -> None:
        """Updates of RL are so small that 16-bit weights round them away; adapters are kept in fp32."""
        trained = [each for each in self.model.parameters() if each.requires_grad and each.is_floating_point()]
        short = [each for each in trained if each.dtype in (torch.bfloat16, torch.float16)]
        if short and isinstance(self.model, PeftModel):
            for each in short:
                each.data = each.data.float()
        elif short and self.args.optim != FLASH_ADAMW:
            raise ValueError(
                f"The trained weights are {str(short[0].dtype).removeprefix('torch.')}, which rounds the small "
                "updates of reinforcement learning away: load them with dtype='float32', give peft_config, or use "
                f"optim='{FLASH_ADAMW}'."
            )

    # --- generation batches -------------------------------------------------------------------------------------

    def _next_batches(self, epoch_iterator, num_batches: int) -> list[dict[str, Any]]:
        """The batches of the next step, for which a generation batch is drawn first if the last one is used up."""
        step = self.state.global_step
        place = step % self.args.steps_of_a_generation
        if place == 0:
            self._batches = self._make_generation(step // self.args.steps_of_a_generation)
        batches, self._batches[place] = self._batches[place], []
        return batches

    def _make_generation(self, number: int) -> list[list[dict[str, Any]]]:
        """Per step of a generation batch its batches."""
        begun = time.perf_counter()
        prompts = [self._read(row) for row in self._own_rows(number)]
        with self.whole_weights(), self.accelerator.autocast():
            completions = self.rollouts.complete(prompts, number)
        self.sums.add(rollout_seconds=time.perf_counter() - begun)
        rewards = self.rewards([each.prompt.id for each in completions], self._columns(completions))
        totals = self.rewards.total(rewards)
        self._sum_up(rewards, totals)
        self._newest = (completions, rewards)
        advantages = self._advantages(totals)
        return self.learning.batches(completions, advantages.tolist(), number)

    def _own_rows(self, number: int) -> list:
        """The rows of a generation batch that this process draws for: of every step the same share."""
        return self.data.plan.batches[number][self.args.process_index :: self.args.world_size]

    def _read(self, row):
        processor = self.reader.processor
        default = processor.default_size(inner_model(self.model).config)
        return read_prompt(self.parts[row.part], row.row, processor, default)

    def _columns(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The keyword arguments of reward functions."""
        names = dict.fromkeys(name for each in completions for name in each.prompt.columns)
        columns: dict[str, Any] = {name: [each.prompt.columns.get(name) for each in completions] for name in names}
        return columns | {
            "images": [each.image for each in completions],
            "texts": [each.text for each in completions],
            "sources": [each.prompt.source for each in completions],
            "instructions": [each.prompt.instruction for each in completions],
            "trainer_state": self.state,
        }

    def _advantages(self, totals: torch.Tensor) -> torch.Tensor:
        """Advantages of the completions of this process, which scale_rewards='batch' compares with all others."""
        args = self.args
        if args.world_size == 1 or args.scale_rewards != "batch":
            return advantages_of(totals, args.num_generations, args.scale_rewards)
        everyone = self.accelerator.gather(totals.to(args.device)).cpu()
        return advantages_of(everyone, args.num_generations, "batch").chunk(args.world_size)[args.process_index]

    # --- logs ---------------------------------------------------------------------------------------------------

    def _sum_up(self, rewards: torch.Tensor, totals: torch.Tensor) -> None:
        """Adds what is logged of the rewards (completions, functions) and their weighted sums."""
        groups = totals.view(-1, self.args.num_generations)
        known, same = totals[~totals.isnan()], alike(groups)
        spread = torch.stack([group[~group.isnan()].std() if (~group.isnan()).sum() > 1 else group.new_zeros(())
                              for group in groups])  # fmt: skip
        self.sums.add(reward_sum=known.sum(), reward_count=len(known), group_std_sum=spread.sum(), groups=len(groups))
        self.sums.add(groups_alike=same.sum())
        for name, own in zip(self.rewards.names, rewards.T):
            own = own[~own.isnan()]
            sums = {"sum": own.sum(), "squares": own.square().sum(), "count": len(own)}
            self.sums.add(**{f"{kind}_{name}": value for kind, value in sums.items()})

    def _more_logs(self, sums: dict[str, float]) -> dict[str, float]:
        """Rewards under TRL's names, as far as there was a generation batch since the last log."""
        logs = {}
        if sums["groups"]:
            logs |= {
                "reward": sums["reward_sum"] / max(sums["reward_count"], 1),
                "reward_std": sums["group_std_sum"] / sums["groups"],
                "frac_reward_zero_std": sums["groups_alike"] / sums["groups"],
                "rollout_seconds": round(sums["rollout_seconds"] / self.args.world_size, 3),
            }
        for name in self.rewards.names:
            if count := sums[f"count_{name}"]:
                mean = sums[f"sum_{name}"] / count
                logs[f"rewards/{name}/mean"] = mean
                logs[f"rewards/{name}/std"] = max(0.0, sums[f"squares_{name}"] / count - mean**2) ** 0.5
        for name, total, count in (
            ("ratio", "ratio_sum", "ratio_count"),
            ("clip_ratio", "clipped_sum", "ratio_count"),
            ("kl", "kl_sum", "kl_count"),
            ("on_policy_ratio_error", "ratio_error_sum", "ratio_error_count"),
        ):
            if sums[count]:
                logs[name] = sums[total] / sums[count]
        return logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the rewards were, and with `log_completions` saves a grid of the newest images."""
        super().log(logs, start_time)
        if "loss" in logs and self.args.log_completions and self._newest is not None and self.is_world_process_zero():
            save_completions(*self._newest, self.rewards.names, self.args, self.state.global_step)

    def _card_settings(self) -> dict[str, Any]:
        names = ("num_generations", "generation_batch_size", "steps_per_generation", "num_iterations", "beta")
        rewards = ", ".join(
            name if weight == 1 else f"{weight:g} x {name}"
            for name, weight in zip(self.rewards.names, self.rewards.weights)
        )
        objective = {"objective": self.learning.objective or "grpo", "rewards": rewards}
        return objective | {name: getattr(self.args, name) for name in names} | self.rollouts.settings


class WholeGenerationsCallback(TrainerCallback):
    """Saves and stops at the end of a generation batch only, so that a run resumes where a new one is drawn.

    Args:
        num_steps: Optimizer steps of a generation batch.
    """

    def __init__(self, num_steps: int):
        self.num_steps = num_steps
        self.waiting = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.num_steps and state.global_step < state.max_steps:
            self.waiting |= control.should_save
            control.should_save = control.should_training_stop = False
        elif self.waiting:
            control.should_save, self.waiting = True, False


def objective_of(model, args: UniEditGRPOConfig, draws: bool) -> str | None:
    """How drawings are learned; `None` if there are none.

    Raises:
        ValueError: The model cannot be trained so.
    """
    if not draws:
        if args.objective == "nft":
            raise ValueError(
                f"objective='nft' learns from images, which the recipe {args.recipe!r} does not draw: leave it out, "
                "or use recipe='edit' or 'generate'."
            )
        return None
    known = model.image_objectives
    if not known:
        raise ValueError(f"{type(model).__name__} has no image_objectives: docs/add_a_model.md says what is needed.")
    if args.objective is not None and args.objective not in known:
        raise ValueError(
            f"objective is {args.objective!r}, but {type(model).__name__} learns its drawings with "
            f"{' or '.join(map(repr, known))}: use that, or leave it out."
        )
    return args.objective or known[0]


def _draws(part: TrainingPart) -> bool:
    """Whether the recipe of a part ends in an image."""
    return getattr(part.recipe, "name", "edit") != "answer"
