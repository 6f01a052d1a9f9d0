"""Rows to packs: nothing lost or repeated, planned or streamed; bad rows of every kind; going on exactly."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial

import pytest
from datasets import IterableDataset, concatenate_datasets, interleave_datasets, load_dataset
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings as hypothesis_settings, strategies as st
from tiny_models import tiny_bagel_processor
from training_data import (
    conversations,
    dataset_of,
    edit_row,
    edit_rows,
    png,
    save_parquet,
    settings,
    trainer,
)

from uniedit_hf.recipes import edit_sample
from uniedit_hf.training import TrainingPart
from uniedit_hf.training.data import DataError, PackReader
from uniedit_hf.training.loaders import evaluation_loader, plan_training, training_loader
from uniedit_hf.training.planning import PartLengths
from uniedit_hf.training.progress import DataProgress


PROCESSOR = tiny_bagel_processor()


class Run:
    """The data side of a training run."""

    def __init__(self, parts, args, state=None, first_step=0):
        parts = [TrainingPart(parts, args.make_recipe())] if not isinstance(parts, list) else parts
        self.parts = [part.for_model(PROCESSOR) for part in parts]
        self.args = args
        self.reader = PackReader(PROCESSOR, args.draw_seed, args.posterior, args.bad_rows == "quarantine")
        self.progress = DataProgress(args, plan_training(self.parts, self.reader, args))
        if state is None:
            self.progress.begin()
        else:
            self.progress.load_state_dict(json.loads(json.dumps(state)), first_step)
        self.batches = iter(training_loader(self.parts, self.reader, args, self.progress, first_step))

    def packs(self, count: int) -> list[tuple[str, ...]]:
        """The ids in the next packs."""
        found = []
        while len(found) < count:
            for notes in next(self.batches)["pack"]:
                self.progress.note(notes)
                found.append(tuple(notes.ids))
        return found


def make_args(folder, **changes):
    return settings(folder, **{"max_steps": 1000, "text_dropout": 0.3} | changes)


def stream_of(folder, count: int, num_files: int) -> IterableDataset:
    """Rows in Parquet files, as a stream."""
    if not folder.exists():
        save_parquet(edit_rows(count), folder, num_files)
    return load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)


# --- planned --------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_row_once(tmp_path):
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=3)
    plan = Run(edit_rows(30), args).progress.plan
    first, second = plan.epoch_ends
    for packs in (plan.packs[:first], plan.packs[first:]):
        assert Counter(row.row for pack in packs for row in pack) == Counter(range(30))
    assert first % 3 == second % 3 == 0 and len(plan.packs) == second
    assert plan.packs[:first] != plan.packs[first:]
    assert max(plan.tokens) <= args.max_tokens_per_pack
    assert [plan.epoch_after(number) for number in (first, second)] == [1, 2] and 0 < plan.epoch_after(3) < 1


@pytest.mark.parametrize(("epochs", "expected"), [(0.5, 0.5), (1.5, 1.5), (3, 3)])
def test_parts_of_epochs(tmp_path, epochs, expected):
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=epochs, gradient_accumulation_steps=2)
    plan = Run(edit_rows(30), args).progress.plan
    assert len(plan.packs) % 2 == 0
    assert plan.epoch_after(len(plan.packs)) == pytest.approx(expected, abs=0.1)


def test_planned_lengths_are_those_of_the_packs(tmp_path):
    args = make_args(
        tmp_path, source_views=["vit", "vae"], understanding_dropout=0.3, drawing_dropout=0.3, max_steps=20
    )
    run = Run(edit_rows(24), args)
    for index, tokens in enumerate(run.progress.plan.tokens):
        batch = next(run.batches)
        (notes,) = batch["pack"]
        assert notes.tokens == tokens == batch["input_ids"].shape[1], index
        assert notes.ids == [run.progress.plan.ids[row.part][row.row] for row in run.progress.plan.packs[index]]


def test_images_are_not_read_where_their_sizes_are_known(tmp_path):
    rows = edit_rows(6, source_image=png((32, 32), 0) | {"bytes": b"no picture"})
    lengths = PartLengths(TrainingPart(rows, partial(edit_sample)), PROCESSOR, keep_bad_rows=False)
    assert len(lengths.tokens) == 6
    unsized = edit_rows(6).remove_columns(["source_size", "target_size"])
    by_header = PartLengths(TrainingPart(unsized, edit_sample), PROCESSOR, keep_bad_rows=False)
    by_size = PartLengths(TrainingPart(edit_rows(6), edit_sample), PROCESSOR, keep_bad_rows=False)
    assert by_header.tokens == by_size.tokens
    partly = concatenate_datasets([edit_rows(3), edit_rows(6, source_size=None).select(range(3, 6))])
    assert PartLengths(TrainingPart(partly, edit_sample), PROCESSOR, keep_bad_rows=False).tokens == by_size.tokens


@hypothesis_settings(max_examples=25)
@given(
    counts=st.lists(st.integers(4, 20), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.5, 3), min_size=3, max_size=3),
    seed=st.integers(0, 5),
    packs_per_step=st.integers(1, 3),
)
def test_a_mix_holds_the_shares_asked_for(tmp_path_factory, counts, weights, seed, packs_per_step):
    args = make_args(
        tmp_path_factory.getbasetemp(),
        max_steps=-1,
        num_train_epochs=2,
        seed=seed,
        gradient_accumulation_steps=packs_per_step,
    )
    parts = [TrainingPart(edit_rows(count), edit_sample, weight) for count, weight in zip(counts, weights)]
    plan = Run(parts, args).progress.plan
    drawn = Counter(row.part for pack in plan.packs for row in pack)
    for part, weight in enumerate(weights[: len(counts)]):
        assert drawn[part] == pytest.approx(2 * counts[0] * weight / weights[0], abs=1)
    assert len(plan.packs) % packs_per_step == 0


def test_the_seed_of_the_data_may_differ(tmp_path):
    plans = [Run(edit_rows(20), make_args(tmp_path, **seeds)).progress.plan for seeds in ({}, {"data_seed": 1})]
    again = Run(edit_rows(20), make_args(tmp_path, seed=7, data_seed=42)).progress.plan
    assert plans[0].packs != plans[1].packs and plans[0].packs == again.packs


@pytest.mark.parametrize("changes", [{"max_tokens_per_pack": 110}, {"seed": 3}, {"text_dropout": 0.9}])
def test_going_on_with_other_packs_is_refused(tmp_path, changes):
    rows = edit_rows(20)
    state = Run(rows, make_args(tmp_path)).progress.state_dict(step=10)
    Run(rows, make_args(tmp_path), state, 10)
    with pytest.raises(ValueError, match="Cannot resume exactly: .* on .* packs, but this run plans others"):
        Run(rows, make_args(tmp_path, **changes), state, 10)
    with pytest.raises(ValueError, match="Cannot resume exactly: .* on .* packs, but this run plans others"):
        Run(edit_rows(21), make_args(tmp_path), state, 10)


def test_a_longer_run_resumes_with_the_packs_that_come_next(tmp_path):
    state = Run(edit_rows(20), make_args(tmp_path, max_steps=10)).progress.state_dict(step=10)
    longer = make_args(tmp_path, max_steps=40)
    assert Run(edit_rows(20), longer, state, 10).packs(30) == Run(edit_rows(20), longer).packs(40)[10:]


def test_the_same_packs_a_step_by_other_means_resume(tmp_path):
    halves = make_args(tmp_path, max_steps=5, gradient_accumulation_steps=2)
    state = Run(edit_rows(20), halves).progress.state_dict(step=2)
    batches = make_args(tmp_path, max_steps=5, per_device_train_batch_size=2)
    assert Run(edit_rows(20), batches, state, 2).packs(6) == Run(edit_rows(20), halves).packs(10)[4:]


# --- streamed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_stream_gives_every_row_once_an_epoch(tmp_path, num_workers):
    args = make_args(tmp_path / "out", dataloader_num_workers=num_workers)
    run = Run(stream_of(tmp_path / "data", 24, 4), args)
    seen = Counter(name for pack in run.packs(40) for name in pack)
    assert set(seen) == {f"row-{number}" for number in range(24)}
    assert max(seen.values()) - min(seen.values()) <= 2, "a window of rows waits"


@pytest.mark.parametrize("num_files", [4, 3])
def test_processes_share_a_stream_out(tmp_path, num_files):
    """By files where these can be dealt out evenly, else by rows."""
    stream = edit_rows(24).to_iterable_dataset(num_shards=num_files)
    args = make_args(tmp_path, packing_window=1)  # packs of one row, in the order of the stream
    epochs = [Run(split_dataset_by_node(stream, rank, 2), args).packs(24) for rank in range(2)]
    for epoch in (slice(0, 12), slice(12, 24)):
        ids = [name for packs in epochs for (name,) in packs[epoch]]
        assert sorted(ids) == sorted(f"row-{number}" for number in range(24))


@pytest.mark.parametrize(("num_workers", "batch"), [(0, 1), (1, 1), (2, 3)])
def test_a_stream_goes_on_exactly(tmp_path, num_workers, batch):
    args = make_args(
        tmp_path / "out", dataloader_num_workers=num_workers, per_device_train_batch_size=batch, packing_window=5
    )
    stream = stream_of(tmp_path / "data", 17, 3)
    whole = Run(stream, args).packs(24)
    for stop in (3, 15):  # in the middle of a file, and in another epoch
        first = Run(stream, args)
        assert first.packs(stop) == whole[:stop]
        rest = Run(stream, args, first.progress.state_dict(stop), stop)
        assert rest.packs(24 - stop) == whole[stop:]
        assert rest.progress.stream_epoch >= first.progress.stream_epoch


@hypothesis_settings(max_examples=8)
@given(window=st.integers(1, 12), stop=st.integers(1, 15), seed=st.integers(0, 3))
def test_any_window_goes_on_exactly(tmp_path_factory, window, stop, seed):
    args = make_args(tmp_path_factory.getbasetemp() / "out", packing_window=window, seed=seed)
    stream = edit_rows(14).to_iterable_dataset(num_shards=2)
    whole = Run(stream, args).packs(18)
    first = Run(stream, args)
    first.packs(stop)
    assert Run(stream, args, first.progress.state_dict(stop), stop).packs(18 - stop) == whole[stop:]


def test_interleaved_streams_and_shuffled_files_go_on_exactly(tmp_path):
    files = edit_rows(17).to_iterable_dataset(num_shards=3)
    streams = [
        interleave_datasets([files, edit_rows(9).to_iterable_dataset()], probabilities=[0.7, 0.3], seed=1),
        files.shuffle(seed=3, buffer_size=1),
        files.filter(lambda row: row["id"] != "row-3").map(lambda row: {"instruction": "make " + row["instruction"]}),
    ]
    for stream in streams:
        args = make_args(tmp_path / "out", packing_window=4)
        whole = Run(stream, args).packs(25)
        first = Run(stream, args)
        first.packs(11)
        assert Run(stream, args, first.progress.state_dict(11), 11).packs(14) == whole[11:]


def test_another_stream_is_noticed(tmp_path):
    args = make_args(tmp_path / "out", packing_window=4)
    run = Run(edit_rows(14).to_iterable_dataset(), args)
    run.packs(3)
    state = run.progress.state_dict(3)
    others = [
        edit_rows(14).select(range(2, 14)).to_iterable_dataset(),
        edit_rows(60).to_iterable_dataset().shuffle(seed=1, buffer_size=30),
    ]
    for other in others:
        with pytest.raises(DataError, match="gives other rows than when the checkpoint was written"):
            Run(other, args, state, 3).packs(1)
    with pytest.raises(DataError, match="set both as they were"):
        Run(edit_rows(14).to_iterable_dataset(), make_args(tmp_path / "out", packing_window=5), state, 3).packs(1)
    with pytest.raises(ValueError, match="number of processes and dataloader_num_workers as they were"):
        Run(stream_of(tmp_path / "d", 14, 3), make_args(tmp_path, dataloader_num_workers=2), state, 3)


def test_an_empty_stream_is_said(tmp_path):
    stream = edit_rows(4).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(DataError, match="The training stream has no rows: check its name, split and filters."):
        Run(stream, make_args(tmp_path)).packs(1)
    bad = edit_rows(4, instruction=" ").to_iterable_dataset()
    with pytest.raises(DataError, match="No row of the training stream can be used; row 'row-0': .* is empty"):
        Run(bad, make_args(tmp_path, bad_rows="quarantine")).packs(1)


# --- bad rows -------------------------------------------------------------------------------------------------------

BAD = {
    "empty instruction": ({"instruction": " "}, "column 'instruction' is empty"),
    "null instruction": ({"instruction": None}, "column 'instruction' is null"),
    "null image": ({"source_image": None}, "column 'source_image' is null"),
    "corrupt bytes": ({"target_image": {"bytes": png((32, 32), 1)["bytes"][:90], "path": None}}, "cannot be read"),
    "no picture": ({"source_image": {"bytes": b"<html>", "path": None}}, "is not an image that can be read here"),
    "missing file": ({"source_image": {"bytes": None, "path": "nowhere.png"}}, "nowhere.png. does not exist"),
    "wrong size": ({"source_size": [48, 48]}, "is 32 x 32 pixels, but its row gives 48 x 48"),
    "longer than a pack": (
        {"instruction": "red " * 200},
        "longer than max_tokens_per_pack=120|has 2.. tokens, (more than )?max_tokens_per_pack",
    ),
}


def with_bad_row(changes):
    """12 good rows and, as number 4, a bad one."""
    good = {"source_image": png((32, 32), 4), "source_size": [32, 32]}
    rows = [edit_row(number) for number in range(13)]
    rows[4] |= good | changes
    return dataset_of(rows)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("how", ["planned", "planned without sizes", "streamed"])
def test_a_bad_row_stops_the_run_with_one_sentence(tmp_path, kind, how):
    changes, sentence = BAD[kind]
    with pytest.raises(DataError) as stopped:
        Run(data_of(changes, how), make_args(tmp_path, text_dropout=0.0)).packs(40)
    message = str(stopped.value)
    assert "'row-4'" in message and re.search(sentence, message) and "\n" not in message
    assert "bad_rows='quarantine'" in message


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("how", ["planned", "planned without sizes", "streamed"])
def test_a_bad_row_is_set_aside_by_choice(tmp_path, kind, how):
    changes, sentence = BAD[kind]
    run = Run(data_of(changes, how), make_args(tmp_path, bad_rows="quarantine", text_dropout=0.0))
    seen = Counter(name for pack in run.packs(20) for name in pack)
    assert set(seen) == {f"row-{number}" for number in range(13)} - {"row-4"}
    (line,) = (tmp_path / "quarantine_0.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert noted["id"] == "row-4" and re.search(sentence, noted["reason"])
    again = Run(data_of(changes, how), run.args, run.progress.state_dict(20), 20)
    again.packs(5)
    assert again.progress.bad_rows == run.progress.bad_rows
    assert (tmp_path / "quarantine_0.jsonl").read_text().splitlines() == [line]


def data_of(changes, how: str):
    rows = with_bad_row(changes)
    if how == "planned without sizes":
        rows = rows.remove_columns(["source_size", "target_size"])
        if "source_size" in changes:
            pytest.skip("there is no size that could be wrong")
    return rows.to_iterable_dataset() if how == "streamed" else rows


def test_missing_columns_and_wrong_types(tmp_path):
    cases = [
        (edit_rows(4).remove_columns("instruction"), "column 'instruction' is missing"),
        (edit_rows(4).remove_columns("id"), "column 'id' is missing"),
        (edit_rows(4).remove_columns("source_image"), "has the size of an image but no column with the image itself"),
        (edit_rows(4).remove_columns(["source_image", "source_size"]), "column 'source_image' is missing, and so is"),
        (edit_rows(4).remove_columns("instruction").add_column("instruction", [1, 2, 3, 4]), "holds int 1; expected"),
        (edit_rows(4).remove_columns("source_size").add_column("source_size", [3] * 4), "holds 3; expected .width"),
    ]
    for rows, sentence in cases:
        with pytest.raises(DataError, match=sentence):
            Run(rows, make_args(tmp_path))
        with pytest.raises(ValueError, match=f"No row of the data can be used; row .*{sentence}"):
            Run(rows, make_args(tmp_path, bad_rows="quarantine"))


@pytest.mark.parametrize("how", ["planned", "streamed"])
def test_workers_hand_over_the_sentence_as_it_is(tmp_path, how):
    args = make_args(tmp_path, dataloader_num_workers=1)
    with pytest.raises(DataError) as stopped:
        Run(data_of(BAD["corrupt bytes"][0], how), args).packs(20)
    assert str(stopped.value).startswith("Row 'row-4': ") and "Traceback" not in str(stopped.value)


def test_counts_of_bad_rows_are_in_the_logs(tmp_path):
    rows = dataset_of([edit_row(number) for number in range(12)])
    broken = {"target_image": {"bytes": b"broken", "path": None}}
    bad = dataset_of([edit_row(20, instruction=" "), edit_row(21, **broken), edit_row(22, **broken)])
    run = trainer(tmp_path, concatenate_datasets([rows, bad]), bad_rows="quarantine", max_steps=-1, num_train_epochs=1)
    run.train()
    counts = [log["quarantined_rows"] for log in run.state.log_history if "loss" in log]
    assert counts[0] >= 1 and counts[-1] == 3 and counts == sorted(counts)
    ids = [json.loads(line)["id"] for line in (tmp_path / "quarantine_0.jsonl").read_text().splitlines()]
    assert ids[0] == "row-20" and sorted(ids) == ["row-20", "row-21", "row-22"]


def test_a_pack_of_bad_rows_alone_takes_part_in_its_step(tmp_path):
    rows = dataset_of([edit_row(number, target_image={"bytes": b"broken", "path": None}) for number in range(6)])
    run = trainer(tmp_path, rows, bad_rows="quarantine", max_steps=2)
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    assert [log["loss"] for log in logs] == [0, 0] and logs[-1]["quarantined_rows"] == 6


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_holds_every_row_once_with_the_same_draws(tmp_path):
    args = make_args(tmp_path, per_device_eval_batch_size=2)
    reader = PackReader(PROCESSOR, args.draw_seed, args.posterior, False)
    loader = evaluation_loader(TrainingPart(conversations(5), args.make_recipe("interleaved")), reader, args)
    passes = [[(notes.ids, batch["timesteps"].tolist()) for batch in loader for notes in batch["pack"]] for _ in "ab"]
    assert passes[0] == passes[1]
    assert Counter(name for ids, _ in passes[0] for name in ids) == Counter(f"talk-{number}" for number in range(5))


def test_bad_rows_of_an_evaluation_are_counted_and_listed(tmp_path):
    broken = {"target_image": {"bytes": b"broken", "path": None}}
    rows = dataset_of(
        [*(edit_row(number) for number in range(6)), edit_row(20, instruction=" "), edit_row(21, **broken)]
    )
    run = trainer(tmp_path, edit_rows(6), bad_rows="quarantine", eval_dataset=rows)
    first, again = run.evaluate(), run.evaluate()
    assert first["eval_quarantined_rows"] == again["eval_quarantined_rows"] == 2
    listed = [json.loads(line)["id"] for line in (tmp_path / "quarantine_eval_0.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["row-20", "row-21"] and not (tmp_path / "quarantine_0.jsonl").exists()
    whole = trainer(tmp_path / "whole", edit_rows(6), eval_dataset=rows.select(range(6))).evaluate()
    assert "eval_quarantined_rows" not in whole and first["eval_loss"] == pytest.approx(whole["eval_loss"], rel=0.2)


def test_an_evaluation_without_a_row_has_no_loss(tmp_path):
    rows = dataset_of([edit_row(number, target_image={"bytes": b"broken", "path": None}) for number in range(3)])
    run = trainer(tmp_path, edit_rows(6), bad_rows="quarantine", eval_dataset=rows)
    with pytest.raises(DataError, match="No row of the evaluation data can be used .3 are left out.*no eval_loss"):
        run.evaluate()
    assert len((tmp_path / "quarantine_eval_0.jsonl").read_text().splitlines()) == 3
