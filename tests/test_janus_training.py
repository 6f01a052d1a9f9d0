"""What is Janus-Pro's own in training: stored image tokens, its defaults, its adapters, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Image, load_dataset
from peft import LoraConfig, PeftModel
from tiny_models import FAMILIES, picture, tiny_janus, tiny_janus_processor
from training_data import curve, dataset_of, edit_row, edit_rows, settings, trainer

from uniedit_hf.cli import main
from uniedit_hf.models.janus import JanusForConditionalGeneration
from uniedit_hf.models.janus.image_tokens import store_image_tokens
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.recipes import edit_sample
from uniedit_hf.training import TrainingPart


BAGEL = Path(__file__).parents[1] / "assets" / "small_bagel"


def test_the_default_recipe_trains_all_but_the_encoders(tmp_path):
    run = trainer(tmp_path, edit_rows(), family="janus", max_steps=3, ema_decay=0.9)
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    fixed = ("model.vision_model.", "model.vqmodel.", "lm_head.")
    assert trained == {name for name, _ in run.model.named_parameters() if not name.startswith(fixed)}
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    run.train()
    assert {name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])} == trained
    run.save_model()
    averaged = JanusForConditionalGeneration.from_pretrained(tmp_path, subfolder="ema")
    assert torch.equal(averaged.lm_head.weight, run.model.lm_head.weight)
    assert "timestep_shift" not in json.loads((tmp_path / "config.json").read_text())


def test_conditioning_is_the_model_s_own_unless_asked(tmp_path):
    own = tiny_janus_processor().conditioning
    run = trainer(tmp_path, edit_rows(), family="janus")
    assert run.args.source_views == ["understanding", "drawing"] and run.args.drawing_dropout == own.drawing_dropout
    assert run.parts[0].recipe.conditioning == own
    asked = trainer(tmp_path, edit_rows(), family="janus", source_views=["siglip"], text_dropout=0.4)
    conditioning = asked.parts[0].recipe.conditioning
    assert conditioning.source_views == ("understanding",) and conditioning.text_dropout == 0.4
    assert conditioning.drawing_dropout == 0 and conditioning.full_dropout == own.full_dropout
    run.create_model_card()
    assert "| source_views | ['understanding', 'drawing'] |" in (tmp_path / "README.md").read_text()
    bagel = trainer(tmp_path, edit_rows())
    assert (
        bagel.args.source_views == ["understanding"]
        and bagel.args.text_dropout == 0.1
        and bagel.args.drawing_dropout == 0
    )


def test_a_part_follows_the_model_too(tmp_path):
    args = settings(tmp_path, "janus", text_loss_weight=1.0)
    parts = [TrainingPart(edit_rows(), args.make_recipe(name)) for name in ("edit", "answer")]
    run = trainer(tmp_path, parts, family="janus", text_loss_weight=1.0)
    views = [
        {segment.view for segment in part.recipe(part.row(0)).segments if hasattr(segment, "view")}
        for part in run.parts
    ]
    assert views == [{"understanding", "drawing"}, {"understanding"}]


# ---- stored tokens


def test_stored_tokens_give_the_same_training(tmp_path):
    rows, model, processor = edit_rows(20), tiny_janus(), tiny_janus_processor()
    stored = store_image_tokens(rows, model, processor, batch_size=7)
    assert {"source_tokens", "target_tokens", "image_tokenizer"} <= set(stored.column_names)
    assert stored.features["source_image"] == rows.features["source_image"]
    stored.to_parquet(str(tmp_path / "stored.parquet"))
    curves = []
    for data in (rows, type(stored).from_parquet(str(tmp_path / "stored.parquet"), cache_dir=str(tmp_path / "cache"))):
        run = trainer(tmp_path / "run", data, family="janus", max_steps=4)
        images: list[int] = []
        encode = run.model.encode_images
        run.model.encode_images = lambda pixels, encode=encode, images=images: (
            images.append(len(pixels)) or encode(pixels)
        )
        run.train()
        curves.append((curve(run.state.log_history), sum(images)))
    assert curves[0][0] == curves[1][0]
    assert curves[0][1] > 0 and curves[1][1] == 0, "nothing is encoded where tokens are stored"


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """A tiny Janus-Pro on disk."""
    folder = tmp_path_factory.mktemp("janus")
    UniEditPipeline(tiny_janus(), tiny_janus_processor()).save_pretrained(folder)
    return folder


def test_the_command_stores_tokens(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("uniedit_hf.cli.encoding.ROWS_PER_FILE", 4)
    (tmp_path / "in").mkdir()
    edit_rows(10).to_parquet(str(tmp_path / "in" / "train.parquet"))
    options = ["--dataset_name", str(tmp_path / "in"), "--model_name_or_path", str(tiny_checkpoint)]
    out = tmp_path / "out"
    assert main(["dataset", "tokens", *options, "--output_dir", str(out)]) == 0
    assert len(list(out.glob("data/train-*-of-00003.parquet"))) == 3
    stored = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    direct = store_image_tokens(edit_rows(10), tiny_janus(), tiny_janus_processor())
    for name in ("id", "source_tokens", "target_tokens", "image_tokenizer"):
        assert list(stored[name]) == list(direct[name])
    assert stored.features["target_image"] == Image()
    assert stored[3]["target_image"].tobytes() == direct[3]["target_image"].tobytes()
    capsys.readouterr()
    assert main(["dataset", "tokens", *options, "--output_dir", str(out)]) == 1
    assert capsys.readouterr().err.endswith(f"--output_dir {out} exists and is not empty: name a new folder.\n")


def test_the_command_stores_pictures_that_lie_elsewhere(tmp_path, tiny_checkpoint):
    """A folder of images has paths in its rows; what is written must hold the images themselves."""
    folder = tmp_path / "in" / "train"
    folder.mkdir(parents=True)
    picture(32, 32, seed=1).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"source_image_file_name": "a.png", "id": "a"}) + "\n")
    options = ["--dataset_name", str(tmp_path / "in"), "--model_name_or_path", str(tiny_checkpoint)]
    assert main(["dataset", "tokens", *options, "--output_dir", str(tmp_path / "out")]) == 0
    shutil.rmtree(folder)
    stored = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert stored[0]["source_image"].size == (32, 32) and len(stored[0]["source_tokens"]) == 16


def test_the_command_refuses_other_models(tmp_path, capsys):
    options = ["--dataset_name", str(tmp_path), "--model_name_or_path", str(BAGEL)]
    assert main(["dataset", "tokens", *options, "--output_dir", str(tmp_path / "out")]) == 1
    assert "is a BagelForConditionalGeneration, which has no image tokens: name a Janus" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_stored_tokens_of_another_model_stop_the_run(tmp_path):
    stored = store_image_tokens(edit_rows(6), tiny_janus(seed=1), tiny_janus_processor())
    with pytest.raises(ValueError, match="store this model's, or remove the columns source_tokens and target_tokens"):
        trainer(tmp_path, stored, family="janus").train()
    damaged = [edit_row(number) | {"target_tokens": "red"} for number in range(2)]
    with pytest.raises(ValueError, match="Row 'row-0': column 'target_tokens' holds 'red'; expected a list of token"):
        edit_sample(damaged[0])
    with pytest.raises(ValueError, match="column 'image_tokenizer' is missing"):
        edit_sample(damaged[0] | {"target_tokens": [1, 2]})


def test_storing_tokens_needs_pictures():
    with pytest.raises(ValueError, match="but no source_image or target_image"):
        store_image_tokens(edit_rows(2).select_columns(["id"]), tiny_janus(), tiny_janus_processor())
    broken = edit_row(0) | {"source_image": {"bytes": b"nothing", "path": None}}
    with pytest.raises(ValueError, match="source_image of row 0 begins with"):
        store_image_tokens(dataset_of([broken]), tiny_janus(), tiny_janus_processor())


# ---- adapters


def losses(model) -> list[float]:
    features = tiny_janus_processor().pack([edit_sample(edit_row(0), tiny_janus_processor().conditioning)])
    with torch.no_grad():
        found = model(**{name: value for name, value in features.items() if not name.startswith("num_")})
    return [found.image_sum.item()]


def test_adapters_save_load_and_merge(tmp_path):
    base = tmp_path / "base"
    FAMILIES["janus"].model().save_pretrained(base)
    model = JanusForConditionalGeneration.from_pretrained(base)
    run = trainer(tmp_path / "out", edit_rows(), model, peft_config=LoraConfig(r=4), family="janus", max_steps=3)
    adapted = {name.split(".lora_")[0] for name, _ in run.model.named_parameters() if ".lora_" in name}
    inner = {name.removeprefix("base_model.model.model.") for name in adapted}
    assert {name for name in inner if not name.startswith("language_model.layers.")} == {
        "generation_aligner.fc1",
        "generation_aligner.hidden_layers.0",
        "generation_head.proj_out",
        "generation_head.vision_head",
    }
    assert len([name for name in inner if name.startswith("language_model.layers.")]) == 2 * 7
    run.train()
    run.save_model()
    expected = losses(run.model.eval())
    assert expected != losses(tiny_janus())
    loaded = PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(base), tmp_path / "out").eval()
    assert losses(loaded) == expected
    merged = loaded.merge_and_unload()
    assert losses(merged) == pytest.approx(expected, rel=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert losses(JanusForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()) == losses(merged)
    pipe = UniEditPipeline.from_pretrained(tmp_path / "out")
    assert losses(pipe.model) == pytest.approx(expected, rel=1e-5)
    assert pipe.edit(picture(), "paint the circle red", seed=1).size == (32, 32)


def test_sample_images_while_training(tmp_path):
    run = trainer(
        tmp_path, edit_rows(), eval_dataset=edit_rows(3), family="janus", max_steps=2, sample_steps=2, num_samples=2
    )
    run.train()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-2-row-{number}.png" for number in range(2)
    ]
    assert run.evaluate()["eval_image_loss"] > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"source_views": ["vit"]},
            "There is no view 'vit': JanusProcessor has the views 'understanding' (siglip) and ",
        ),
        ({"timestep_shift": 3.0}, "has no use for it: leave it out."),
        ({"posterior": "mean"}, "posterior is mean, but JanusForConditionalGeneration has no use for it"),
        ({"sample_timesteps": 9}, "sample_timesteps is 9, but JanusForConditionalGeneration has no use for it"),
        ({"vit_longest_edge": 28}, "has no use for it: leave it out."),
        (
            {"source_views": ["siglip"], "drawing_dropout": 0.5},
            "add 'drawing' to source_views or set drawing_dropout=0.",
        ),
        ({"full_dropout": 2.0}, "full_dropout=2.0 is not a probability"),
        ({"max_tokens_per_pack": 40}, "are longer than a pack: row 'row-"),
    ],
)
def test_settings_that_cannot_work(tmp_path, changes, sentence):
    with pytest.raises(ValueError) as refused:
        trainer(tmp_path, edit_rows(6), family="janus", **changes)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
