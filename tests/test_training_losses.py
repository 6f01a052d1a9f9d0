"""What a step learns from: exact means over packs, no sample seeing another, nothing trained but what should be, and
the same losses as a plain loop."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from peft import LoraConfig
from tiny_models import FAMILIES, picture
from training_data import conversation_row, conversations, curve, edit_row, edit_rows, settings, trainer

from uniedit_hf.losses import Losses
from uniedit_hf.recipes import (
    Conditioning,
    answer_sample,
    draw_dropout,
    edit_sample,
    generate_sample,
    interleaved_sample,
)
from uniedit_hf.segments import ImageSegment, Sample, TextSegment
from uniedit_hf.training import TrainingPart


MODELS = {name: family.model() for name, family in FAMILIES.items()}
PROCESSORS = {name: family.processor() for name, family in FAMILIES.items()}
ONE = {name: processor.make_conditioning() for name, processor in PROCESSORS.items()}
BOTH = {
    name: Conditioning(
        processor.source_views, text_dropout=0.3, understanding_dropout=0.3, drawing_dropout=0.3, full_dropout=0.1
    )
    for name, processor in PROCESSORS.items()
}
SAMPLES = {
    "edit": lambda number, family: edit_sample(edit_row(number), ONE[family]),
    "edit with both views": lambda number, family: edit_sample(edit_row(number), BOTH[family]),
    "edit after thinking": lambda number, family: edit_sample(
        edit_row(number, thinking="make it red"), BOTH[family], True
    ),
    "answer": lambda number, family: answer_sample(edit_row(number), ONE[family]),
    "generate": lambda number, family: generate_sample(edit_row(number), ONE[family]),
    "conversation": lambda number, family: interleaved_sample(conversation_row(number), BOTH[family]),
}


def pack_of(family, samples, epochs=0) -> dict:
    """What the model's forward takes."""
    features = PROCESSORS[family].pack(samples, seed=1, epoch=epochs, posterior="sample")
    return {name: value for name, value in features.items() if not name.startswith("num_")}


def losses_of(family, samples, epochs=0) -> Losses:
    """The losses of a pack."""
    with torch.no_grad():
        return MODELS[family](**pack_of(family, samples, epochs))


@st.composite
def mixes(draw, family):
    """Two or more samples of drawn recipes, with their dropout drawn in drawn epochs."""
    drawn = draw(st.lists(st.tuples(st.sampled_from(sorted(SAMPLES)), st.integers(0, 3)), min_size=2, max_size=6))
    return [
        (draw_dropout(SAMPLES[kind](number, family), seed=1, epoch=epoch), epoch)
        for number, (kind, epoch) in enumerate(drawn)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_over_a_pack_is_the_mean_over_its_samples(family):
    seen = Counter()

    @hypothesis_settings(max_examples=30)
    @given(mixes(family))
    def check(mix):
        samples, epochs = zip(*mix)
        packed = losses_of(family, samples, list(epochs))
        alone = [losses_of(family, [sample], epoch) for sample, epoch in mix]
        for part in ("text", "image"):
            count = sum(int(getattr(each, f"{part}_count")) for each in alone)
            total = sum(float(getattr(each, f"{part}_sum")) for each in alone)
            assert int(getattr(packed, f"{part}_count")) == count
            assert float(getattr(packed, part)) == pytest.approx(total / max(count, 1), rel=1e-5)
        seen["both losses"] += bool(packed.text_count and packed.image_count)
        seen["several images"] += sum(isinstance(s, ImageSegment) for each in samples for s in each.segments) > 2
        seen["dropped"] += any(segment.dropped for sample in samples for segment in sample.segments)
        seen["several samples"] += len(samples) > 2

    check()
    assert min(seen[name] for name in ("both losses", "several images", "dropped", "several samples")) >= 5, seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("victim", range(len(SAMPLES)))
def test_no_token_sees_another_sample(victim, family):
    samples = [SAMPLES[kind](number, family) for number, kind in enumerate(sorted(SAMPLES))]
    changed = [sample if number == victim else _changed(sample) for number, sample in enumerate(samples)]
    images = [float(losses_of(family, each).image) for each in (samples, changed)]
    assert images[0] != pytest.approx(images[1], rel=1e-3)
    before, after = gradients_of(family, samples, victim), gradients_of(family, changed, victim)
    assert before.keys() == after.keys() and all(gradient.isfinite().all() for gradient in before.values())
    assert sum(bool(gradient.any()) for gradient in before.values()) > 20
    for name, gradient in before.items():
        assert (gradient - after[name]).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1), name


def _changed(sample: Sample) -> Sample:
    """Another text and another image everywhere, of other sizes."""
    return sample.with_segments(
        [
            TextSegment("blue two circle", loss=segment.loss)
            if isinstance(segment, TextSegment)
            else ImageSegment(picture(64, 48, seed=77), segment.view, loss=segment.loss)
            for segment in sample.segments
        ]
    )


def gradients_of(family, samples, victim: int) -> dict[str, torch.Tensor]:
    """The gradients of what one sample of a pack learns: the others carry no loss."""
    quiet = [sample if number == victim else _without_loss(sample) for number, sample in enumerate(samples)]
    model = MODELS[family]
    model.zero_grad()
    losses = model(**pack_of(family, quiet))
    (losses.text_sum + losses.image_sum).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _without_loss(sample: Sample) -> Sample:
    return sample.with_segments([replace(segment, loss=False) for segment in sample.segments])


# --- what is trained ------------------------------------------------------------------------------------------------

TRAINED_BY_THE_PAPER = (
    "model.language_model.embed_tokens.",
    "model.language_model.layers.",
    "model.language_model.norm_moe_gen.",
    "model.connector.",
    "model.time_embedder.",
    "model.vae2llm.",
    "model.llm2vae.",
)
# In the last layer, what only makes understanding tokens: no image loss reaches it.
LAST = "model.language_model.layers.2."
OWN_QUERIES = ("self_attn.q_proj.", "self_attn.q_norm.", "self_attn.o_proj.", "post_attention_layernorm.", "mlp.")
UNREACHED = tuple(LAST + name for name in OWN_QUERIES)


def moved(before, model) -> dict[str, bool]:
    """Which parameters differ from what they were, by a bit or more."""
    return {name: not torch.equal(before[name], weight) for name, weight in model.named_parameters()}


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_the_default_recipe_trains_the_paper_s_list_and_nothing_else(tmp_path):
    run = trainer(tmp_path, edit_rows(), max_steps=3)
    before = weights_of(run.model)
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    expected = {name for name in before if name.startswith(TRAINED_BY_THE_PAPER) and not name.startswith(UNREACHED)}
    assert trained == expected and len(trained) > 50
    run.train()
    assert {name for name, has in moved(before, run.model).items() if has} == expected


DRAWS = ("layers.0.mlp_moe_gen.up_proj", "vae2llm", "llm2vae", "time_embedder.mlp.0")
READS = ("language_model.embed_tokens", "layers.0.self_attn.q_proj", "connector.fc1", "layers.1.mlp.up_proj")


PARTS = {
    "bagel": {
        "draws": DRAWS,
        "reads": READS,
        "encoder": "vit_model",
        "fixed": ("vae", "pos_embed"),
    },
    "janus": {
        "draws": ("generation_head", "generation_aligner", "generation_embeddings"),
        "reads": ("language_model", "aligner"),
        "encoder": "vision_model",
        "fixed": ("vqmodel",),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"freeze_und": True}, "reads"),
        ({"freeze_gen": True}, "draws"),
        ({"freeze_und": True, "freeze_vit": False}, "reads"),
        ({"recipe": "answer", "text_loss_weight": 1.0}, "draws"),
        ({"recipe": "interleaved", "text_loss_weight": 1.0}, None),
    ],
)
def test_frozen_parts_do_not_move_and_the_others_do(tmp_path, changes, stays, family):
    rows = conversations() if changes.get("recipe") == "interleaved" else edit_rows()
    parts = PARTS[family]
    run = trainer(tmp_path, rows, max_steps=3, family=family, **changes)
    before = weights_of(run.model)
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    run.train()
    assert {name for name, has in moved(before, run.model).items() if has} == trained
    decoder = {name for name in trained if parts["encoder"] not in name}
    still = (*(parts[stays] if stays else ()), *parts["fixed"])
    assert not [name for name in decoder for part in still if f".{part}." in f".{name}."]
    assert (decoder != trained) == (changes.get("freeze_vit") is False)
    assert ("lm_head.weight" in trained) == ("text_loss_weight" in changes)


def test_what_leads_in_is_in_the_graph_of_a_step_without_images(tmp_path):
    """Every trained parameter is in the graph of every step, so that devices with other packs agree."""
    args = {"text_loss_weight": 1.0, "max_steps": 2, "warmup_steps": 0}
    run = trainer(tmp_path, [TrainingPart(edit_rows(), settings(tmp_path, **args).make_recipe("answer"))], **args)
    before = weights_of(run.model)
    run.train()
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    state = run.optimizer.state
    assert all(len(state[weight]) for weight in run.model.parameters() if weight.requires_grad)
    assert "model.vae2llm.weight" in trained and not moved(before, run.model)["model.vae2llm.weight"]


# --- against a plain loop -------------------------------------------------------------------------------------------


def plain_loop(model, run, family) -> list[float]:
    """The losses of the trainer's packs by AdamW, written out."""
    args, rows = run.args, [run.parts[0].row(number) for number in range(len(run.parts[0].dataset))]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.0)
    packs, losses = run.data.plan.packs, []
    for step in range(args.max_steps):
        optimizer.zero_grad()
        parts = []
        for pack in packs[4 * step : 4 * step + 4]:
            drawn = (edit_sample(rows[row.row], ONE[family]) for row in pack)
            samples = [draw_dropout(sample, args.seed, row.epoch) for sample, row in zip(drawn, pack)]
            features = PROCESSORS[family].pack(samples, args.seed, [row.epoch for row in pack], "sample")
            parts.append(model(**{name: value for name, value in features.items() if not name.startswith("num_")}))
        loss = sum(part.image_sum for part in parts) / sum(part.image_count for part in parts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = args.learning_rate * min(1, step / 2)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
def test_the_trainer_adds_no_surprise(tmp_path, adapters, family):
    lora = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False) if adapters else None
    args = {"max_steps": 5, "warmup_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = trainer(tmp_path, edit_rows(40), peft_config=lora, family=family, **args)
    loop_model = copy.deepcopy(run.model).train()
    run.train()
    expected = plain_loop(loop_model, run, family)
    assert [log["loss"] for log in curve(run.state.log_history)] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    for (name, there), here in zip(loop_model.named_parameters(), run.model.parameters()):
        assert (there - here).abs().max() <= 1e-5, name


def test_adapters_go_to_the_linear_layers_of_both_experts(tmp_path):
    run = trainer(tmp_path, edit_rows(), peft_config=LoraConfig(r=2), max_steps=3)
    before = weights_of(run.model)
    adapted = {name.split(".lora_")[0] for name in before if ".lora_" in name}
    kinds = Counter(name.split(".")[-1] for name in adapted)
    assert all(".language_model.layers." in name for name in adapted)
    # three layers; the last one has neither queries nor feed-forward of the understanding expert
    assert kinds["k_proj"] == kinds["v_proj"] == 3 and kinds["q_proj"] == kinds["o_proj"] == 2
    assert kinds["q_proj_moe_gen"] == 3 and kinds["down_proj"] == 3 + 2
    run.train()
    for name, has_moved in moved(before, run.model).items():
        assert has_moved == (".lora_" in name), name
