"""Tests touch neither the network nor the user's caches, and one thread a process keeps their times comparable.

The variables are set here, before any library reads them, and tests that start a process hand them on.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import settings


_cache = tempfile.mkdtemp(prefix="uniedit-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

os.environ.update(
    {
        "HF_HOME": _cache,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
)

# A drawn example may take long on a busy machine, which says nothing about the code.
settings.register_profile("uniedit", deadline=None)
settings.load_profile("uniedit")

# A shell starts what runs in its background with Ctrl-C ignored, and the processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# These files take longest. They begin first, so that no process is left with one of them when the others are done.
LONGEST_FILES = (
    "test_synthesis_run",
    "test_quickstart",
    "test_training_hub",
    "test_training_exact",
    "test_examples",
    "test_training_resume",
    "test_synthesis_engines",
    "test_serving_process",
    "test_small_world_base",
    "test_hub_errors",
    "test_gpu_programs",
    "test_demo_space",
    "test_docs_code",
    "test_synthesis_edits",
)


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
