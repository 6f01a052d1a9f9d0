"""What cannot work is refused at construction, with a sentence that names the argument to change."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import interleave_datasets
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_bagel, tiny_bagel_processor
from training_data import conversations, edit_rows, settings, trainer
from transformers import BitsAndBytesConfig

from uniedit_hf.training import TrainingPart, UniEditTrainer
from uniedit_hf.training.checks import check_devices


ROWS = edit_rows(6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "paint"}, "recipe is 'paint': use 'edit', 'answer', 'generate' or 'interleaved'."),
        ({"bad_rows": "skip"}, "bad_rows is 'skip': use 'raise' or 'quarantine'."),
        ({"posterior": "mode"}, "posterior is 'mode': use 'sample' or 'mean'."),
        ({"source_views": []}, "source_views=() must name 'understanding', 'drawing' or both"),
        ({"vit_dropout": 0.1}, "vit_dropout is now called understanding_dropout: use the new name."),
        ({"vae_dropout": 0.1}, "vae_dropout is now called drawing_dropout: use the new name."),
        ({"text_dropout": 1.5}, "text_dropout=1.5 is not a probability"),
        (
            {"source_views": ["understanding"], "drawing_dropout": 0.3},
            "add 'drawing' to source_views or set drawing_dropout=0.",
        ),
        ({"image_loss_weight": -1}, "image_loss_weight is -1: use 0 or more."),
        ({"image_loss_weight": 0}, "image_loss_weight and text_loss_weight are both 0, so nothing is learned"),
        ({"thinking_loss": True}, "thinking_loss learns to write text, but text_loss_weight is 0"),
        ({"thinking_loss": True, "recipe": "answer"}, "thinking_loss is for the recipe 'edit', not for 'answer'"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0: use a number between 0 and 1"),
        ({"timestep_shift": 0}, "timestep_shift is 0: use a number above 0"),
        ({"max_tokens_per_pack": 0}, "max_tokens_per_pack is 0: use 1 or more."),
        ({"packing_window": 0}, "packing_window is 0: use 1 or more."),
        ({"sample_steps": 0}, "sample_steps is 0: use 1 or more."),
        ({"vit_longest_edge": -14}, "vit_longest_edge is -14: use 1 or more."),
        ({"freeze_vit": True, "freeze_und": True, "freeze_gen": True}, "set one of them to false."),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1, which does nothing here"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is True, which does nothing here"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is True, which does nothing here"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint is True, which does nothing here"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy is 'sequential', but packs are planned"),
        ({"report_to": "clearml"}, "report_to names 'clearml', which is not installed: pip install clearml."),
    ],
)
def test_settings_that_cannot_work(tmp_path, changes, sentence):
    with pytest.raises(ValueError) as refused:
        settings(tmp_path, **changes)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def stream(count: int = 6, **shuffle):
    dataset = edit_rows(count).to_iterable_dataset(num_shards=2)
    return dataset.shuffle(seed=0, **shuffle) if shuffle else dataset


def parts(*recipes: str, text_loss_weight: float = 0.0) -> list[TrainingPart]:
    args = settings("unused", text_loss_weight=text_loss_weight)
    return [
        TrainingPart(conversations(4) if recipe == "interleaved" else ROWS, args.make_recipe(recipe))
        for recipe in recipes
    ]


@pytest.mark.parametrize(
    ("data", "changes", "sentence"),
    [
        (lambda: {"train": ROWS}, {}, "train_dataset is a dict: give a Dataset, an IterableDataset or a list of"),
        (lambda: [ROWS], {}, "train_dataset is a list: give a Dataset"),
        (lambda: ROWS, {"text_loss_weight": 1}, "no text of the recipe 'edit' carries a loss: set text_loss_weight=0"),
        (
            lambda: ROWS,
            {"recipe": "generate", "text_loss_weight": 1},
            "no text of the recipe 'generate' carries a loss",
        ),
        (lambda: ROWS, {"recipe": "answer"}, "recipe='answer' learns to write, but text_loss_weight is 0"),
        (
            lambda: ROWS,
            {"recipe": "generate", "image_loss_weight": 0, "text_loss_weight": 1},
            "no text of the recipe 'generate' carries a loss",
        ),
        (lambda: parts("edit", "edit"), {"text_loss_weight": 1}, "no text of the training data carries a loss"),
        (
            lambda: parts("edit", "answer"),
            {},
            "Part 1 of the training data teaches text alone, but text_loss_weight is",
        ),
        (
            lambda: parts("answer", "edit"),
            {"text_loss_weight": 1, "image_loss_weight": 0},
            "Part 1 of the training data teaches images alone, but image_loss_weight is 0",
        ),
        (stream, {"max_steps": -1}, "A stream has no length, so the run needs an end: set max_steps."),
        (stream, {"save_strategy": "epoch"}, "save_strategy is 'epoch', but where a stream ends is not known"),
        (stream, {"dataloader_num_workers": 3}, "the stream has 2 file(s) to share out: set dataloader_num_workers=2"),
        (
            lambda: stream(buffer_size=4),
            {"save_strategy": "steps"},
            "shuffled through a buffer of 4 rows, which no checkpoint stores",
        ),
        (
            lambda: interleave_datasets([stream(buffer_size=7), stream()]),
            {"save_strategy": "steps"},
            "shuffled through a buffer of 7 rows",
        ),
        (
            lambda: [TrainingPart(stream(), None), TrainingPart(ROWS, None)],
            {},
            "A mix of data sets is planned by their",
        ),
        (lambda: ROWS.with_transform(lambda rows: rows), {}, "makes its rows by set_transform: use map instead"),
        (lambda: ROWS, {"max_tokens_per_pack": 20}, "are longer than a pack: row 'row-"),
        (lambda: ROWS, {"drawing_dropout": 0.3}, "add 'drawing' to source_views or set drawing_dropout=0."),
        (
            lambda: ROWS,
            {"source_views": ["siglip"]},
            "no view 'siglip': BagelProcessor has the views 'drawing' (vae) and ",
        ),
        (lambda: ROWS, {"source_views": ["clip"]}, "There is no view 'clip': BagelProcessor has the views"),
        (lambda: ROWS, {"source_views": ["vit"], "drawing_dropout": 0.3}, "add 'drawing' to source_views"),
        (
            lambda: ROWS,
            {"vit_longest_edge": 98},
            "vit_longest_edge is 98, but the encoder has positions for 84 pixels",
        ),
        (lambda: ROWS, {"vit_longest_edge": 50}, "a multiple of vit_stride, 14: for instance 56."),
        (lambda: ROWS, {"sample_steps": 2}, "sample_steps draws rows of the evaluation data, but there is none"),
        (lambda: ROWS, {"eval_strategy": "steps"}, "but you didn't pass an `eval_dataset`"),
        (lambda: ROWS, {"gradient_accumulation_steps": 64}, "use fewer ranks, less accumulation or more data."),
    ],
)
def test_data_that_cannot_work(tmp_path, data, changes, sentence):
    with pytest.raises(ValueError) as refused:
        trainer(tmp_path, data(), **changes)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_shuffling_files_alone_or_without_checkpoints_is_fine(tmp_path):
    for data, changes in ((stream(buffer_size=1), {"save_strategy": "steps"}), (stream(buffer_size=4), {})):
        first = next(iter(trainer(tmp_path, data, **changes).get_train_dataloader()))
        assert {name for notes in first["pack"] for name in notes.ids} <= set(ROWS["id"])


def test_evaluation_data_that_cannot_work(tmp_path):
    for data in (stream(), {"some": stream()}, [1, 2]):
        with pytest.raises(ValueError, match="give a Dataset, which has a length"):
            trainer(tmp_path, ROWS, eval_dataset=data)
    with pytest.raises(ValueError, match="the evaluation data has no column 'instruction'"):
        trainer(tmp_path, ROWS, eval_dataset=ROWS.remove_columns("instruction"), sample_steps=2)
    with pytest.raises(ValueError, match="sample_steps draws images, but the recipe 'answer' produces text only"):
        trainer(tmp_path, ROWS, eval_dataset=ROWS, sample_steps=2, recipe="answer", text_loss_weight=1)


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        (
            {},
            {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
            "loads a model by name, but model is already loaded",
        ),
        ({"freeze_vit": False}, {"peft_config": LoraConfig()}, "freeze_vit=False trains the encoder's weights"),
    ],
)
def test_adapters_that_cannot_work(tmp_path, changes, options, sentence):
    args = settings(tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence):
        UniEditTrainer(tiny_bagel(), args, ROWS, processing_class=tiny_bagel_processor(), **options)


def test_quantised_weights_need_adapters(tmp_path):
    with pytest.raises(ValueError, match="give peft_config to train adapters on them"):
        UniEditTrainer("a/model", settings(tmp_path), ROWS, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_adapters_are_put_on_once(tmp_path):
    model = tiny_bagel()
    adapted = get_peft_model(model, LoraConfig(target_modules=model.lora_target_modules()))
    with pytest.raises(ValueError, match="already has adapters: leave out peft_config"):
        trainer(tmp_path, ROWS, model=adapted, peft_config=LoraConfig())
    with pytest.raises(ValueError, match="so freeze_und and freeze_gen have no effect"):
        trainer(tmp_path, ROWS, model=adapted, freeze_und=True)


def test_a_model_without_its_heads_is_refused(tmp_path):
    class Reader(torch.nn.Module):
        config = tiny_bagel().config

    with pytest.raises(ValueError, match="Reader has no check_image_settings, .* which FamilyModel .* requires"):
        trainer(tmp_path, ROWS, model=Reader())


def test_one_process_drives_one_gpu(tmp_path):
    args = settings(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="One process sees 2 GPUs.*CUDA_VISIBLE_DEVICES"):
        check_devices(args)


def test_the_output_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"{tmp_path}/file is a file: name another folder, or move the file away"):
            trainer(folder, ROWS)


def test_there_has_to_be_something_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="nothing to train on: give train_dataset"):
        trainer(tmp_path, None).train()
    with pytest.raises(ValueError, match="nothing to evaluate on: give eval_dataset"):
        trainer(tmp_path, None).evaluate()
    with pytest.raises(ValueError, match="it needs at least one row"):
        trainer(tmp_path, ROWS.select([]))


def test_a_checkpoint_that_cannot_be_gone_on_from(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder. Pass another checkpoint."):
        trainer(tmp_path, ROWS).train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    torn = tmp_path / "checkpoint-3"
    torn.mkdir()
    with pytest.raises(ValueError, match="complete.json is missing, so it was not written to its end"):
        trainer(tmp_path, ROWS).train(resume_from_checkpoint=str(torn))
    (torn / "trainer_state.json").write_text('{"global_step": 3}')
    (torn / "complete.json").write_text(json.dumps({"trainer_state.json": 18}))
    with pytest.raises(ValueError, match="the checkpoint was made by another trainer"):
        trainer(tmp_path, ROWS).train(resume_from_checkpoint=str(torn))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("compute_metrics", "uniedit evaluate"),
        ("data_collator", "write a recipe"),
        ("model_init", "a trainer for every trial"),
        ("preprocess_logits_for_metrics", "keeps no logits"),
        ("compute_loss_func", "image_loss_weight"),
    ],
)
def test_arguments_of_trainer_that_packs_have_no_place_for(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        UniEditTrainer(tiny_bagel(), settings(tmp_path), edit_rows(2), **{name: lambda *arguments: None})


def test_a_hyperparameter_search_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="takes no model_init: make a trainer for every trial"):
        trainer(tmp_path, edit_rows(2)).hyperparameter_search(n_trials=2)


def test_predict_measures_the_losses_of_other_rows(tmp_path):
    ours = trainer(tmp_path, edit_rows(4), eval_dataset=edit_rows(3))
    expected, found = ours.evaluate(), ours.predict(edit_rows(3)).metrics
    assert {name: found[f"test_{name}"] for name in ("loss", "image_loss")} == pytest.approx(
        {name: expected[f"eval_{name}"] for name in ("loss", "image_loss")}
    )
