"""Prints the folder of the task files, for `--include_path`."""

from uniedit_hf.evaluation.lmms import TASKS


print(TASKS)  # noqa: T201
