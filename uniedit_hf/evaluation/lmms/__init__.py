"""The plug-in for lmms-eval: the model `uniedit`, and tasks that lmms-eval does not have or asks in other words.

    python -m lmms_eval --model uniedit --model_args pretrained=ByteDance-Seed/BAGEL-7B-MoT --tasks mme_uniedit \\
        --include_path "$(python -m uniedit_hf.evaluation.lmms)"

lmms-eval finds the model by the entry point in setup.cfg; it has no entry point for tasks, so their folder is passed.
"""

from __future__ import annotations

from pathlib import Path


TASKS = Path(__file__).parent / "tasks"


def manifests() -> list:
    """The models of this package, for lmms-eval's registry."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="uniedit", simple_class_path=f"{__name__}.model.UniEdit")]
