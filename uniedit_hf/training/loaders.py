"""Makes loaders of packs from data sets and settings."""

from __future__ import annotations

import copy
import functools
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from uniedit_hf.row_error import RowError

from .checks import check_learned
from .config import UniEditConfig
from .data import DataError, PackedDataset, PackReader, TrainingPart, merge_packs
from .planning import PartLengths, RunPlan, plan_run
from .progress import DataProgress
from .streaming import PackStream


class PackLoader(DataLoader):
    """A `DataLoader` of packs that raises its workers' errors unchanged, without a worker's traceback.

    `bad_rows` are those that planning left out of an evaluation.
    """

    bad_rows: Sequence[RowError] = ()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def plan_training(parts: Sequence[TrainingPart], reader: PackReader, args: UniEditConfig) -> RunPlan | None:
    """The packs of the whole run, `None` for a stream or without training data.

    Raises:
        ValueError: If the data and the settings do not go together.
    """
    if not parts or isinstance(parts[0].dataset, IterableDataset):
        return None
    lengths = _lengths(parts, reader, args)
    check_learned(lengths, args)
    extent = {"num_epochs": args.num_train_epochs, "max_steps": args.max_steps, "packs_per_step": args.packs_per_step}
    return _plan(parts, lengths, reader, args, **extent)


def training_loader(
    parts: Sequence[TrainingPart], reader: PackReader, args: UniEditConfig, progress: DataProgress, first_step: int
) -> PackLoader:
    """The packs of this process, from the current step to the end of the run."""
    if not parts:
        raise ValueError("There is nothing to train on: give train_dataset.")
    if progress.plan is None:
        stream = _pack_stream(parts[0], reader, args, progress)
        return _loader(stream, reader, args, batch_size=args.per_device_train_batch_size)
    first_batch = first_step * args.gradient_accumulation_steps
    return _planned_loader(parts, reader, args, progress.plan, args.per_device_train_batch_size, first_batch)


def evaluation_loader(part: TrainingPart, reader: PackReader, args: UniEditConfig) -> PackLoader:
    """The evaluation rows in packs, with the same draws at every evaluation."""
    extent = {"num_epochs": 1, "max_steps": -1, "packs_per_step": args.world_size}
    plan = _plan([part], _lengths([part], reader, args), reader, args, **extent)
    loader = _planned_loader([part], reader, args, plan, args.per_device_eval_batch_size)
    loader.bad_rows = plan.bad_rows if args.process_index == 0 else []
    return loader


def _lengths(parts: Sequence[TrainingPart], reader: PackReader, args: UniEditConfig) -> list[PartLengths]:
    show_progress = args.process_index == 0 and not args.disable_tqdm
    return [PartLengths(part, reader.processor, reader.keep_bad_rows, show_progress) for part in parts]


def _plan(parts, lengths, reader: PackReader, args: UniEditConfig, **extent) -> RunPlan:
    return plan_run(
        parts,
        lengths,
        seed=args.draw_seed,
        max_tokens=args.max_tokens_per_pack,
        window=args.packing_window,
        skip_oversized=reader.keep_bad_rows,
        **extent,
    )


def _planned_loader(parts, reader, args: UniEditConfig, plan: RunPlan, size: int, first_batch: int = 0) -> PackLoader:
    numbers = plan.of_rank(args.process_index, args.world_size)
    batches = [numbers[start : start + size] for start in range(first_batch * size, len(numbers), size)]
    return _loader(PackedDataset(parts, plan.packs, reader), reader, args, batch_sampler=batches)


def _pack_stream(part: TrainingPart, reader, args: UniEditConfig, progress: DataProgress) -> PackStream:
    if args.world_size > 1:
        part = copy.copy(part)
        part.dataset = split_dataset_by_node(part.dataset, args.process_index, args.world_size)
    return PackStream(
        part,
        reader,
        max_tokens=args.max_tokens_per_pack,
        window=args.packing_window,
        num_workers=progress.num_workers,
        states=progress.stream_states,
        first_worker=progress.first_worker,
    )


def _loader(dataset, reader: PackReader, args: UniEditConfig, **batches) -> PackLoader:
    return PackLoader(
        dataset,
        collate_fn=functools.partial(merge_packs, reader.processor),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator().manual_seed(
            args.seed
        ),  # a separate generator, so that the model's dropout is not affected
        **batches,
    )


def _ignore_stop_signals(worker: int) -> None:
    """A scheduler sends SIGTERM, and a terminal Ctrl-C, to every process; reading processes continue until the last
    step has been saved.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
