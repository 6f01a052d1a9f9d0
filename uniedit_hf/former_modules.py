"""Former names of modules: importing one raises an error that gives the new name."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


_SCORERS = ("gedit", "geneval", "imgedit", "kris", "rise", "wise")
_MOVED: dict[str, dict[str, str]] = {  # below a package of `uniedit_hf`: former name -> place below `uniedit_hf`
    "": {"quickstart": "small_world.quickstart"},
    "evaluation.scorers": {
        **{name: f"evaluation.scorers.{name}_scores" for name in _SCORERS},
        "small_world": "small_world.scoring",
    },
    "evaluation.suites": {"small_world": "small_world.suite", "small_world_items": "small_world.suite_items"},
    "models": {"drawing": "models.family", "sample_images": "models.sample_processor"},
    "models.bagel": {
        "autoencoder": "models.bagel.encoders_bagel",
        "checkpoint_folder": "models.bagel.checkpoint_bagel",
        "conversion": "models.bagel.layouts_bagel",
        "decoder_layers": "models.bagel.decoder_bagel",
        "embeddings": "models.bagel.encoders_bagel",
        "key_mapping": "models.bagel.layouts_bagel",
        "latents": "models.bagel.flow",
        "official_layout": "models.bagel.layouts_bagel",
        "stored_tensors": "models.bagel.checkpoint_bagel",
        "tokens": "models.bagel.configuration_bagel",
        "vision_encoder": "models.bagel.encoders_bagel",
    },
    "models.janus": {"conversion": "models.janus.conversion_janus", "tokens": "models.janus.layout"},
    "release": {
        "card": "release.dataset_card",
        "faults": "row_error",
        "publishing": "release.dataset_publishing",
    },
    "synthesis": {
        **{
            name: f"small_world.{name}"
            for name in (
                "asking", "compare", "contact_sheet", "easy_vqa", "editor", "instructions", "program", "questions",
                "reader", "rules", "scene", "topics", "vocabulary", "wording",
            )
        },
        "calls": "calls",
        "finishing": "synthesis.run",
        "flow": "synthesis.shard",
        "merging": "synthesis.writer",
        "official": "synthesis.writer",
        "output": "synthesis.writer",
        "pictures": "small_world.drafts",
        "pipeline": "small_world.edits",
        "plans": "synthesis.stages.instruct",
        "progress": "synthesis.progress_bars",
        "shard_files": "synthesis.writer",
        "summary": "synthesis.writer",
        "verify": "small_world.verifier",
    },
    "synthesis.backends": {"arguments": "calls.openai_chat", "remote": "calls.failures"},
    "synthesis.settings": {"run": "synthesis.settings.run_settings", "section": "calls.section"},
    "synthesis.stages": {"edit": "synthesis.stages.draw", "look": "synthesis.stages.inspection"},
    "synthesis.sources": {
        "conversations": "synthesis.sources.conversation_rows",
        "easy_vqa": "small_world.drafts",
        "pictures": "synthesis.sources.image_files",
        "rows_of_files": "synthesis.sources.rows",
        "stream": "synthesis.sources.rows",
    },
}  # fmt: skip
FORMER_MODULES = {
    ".".join(filter(None, ("uniedit_hf", package, name))): f"uniedit_hf.{new}"
    for package, names in _MOVED.items()
    for name, new in names.items()
}


class _FormerModules(MetaPathFinder):
    """A finder that comes after all others, so it only sees modules that do not exist."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in FORMER_MODULES:
            raise ModuleNotFoundError(f"{fullname} is now called {FORMER_MODULES[fullname]}: import that.")
        return None


def refuse_former_modules() -> None:
    """Adds the finder after Python's own, once."""
    if not any(isinstance(finder, _FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(_FormerModules())
