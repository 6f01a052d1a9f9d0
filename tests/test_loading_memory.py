"""Loading casts tensor by tensor: beside the weights hardly anything of the files stays in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.loading import write_checkpoint


def test_shards_in_fp32_load_in_bf16_without_a_second_copy(tmp_path):
    """The benchmark at a tenth of its size; if the files were mapped, 0.3 GB more would show."""
    write_checkpoint(tmp_path / "checkpoint", 0.2, torch.float32, num_shards=2)
    command = [sys.executable, "-m", "benchmarks.loading", "--load", str(tmp_path / "checkpoint")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["checkpoint_gb"] > 0.25 and found["weights_gb"] < 0.6 * found["checkpoint_gb"]
    assert found["peak_rss_gb"] - found["before_gb"] < found["weights_gb"] + 0.15
    assert found["used_rss_gb"] <= found["checkpoint_gb"] + 0.5
