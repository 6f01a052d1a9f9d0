"""The whole way once, on a laptop: questions about pictures become intelligent edits, a small BAGEL is tuned on them,
and a page shows what it makes of pictures it has never seen.

    data.py     easy-VQA -> Parquet -> `load_dataset`
    tuning.py   the base model and `UniEditTrainer`
    showing.py  edits of test pictures
    report.py   report.json and report.html
"""

from __future__ import annotations

import time
from pathlib import Path


def run(output_dir: str, model: str = "bagel", steps: int = 300, seed: int = 0, base: str | None = None) -> Path:
    """Runs it all and returns the path of the page.

    Args:
        output_dir: Where data, model and report go; files of an earlier run are replaced.
        model: Family of the small model.
        steps: Optimizer steps of tuning.
        seed: Of data, order of training and noise; the same seed gives the same files.
        base: Folder of the model to tune; the project's own small base if not given.

    Raises:
        OSError: If the base model is not there; the message says where to get it.
    """
    from .data import make_edits
    from .report import write_report
    from .showing import draw_examples
    from .tuning import base_folder, tune

    folder, start = Path(output_dir), time.perf_counter()
    base_path = base_folder(base, model)
    dataset, summary = make_edits(folder / "data", seed=seed)
    made = time.perf_counter()
    losses = tune(base_path, dataset, folder / "model", steps=steps, seed=seed)
    tuned = time.perf_counter()
    examples = draw_examples(base_path, folder / "model", seed=seed)
    drawn = time.perf_counter()
    seconds = {"data": made - start, "tuning": tuned - made, "drawing": drawn - tuned, "all": drawn - start}
    settings = {"model": model, "base": str(base or "assets"), "steps": steps, "seed": seed}
    return write_report(folder, settings=settings, summary=summary, losses=losses, examples=examples, seconds=seconds)
