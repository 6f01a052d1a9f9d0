"""`UniEditTrainer` on the streamed copy of a Hub: a run that stops in the middle of a Parquet file and goes on in
another process reads the same batches and ends with the same weights as one that does not stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import ORGANISATION, running_hub
from raw_releases import make_release

from uniedit_hf.release.build import build


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNIEDIT = Path(sys.executable).with_name("uniedit")
REPO = f"{ORGANISATION}/uniedit-148k"

TRAIN = """
import hashlib, json, sys
from datasets import load_dataset
from tiny_models import tiny_bagel, tiny_bagel_processor
from transformers import TrainerCallback
from uniedit_hf import UniEditConfig, UniEditTrainer

output_dir, stop_after, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
packs = []

class Recorded(UniEditTrainer):
    def get_batch_samples(self, *arguments):
        found = super().get_batch_samples(*arguments)
        packs.append([notes.ids for notes in self._step_packs])
        return found

class StopAfter(TrainerCallback):
    def on_step_end(self, args, state, control, **options):
        control.should_training_stop = state.global_step == stop_after

if __name__ == "__main__":
    trainer = Recorded(
        tiny_bagel(),
        UniEditConfig(
            output_dir=output_dir, max_steps=8, save_steps=4, logging_steps=1, use_cpu=True, report_to=[],
            max_tokens_per_pack=150, packing_window=8, gradient_accumulation_steps=2, disable_tqdm=True,
            dataloader_num_workers=workers, learning_rate=1e-3,
        ),
        train_dataset=load_dataset("uniedit-148k", split="train", streaming=True),
        processing_class=tiny_bagel_processor(),
        callbacks=[StopAfter()],
    )
    trainer.train(resume_from_checkpoint=len(sys.argv) > 4)
    digest = hashlib.sha256()
    for parameter in trainer.model.parameters():
        digest.update(parameter.detach().float().numpy().tobytes())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"packs": packs, "losses": losses, "weights": digest.hexdigest()}))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_resumed_in_the_middle_of_a_file(tmp_path, workers):
    make_release(tmp_path / "raw", 240, faulty=False)
    build(tmp_path / "raw", tmp_path / "out", rows_per_file=60)  # row groups of 32 rows
    with running_hub(tmp_path / "server") as hub:
        tests = str(Path(__file__).parent)
        env = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": tests}
        publish = [UNIEDIT, "dataset", "publish", "--input_dir", tmp_path / "out", "--repo_id", REPO]
        subprocess.run(list(map(str, publish)), env=env, check=True, capture_output=True)

        def train(folder: str, stop_after: int, *resume: str) -> dict:
            command = [sys.executable, "-c", TRAIN, str(tmp_path / folder), str(stop_after), str(workers), *resume]
            done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        straight = train("straight", 8)
        first = train("stopped", 4)
        second = train("stopped", 8, "resume")
    assert first["packs"] + second["packs"] == straight["packs"]
    assert second["losses"] == straight["losses"]
    assert second["weights"] == straight["weights"] != first["weights"]
    read = [name for step in first["packs"] for pack in step for name in pack]
    assert len(set(read)) == len(read) and len(read) % 60 != 0  # it stopped inside a file
