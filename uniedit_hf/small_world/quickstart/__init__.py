"""The whole way once, on a laptop: questions about pictures become intelligent edits, a small model is tuned on them,
and a page shows what that does to its three abilities.

    edit_data.py easy-VQA -> Parquet -> `load_dataset`: intelligent edits, and plain ones of the same pictures
    tuning.py   the base model and `UniEditTrainer`
    dependence.py  whether edits follow their source and their instruction
    summary.py  what base, tuned model and control reach, with intervals
    page.py     items.jsonl, report.json and report.html

What is asked and how it is scored is `uniedit_hf/small_world/suite.py`.
"""

from __future__ import annotations

import shutil
import time
from importlib.util import find_spec
from pathlib import Path


def run(
    output_dir: str,
    model: str = "bagel",
    steps: int = 400,
    seed: int = 0,
    seeds: int = 1,
    edits: int = 3000,
    items: int = 100,
    base: str | None = None,
) -> Path:
    """Runs it all and returns the path of the page.

    Args:
        output_dir: Where data, models and report go; those of an earlier run are replaced.
        model: Family of the small model.
        steps: Optimizer steps of each tuning.
        seed: Of data and tuning; the same seed gives the same files. The test items are always the same.
        seeds: How often to tune on these data, with seeds from `seed` on; the report's figures are the mean.
        edits: How many edits are made.
        items: Test items of each kind.
        base: Folder of the model to tune; the project's own small base if not given.

    Raises:
        OSError: If the base model is not there; the message says where to get it.
        ValueError: If a package of the extra `quickstart` is not installed.
    """
    _check_extra()
    from uniedit_hf.arithmetic import one_thread

    with one_thread():
        return _run(Path(output_dir), model, steps, range(seed, seed + seeds), edits, items, base)


def _run(folder: Path, model: str, steps: int, seeds: range, edits: int, items: int, base: str | None) -> Path:
    from uniedit_hf.arithmetic import best_arithmetic
    from uniedit_hf.pipeline import UniEditPipeline
    from uniedit_hf.small_world.suite import bounds, outputs_of, score
    from uniedit_hf.small_world.suite_items import test_items

    from .dependence import dependence
    from .edit_data import make_edits
    from .page import write_report
    from .tuning import base_folder, small_world, tune

    clock = _Clock()
    start = base_folder(base, model)
    for old in (folder / "data", *folder.glob("model*"), *folder.glob("control*")):
        shutil.rmtree(old, ignore_errors=True)
    datasets, data = make_edits(folder / "data", seed=seeds[0], size=edits)
    clock.lap("data")
    models, losses = {"base": [start]}, {}
    for name, place, kind in (("tuned", "model", "intelligent"), ("control", "control", "plain")):
        models[name] = [folder / (f"{place}-{i}" if i else place) for i in range(len(seeds))]
        for seed, path in zip(seeds, models[name]):
            curve = tune(start, datasets[kind], path, steps=steps, seed=seed)
            losses.setdefault(name, curve)  # the page draws the first seed's
        clock.lap(f"tuning ({name})")
    asked = test_items(items)
    outputs, scores, followed = {}, {}, {}
    for name, paths in models.items():
        for path in paths:
            pipeline = UniEditPipeline.from_pretrained(path, batch_size=50)
            came_out = outputs_of(pipeline, asked, name)
            outputs.setdefault(name, came_out)  # the page shows the first seed's
            scores.setdefault(name, []).append([score(item, each) for item, each in zip(asked, came_out)])
            if name == "tuned" and not followed:
                followed = dependence(pipeline, asked, came_out)
        clock.lap(f"measuring ({name})")
    return write_report(
        folder,
        settings={
            "model": model,
            "base": base or "assets",
            "steps": steps,
            "seed": seeds[0],
            "seeds": len(seeds),
            "device": best_arithmetic().device,
            "dtype": best_arithmetic().dtype_name,
            **small_world(start),
        },
        data=data,
        losses=losses,
        items=asked,
        outputs=outputs,
        scores=scores,
        bounds=bounds(pipeline, asked),
        followed=followed,
        seconds=clock.laps,
    )


def _check_extra() -> None:
    missing = [package for package in ("easy_vqa", "matplotlib") if find_spec(package) is None]
    if missing:
        raise ValueError(
            f"The quickstart needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            'installed: pip install "uniedit_hf[quickstart]".'
        )


class _Clock:
    """How long each part took, in seconds."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = round(now - self.last, 1), now
