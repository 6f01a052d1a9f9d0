"""Runs of the real command in processes of their own, for tests of what must not change a run.

python tests/training_runs.py [FAMILY]     records the curves in tests/fixtures/curves
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file


sys.path.append(str(Path(__file__).parent))

from tiny_models import FAMILIES  # noqa: E402
from training_data import conversations, edit_rows, save_checkpoint, save_parquet  # noqa: E402


CURVES = Path(__file__).parent / "fixtures" / "curves"
PACKAGES = ("torch", "transformers", "accelerate", "diffusers", "datasets")
COMPARED = ("loss", "image_loss", "text_loss", "grad_norm")
# accumulation x batch, on one process and on two, with activation checkpointing and without
FAST = [(1, 1, 8, False), (2, 2, 2, True)]
ALL = [(n, a, 8 // n // a, c) for n in (1, 2) for a in (1, 2, 4, 8) if n * a <= 8 for c in (False, True)]


def make_data(folder: Path) -> None:
    """Checkpoints and data sets for all recipes."""
    for family in FAMILIES:
        save_checkpoint(folder / family, family)
    save_parquet(edit_rows(32), folder / "edits", num_files=4)
    save_parquet(conversations(8), folder / "talks")


def mix_settings(data: Path, family: str = "bagel", **changes) -> dict[str, Any]:
    """20 steps of 8 packs, of a mix of recipes with both losses."""
    mix = {
        "edits": {"name": str(data / "edits"), "weight": 2},
        "answers": {"name": str(data / "edits"), "recipe": "answer"},
        "talks": {"name": str(data / "talks"), "recipe": "interleaved"},
    }
    options = {
        "model_name_or_path": str(data / family),
        "datasets": mix,
        "max_steps": 20,
        "text_loss_weight": 0.25,
        "learning_rate": 1e-3,
        "max_tokens_per_pack": 120,
        "packing_window": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return options | FAMILIES[family].settings | changes


def command(options: dict[str, Any], processes: int = 1) -> list[str]:
    """`uniedit train`, or `grpo` if there are rewards, with these options, which are written beside the output
    folder."""
    config = Path(options["output_dir"] + ".yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(options))
    name = "grpo" if "reward_funcs" in options else "train"
    uniedit = ["-m", "uniedit_hf.cli", name, "--config", str(config)]
    if processes == 1:
        return [sys.executable, *uniedit]
    # `--cpu` would start a single process; with `use_cpu` among the options these run on the CPU as well
    launch = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *launch, *uniedit]


def environment() -> dict[str, str]:
    """One thread a process, and our package wherever the command runs."""
    here = Path(__file__).parent
    root = os.pathsep.join([str(here.parent), str(here)])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


def run(options: dict[str, Any], processes: int = 1) -> Path:
    """Runs the command to its end and returns its output folder."""
    done = subprocess.run(command(options, processes), env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(options["output_dir"])


class Running:
    """The command while it runs, in a process group of its own, to be killed.

    Args:
        options: Of the command.
        processes: On how many processes.
    """

    def __init__(self, options: dict[str, Any], processes: int = 1):
        self.process = subprocess.Popen(
            command(options, processes),
            env=environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error) -> None:
        if self.process.poll() is None:
            self.kill(signal.SIGKILL)
        self.wait()

    def wait_for_steps(self, count: int) -> int:
        """Waits until so many more steps are logged. Returns how often a step was."""
        for line in self.process.stdout:
            self.output += line
            count -= "'loss'" in line
            if count == 0:
                return self.output.count("'loss'")
        raise AssertionError(f"The run ended before it was killed:\n{self.output}")

    def kill(self, number: int, after: float = 0.0) -> None:
        """Sends a signal to all its processes, after some seconds."""
        time.sleep(after)
        os.killpg(self.process.pid, number)

    def ranks(self) -> list[int]:
        """The ids of the processes that train."""
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if "uniedit_hf.cli" in " ".join(child.cmdline())]

    def wait(self) -> int:
        """Waits for its end and returns the exit code."""
        if not self.process.stdout.closed:
            self.output += self.process.stdout.read()
            self.process.stdout.close()
        return self.process.wait(timeout=120)


def run_mix(
    data: Path, folder: Path, processes: int, accumulation: int, batch: int, checkpointing: bool, family: str = "bagel"
) -> Path:
    """The mix with its 8 packs a step dealt out in one way."""
    options = mix_settings(
        data,
        family,
        output_dir=str(folder),
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=batch,
        activation_checkpointing=checkpointing,
    )
    return run(options, processes)


def logged(folder: Path) -> list[dict[str, float]]:
    """The logs of the steps."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log for log in history if "loss" in log]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The saved model or adapter."""
    (path,) = [path for path in folder.glob("*model.safetensors") if path.is_file()]
    return load_file(path)


def main() -> None:
    """Records the curves of the mix, of the families named or of all."""
    for family in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder, "data"))
            logs = logged(run_mix(Path(folder, "data"), Path(folder, "out"), *FAST[0], family))
        curve = {
            "made by": f"python tests/training_runs.py {family}",
            "versions": {name: version(name) for name in PACKAGES},
            "curve": [{name: log[name] for name in ("step", *COMPARED) if name in log} for log in logs],
        }
        CURVES.mkdir(exist_ok=True)
        (CURVES / f"{family}.json").write_text(json.dumps(curve, indent=1) + "\n")


if __name__ == "__main__":
    main()
