"""Tests touch neither the network nor the user's caches, and one thread a process keeps their times comparable.

The variables are set here, before any library reads them, and tests that start a process hand them on.
"""

from __future__ import annotations

import atexit
import os
import shutil
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
