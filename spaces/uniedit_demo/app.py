"""The Space's program. The models are those named in README.md, or the variables BASE_MODEL and TUNED_MODEL."""

from __future__ import annotations

import os
from pathlib import Path

from demo import models


gpu = models.zero_gpu()  # before torch, as ZeroGPU wants it

from demo.main import launch  # noqa: E402
from huggingface_hub import metadata_load  # noqa: E402


if __name__ == "__main__":
    base, tuned = metadata_load(Path(__file__).with_name("README.md"))["models"][:2]
    launch(os.environ.get("BASE_MODEL", base), os.environ.get("TUNED_MODEL", tuned), host="0.0.0.0", gpu=gpu)
