"""Reinforcement learning of tiny models: the same completions however they are made, ratios of 1 before the first
update, exact gradients, resuming, and what is refused."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_rewards import redness
from peft import LoraConfig
from tiny_models import FAMILIES
from training_data import curve, edit_row, edit_rows

from uniedit_hf.models.loading import inner_model
from uniedit_hf.training import TrainingPart
from uniedit_hf.training.grpo import UniEditGRPOConfig, UniEditGRPOTrainer
from uniedit_hf.training.grpo.objectives import outcome_of, rows_of


def brevity(texts, **columns):
    """Short texts are better; `None` for images."""
    return [None if each is None else 1.0 / (1 + len(each.split())) for each in texts]


SMALL = {
    "max_steps": 3, "learning_rate": 1e-3, "warmup_steps": 0, "num_generations": 2, "generation_batch_size": 4,
    "max_completion_length": 4, "max_tokens_per_pack": 2000, "logging_steps": 1, "save_strategy": "no",
    "use_cpu": True, "disable_tqdm": True, "report_to": "none", "activation_checkpointing": False,
}  # fmt: skip
# The ways of drawing and writing, with the settings of each.
WAYS = {
    "bagel nft": ("bagel", {"generation_kwargs": {"num_timesteps": 3}}),
    "bagel cps": (
        "bagel",
        {"objective": "grpo", "generation_kwargs": {"num_timesteps": 4, "sde_window": [0, 2]}},
    ),
    "bagel flow": (
        "bagel",
        {"objective": "grpo", "generation_kwargs": {"num_timesteps": 4, "sde_window": [0, 2], "sampler": "flow_sde"}},
    ),
    "bagel text": ("bagel", {"recipe": "answer"}),
    "janus tokens": ("janus", {}),
    "janus text": ("janus", {"recipe": "answer"}),
}
POLICIES = [way for way in WAYS if way != "bagel nft"]


def trainer(folder: Path, way: str, rows=None, rewards=None, peft_config=None, **changes) -> UniEditGRPOTrainer:
    family, settings = WAYS[way]
    args = UniEditGRPOConfig(output_dir=str(folder), **SMALL | settings | changes)
    return UniEditGRPOTrainer(
        FAMILIES[family].model(),
        rewards or (brevity if args.recipe == "answer" else redness),
        args,
        train_dataset=edit_rows(6) if rows is None else rows,
        processing_class=FAMILIES[family].processor(),
        peft_config=peft_config,
    )


def first_generation(this: UniEditGRPOTrainer):
    """The completions and the batches of the first generation batch."""
    batches = this._make_generation(0)
    return this._newest[0], batches


# ---- completions


@pytest.mark.parametrize("way", WAYS)
def test_completions_do_not_depend_on_what_they_are_made_beside(tmp_path, way):
    together, _ = first_generation(trainer(tmp_path, way))
    alone, _ = first_generation(trainer(tmp_path, way, rollout_batch_size=1))
    assert [each.id for each in together] == [each.id for each in alone]
    for one, other in zip(together, alone):
        assert one.text == other.text and one.token_ids == other.token_ids
        if one.image is not None:
            assert one.image.size == other.image.size
            assert np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image)).max() <= 1
    shown = [each.token_ids or each.image.tobytes() for each in together]
    assert shown[0] != shown[1], "generations of one prompt differ"


def test_generations_of_a_prompt_share_one_encoded_context(tmp_path, monkeypatch):
    this = trainer(tmp_path, "bagel nft", num_generations=4, generation_batch_size=8)
    encoded, encode = [], this.model._encode_contexts
    monkeypatch.setattr(this.model, "_encode_contexts", lambda *args, **kw: encoded.append(kw) or encode(*args, **kw))
    first_generation(this)
    rows = encoded[0]["attention_mask"].shape[0]
    assert rows <= 2 * 3, "two prompts, each with its two guidance branches, for eight drawings"


# ---- before the first update


@pytest.mark.parametrize("way", POLICIES)
def test_ratios_are_1_before_the_first_update(tmp_path, way):
    this = trainer(tmp_path, way, scale_rewards="none", max_steps=1)
    this.model.double()
    completions, ((batch,),) = first_generation(this)
    learned = batch["criterion"].learned
    assert learned
    found = predicted_outcomes(this, batch)
    for each, now in zip(learned, found):
        if each.drawn is not None:
            assert len(now) == len(each.drawn)
            apart = now.double() - each.drawn.double()
            assert apart.mean().exp().sub(1).abs() <= 1e-6, each.id
            assert apart.exp().sub(1).abs().max() <= 5e-6, "norms work in fp32, which single tokens show"
    if way.endswith("text"):
        check_text_probabilities(this, completions, learned, found)


def predicted_outcomes(this, batch):
    """What the training forward says about the samples of a batch."""
    kept = []

    def criterion(predictions):
        kept.extend(
            outcome_of(*each, inner_model(this.model), 1.0)
            for each in rows_of(batch["criterion"].learned, predictions)
        )
        return batch["criterion"](predictions)

    inputs = {name: value for name, value in batch.items() if name != "pack" and not name.startswith("num_")}
    with torch.no_grad():
        this.model.eval()(**inputs | {"criterion": criterion})
    return kept


def check_text_probabilities(this, completions, learned, found) -> None:
    """The probabilities of written tokens are those of a forward over the context and the text, step by step."""
    by_id = {f"{each.id}/0": each for each in completions} | {each.id: each for each in completions}
    for each, now in zip(learned, found):
        completion = by_id[each.id]
        inputs = dict(this.processing_class([completion.prompt.condition]))
        length = inputs["input_ids"].shape[1]
        written = this.model.generate(
            **inputs, max_new_tokens=len(now), do_sample=False, output_logits=True, return_dict_in_generate=True,
            logits_processor=[Forced(length, completion.token_ids, this.model.generation_config.eos_token_id)],
        )  # fmt: skip
        plain = [logits[0].float().log_softmax(-1)[token].item()
                 for logits, token in zip(written.logits, written.sequences[0, length:].tolist())]  # fmt: skip
        assert now.tolist() == pytest.approx(plain, abs=1e-4)


class Forced:
    """Writes what was written before."""

    def __init__(self, length, ids, end):
        self.length, self.ids = length, [*ids, end]

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[input_ids.shape[1] - self.length]] = 0
        return forced


@pytest.mark.parametrize("way", ["bagel cps", "janus tokens"])
def test_a_rollout_that_training_does_not_repeat_is_found(tmp_path, way):
    this = trainer(tmp_path, way)
    (batch,), *_ = first_generation(this)[1]
    for each in batch["criterion"].learned:
        each.drawn = each.drawn - 0.1
    with pytest.raises(ValueError, match="in training and in drawing differ by the factor 1.1.*which must be 1"):
        predicted_outcomes(this, batch)


# ---- gradients


@pytest.mark.parametrize("way", WAYS)
def test_the_first_step_is_the_policy_gradient(tmp_path, way):
    """The gradient of the loss is that of -advantage x log-probability, and for nft of the weighted regression."""
    this = trainer(tmp_path, way, scale_rewards="none")
    (batch,), *_ = first_generation(this)[1]
    learned = batch["criterion"].learned
    inputs = {name: value for name, value in batch.items() if name != "pack" and not name.startswith("num_")}
    trained = [each for each in this.model.parameters() if each.requires_grad]

    def plain(predictions):
        total = predictions.image.sum() * 0 + predictions.text_logits.sum() * 0
        for each, rows in rows_of(learned, predictions):
            if each.objective == "nft":
                apart = rows.times[:, None] * (rows.predicted - rows.targets)
                error = apart.square().mean() / apart.abs().mean().detach()
                # v+ and v- are equal, and move in opposite directions: the weights are r - (1 - r)
                total = total + each.advantage * error
            else:
                total = total - each.advantage * outcome_of(each, rows, this.model, 1.0).mean()
        return total

    losses = this.model(**inputs)
    found = torch.autograd.grad(losses.image_sum + losses.text_sum, trained, allow_unused=True)
    wanted = torch.autograd.grad(this.model(**inputs | {"criterion": plain}), trained, allow_unused=True)
    assert any(each is not None and each.abs().max() > 1e-6 for each in found)
    for one, other in zip(found, wanted):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item())


# ---- runs


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_and_logs(tmp_path, way):
    this = trainer(
        tmp_path, way, log_completions=True, steps_per_generation=2, num_iterations=2, max_steps=4, beta=0.1
    )
    before = {name: weight.clone() for name, weight in this.model.named_parameters()}
    this.train()
    logs = curve(this.state.log_history)
    name = "brevity" if way.endswith("text") else "redness"
    assert {"reward", "reward_std", "frac_reward_zero_std", f"rewards/{name}/mean", f"rewards/{name}/std"} <= logs[
        0
    ].keys()
    assert "reward" not in logs[1], "a generation batch serves several steps"
    assert all("kl" in log for log in logs if log["loss"]) and (tmp_path / "completions" / "step-1.png").is_file()
    assert any(not torch.equal(weight, before[each]) for each, weight in this.model.named_parameters())
    this.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "grpo" in card and f"| rewards | {name} |" in card and "| num_generations | 2 |" in card


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
def test_rewards_rise(tmp_path, way):
    shared = {"max_steps": 40, "num_generations": 8, "generation_batch_size": 32, "logging_steps": 10}
    this = trainer(tmp_path, way, **shared)
    this.train()
    rewards = [log["reward"] for log in this.state.log_history if "reward" in log]
    assert rewards[-1] > rewards[0]


def test_rewards_that_are_all_alike_are_counted_and_skipped(tmp_path):
    this = trainer(tmp_path, "bagel nft", rewards=lambda images, **_: [1.0] * len(images), max_steps=1)
    before = {name: weight.clone() for name, weight in this.model.named_parameters()}
    this.train()
    (log,) = curve(this.state.log_history)
    assert log["frac_reward_zero_std"] == 1 and log["loss"] == 0 and log["reward"] == 1
    assert all(torch.equal(weight, before[name]) for name, weight in this.model.named_parameters())


def test_a_mix_of_edits_and_answers(tmp_path):
    args = UniEditGRPOConfig(output_dir=str(tmp_path), **SMALL | {"text_loss_weight": 1.0, "max_steps": 2})
    parts = [TrainingPart(edit_rows(4), args.make_recipe(each)) for each in ("edit", "answer")]
    this = trainer(tmp_path, "bagel nft", rows=parts, rewards=[redness, brevity], text_loss_weight=1.0,
                   num_generations=2, generation_batch_size=8)  # fmt: skip
    this.train()
    logs = curve(this.state.log_history)
    assert all("rewards/redness/mean" in log and "rewards/brevity/mean" in log for log in logs)
    assert any("text_loss" in log for log in logs) and any("image_loss" in log for log in logs)


def test_rows_need_no_targets(tmp_path):
    rows = edit_rows(6).remove_columns(["target_image", "target_size", "thinking", "answer"])
    seen = []

    def watching(images, sources, instructions, trainer_state, **columns):
        seen.append((instructions, [each.size for each in sources], sorted(columns), trainer_state.global_step))
        return redness(images)

    trainer(tmp_path, "bagel nft", rows=rows, rewards=watching, max_steps=1).train()
    instructions, sizes, columns, step = seen[0]
    assert len(instructions) == len(sizes) == 4 and instructions[0] == instructions[1] and step == 0
    assert columns == ["id", "instruction", "question", "source_image", "source_size", "texts"]


def test_adapters_are_trained_in_fp32(tmp_path):
    model = FAMILIES["bagel"].model().to(torch.bfloat16)
    args = UniEditGRPOConfig(output_dir=str(tmp_path), **SMALL | WAYS["bagel nft"][1])
    options = {"train_dataset": edit_rows(6), "processing_class": FAMILIES["bagel"].processor()}
    lora = LoraConfig(r=2, init_lora_weights=False, lora_dropout=0.0)
    this = UniEditGRPOTrainer(model, redness, args, peft_config=lora, **options)
    assert {each.dtype for each in this.model.parameters() if each.requires_grad} == {torch.float32}
    with pytest.raises(ValueError, match="trained weights are bfloat16, which rounds the small updates"):
        UniEditGRPOTrainer(FAMILIES["bagel"].model().to(torch.bfloat16), redness, args, **options)


# ---- resuming


@pytest.mark.parametrize("way", ["bagel nft", "bagel cps", "janus tokens", "bagel text"])
def test_resuming_changes_nothing(tmp_path, way):
    settings = {"max_steps": 8, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path / "whole", way, **settings)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    again = trainer(tmp_path / "again", way, **settings)
    again.train(resume_from_checkpoint=True)
    ours, theirs = (
        [
            {name: value for name, value in log.items() if name != "rollout_seconds"}
            for log in curve(run.state.log_history)
        ]
        for run in (again, whole)
    )
    assert ours == theirs
    for (name, weight), expected in zip(again.model.named_parameters(), whole.model.parameters()):
        assert torch.equal(weight, expected), name


def test_a_run_is_saved_at_the_end_of_a_generation_batch(tmp_path):
    this = trainer(tmp_path, "bagel nft", max_steps=4, steps_per_generation=2, save_strategy="steps", save_steps=2)
    this.stop_signal.on_train_begin = lambda *args, **kwargs: None
    this.stop_signal.received = signal.SIGTERM  # before the first step
    this.train()
    assert this.state.global_step == 2 and (tmp_path / "checkpoint-2" / "complete.json").is_file()


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1, but completions are compared with others of their prompt"),
        ({"generation_batch_size": 5}, "generation_batch_size is 5, which is not a multiple of num_generations=2"),
        ({"steps_per_generation": 3}, "which 3 step.s. on 1 process.es. cannot share out evenly"),
        ({"recipe": "interleaved"}, "recipe is 'interleaved': use 'edit', 'generate' or 'answer'"),
        ({"text_dropout": 0.1}, "text_dropout is 0.1, but rewards are about whole prompts"),
        ({"bad_rows": "quarantine"}, "bad_rows='quarantine' leaves out rows while packs are planned"),
        ({"temperature": 0.0}, "temperature is 0.0: use a number above 0"),
        ({"scale_rewards": "all"}, "scale_rewards is 'all': use 'group', 'batch' or 'none'"),
        (
            {"steps_per_generation": 2, "save_strategy": "steps", "save_steps": 3},
            "save_steps is 3, but a run resumes at generation batches, every 2 steps",
        ),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        UniEditGRPOConfig(output_dir=str(tmp_path), **SMALL | changes)


@pytest.mark.parametrize(
    ("way", "changes", "message"),
    [
        ("bagel text", {"objective": "nft"}, "objective='nft' learns from images, which the recipe 'answer' does not"),
        ("janus tokens", {"objective": "nft"}, "learns its drawings with 'grpo': use that, or leave it out"),
        ("bagel cps", {"generation_kwargs": {"sampler": "euler"}}, "sampler is 'euler', whose steps have no prob"),
        (
            "bagel cps",
            {"generation_kwargs": {"text_guidance_scale": 2.0}},
            "Guidance above 1 draws from another distribution",
        ),
        ("bagel cps", {"timestep_shift": 3.0}, "timestep_shift is 3.0, but objective='grpo' trains at the times"),
        ("bagel nft", {"generation_kwargs": {"steps": 3}}, "There is no setting steps"),
        ("bagel nft", {"generation_batch_size": 40}, "The data has 6 rows, but a generation batch of 40 completions"),
        ("bagel nft", {"max_tokens_per_pack": 30}, "raise gradient_accumulation_steps or max_tokens_per_pack"),
    ],
)
def test_runs_that_make_no_sense(tmp_path, way, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, way, **changes).train()


def test_data_that_cannot_be_drawn_for(tmp_path):
    with pytest.raises(ValueError, match="The data has no column 'id', by which random draws are told apart"):
        trainer(tmp_path, "bagel nft", rows=edit_rows(6).remove_columns("id"))
    with pytest.raises(ValueError, match="A stream has no length, but prompts are drawn in a new order"):
        trainer(tmp_path, "bagel nft", rows=edit_rows(6).to_iterable_dataset())
    rows = edit_rows(5).to_list() + [edit_row(5, source_image={"bytes": b"no image", "path": None})]
    broken = type(edit_rows(1)).from_list(rows, edit_rows(1).features)
    with pytest.raises(ValueError, match="row-5"):
        trainer(tmp_path, "bagel nft", rows=broken, max_steps=3).train()
