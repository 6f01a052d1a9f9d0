"""Latents and features that are stored with a data set: the same training, and refusals."""

from __future__ import annotations

import pytest
import torch
from datasets import concatenate_datasets, load_dataset
from tiny_models import tiny_bagel, tiny_bagel_processor
from training_data import conversations, curve, edit_rows, save_checkpoint, save_parquet, trainer

from uniedit_hf import cli
from uniedit_hf.models.bagel.stored_views import fingerprint, store_views
from uniedit_hf.recipes import edit_sample
from uniedit_hf.training.data import TrainingPart


@pytest.fixture(scope="module")
def stored():
    """Twelve edits with latents and features of `tiny_bagel`."""
    return store_views(edit_rows(12), tiny_bagel(), tiny_bagel_processor())


def trained(folder, data, **changes):
    run = trainer(folder, data, max_steps=3, source_views=["vit", "vae"], **changes)
    run.train()
    return run


def check_same(ours, wanted):
    for found, expected in zip(curve(ours.state.log_history), curve(wanted.state.log_history)):
        assert found == pytest.approx(expected, rel=1e-5)
    for (name, weight), other in zip(ours.model.named_parameters(), wanted.model.parameters()):
        assert torch.allclose(weight, other, atol=1e-5), name


@pytest.mark.parametrize("changes", [{}, {"posterior": "mean", "drawing_dropout": 0.5}, {"dataloader_num_workers": 1}])
def test_training_is_the_same(tmp_path, stored, changes):
    assert {"source_latents", "target_latents", "source_features", "latents_encoder"} <= set(stored.column_names)
    ours = trained(tmp_path / "stored", stored, **changes)
    check_same(ours, trained(tmp_path / "pixels", edit_rows(12), **changes))
    work = ours.reader.read([(ours.parts[0].recipe, ours.parts[0].row(0), 0)], "", 0)["pack"].work
    assert work.read == 0 and work.seen > 0 and work.images == (), "nothing is encoded"


def test_some_rows_have_stored_views_and_some_do_not(tmp_path, stored):
    """Packs in which images of one size come both ways."""
    plain = edit_rows(12)
    missing = stored.select(range(6)).map(
        lambda row: dict.fromkeys(("source_features", "target_latents")), features=stored.features
    )
    mixed = concatenate_datasets([missing, stored.select(range(6, 12))])
    check_same(trained(tmp_path / "mixed", mixed), trained(tmp_path / "pixels", plain))


def test_stored_rows_beside_conversations(tmp_path, stored):
    parts = [TrainingPart(stored, edit_sample), TrainingPart(conversations(8), _interleaved())]
    wanted = [TrainingPart(edit_rows(12), edit_sample), TrainingPart(conversations(8), _interleaved())]
    check_same(*(trained(tmp_path / str(i), each) for i, each in enumerate((parts, wanted))))


def _interleaved():
    from uniedit_hf.recipes import interleaved_sample

    return interleaved_sample


def test_half_precision_takes_half_and_is_near(tmp_path, stored):
    half = store_views(edit_rows(12), tiny_bagel(), tiny_bagel_processor(), torch.bfloat16)
    sizes = [sum(len(row["target_latents"]) for row in each) for each in (half, stored)]
    assert sizes[0] < 0.6 * sizes[1]
    losses = [trained(tmp_path / str(i), each).state.log_history[0]["loss"] for i, each in enumerate((half, stored))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_the_command(tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "model")
    data = save_parquet(edit_rows(4), tmp_path / "data")
    flags = ["--dataset_name", str(data), "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]
    assert cli.main(["dataset", "latents", *flags]) == 0
    assert "Wrote 4 rows with the latents of" in capsys.readouterr().out
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert rows["id"] == edit_rows(4)["id"] and all(rows["source_features"])
    assert cli.main(["dataset", "latents", *flags]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_the_wrong_family_is_refused(tmp_path, capsys):
    flags = ["--model_name_or_path", str(save_checkpoint(tmp_path / "model", "janus"))]
    flags += ["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert cli.main(["dataset", "latents", *flags]) == 1
    assert "which has no latents: name a BAGEL" in capsys.readouterr().err


def test_latents_of_another_autoencoder_are_refused(tmp_path, stored):
    other = tiny_bagel()
    with torch.no_grad():
        next(other.vae.encoder.parameters()).add_(0.1)
    assert fingerprint(other.vae, "encoder.") != tiny_bagel().view_encoders["vae"]
    with pytest.raises(ValueError, match="latents in the columns .* made by the encoder .* this model's own is"):
        trained(tmp_path, stored, model=other)


def test_features_and_a_trained_encoder_are_refused(tmp_path, stored):
    with pytest.raises(ValueError, match="so the encoder would not learn: remove them, or set freeze_vit=True"):
        trained(tmp_path, stored, freeze_vit=False)


def test_other_sizes_are_refused(tmp_path, stored):
    with pytest.raises(ValueError, match="has features of .* tokens stored, but at the sizes of this run it has"):
        trained(tmp_path, stored, vit_longest_edge=42)


def test_what_is_no_view_is_refused(tmp_path, stored):
    broken = stored.map(lambda row: {"source_features": b"some bytes"}, features=stored.features)
    with pytest.raises(ValueError, match="has a stored view that is not readable"):
        trained(tmp_path, broken)
