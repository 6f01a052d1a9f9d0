"""Importing the package is cheap, its names resolve, and the Auto classes know the models however one arrives."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, get_image_processor_class_from_name
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

import uniedit_hf
from uniedit_hf import training
from uniedit_hf.former_modules import FORMER_MODULES
from uniedit_hf.models import bagel


HEAVY = ("torch", "transformers", "datasets", "diffusers", "trl", "numpy")


def run_python(code: str) -> dict:
    """What a fresh interpreter prints as JSON in its last line."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_import_is_light():
    # The time of the processor and not of the wall, so that a busy machine does not fail the test.
    code = f"""
import json, sys, time
start = time.process_time()
import uniedit_hf
seconds = time.process_time() - start
dir(uniedit_hf)
print(json.dumps({{"seconds": seconds, "heavy": [name for name in {HEAVY} if name in sys.modules]}}))
"""
    runs = [run_python(code) for _ in range(2)]
    assert min(run["seconds"] for run in runs) < 0.5
    assert runs[0]["heavy"] == []


@pytest.mark.parametrize("package", [uniedit_hf, bagel, training], ids=lambda package: package.__name__)
def test_public_names_resolve(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert name in dir(package)


@pytest.mark.parametrize("package", [uniedit_hf, bagel, training], ids=lambda package: package.__name__)
def test_editors_see_the_same_names(package):
    block = next(node for node in ast.parse(inspect.getsource(package)).body if isinstance(node, ast.If))
    seen = {
        alias.name: f"{package.__name__}.{line.module}" if line.level else line.module
        for line in block.body
        for alias in line.names
    }
    assert seen == package._MODULE_OF


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'BagelModle'"):
        uniedit_hf.BagelModle  # noqa: B018
    with pytest.raises(ImportError, match="BagelModle"):
        from uniedit_hf import BagelModle  # noqa: F401


@pytest.mark.parametrize("former", FORMER_MODULES)
def test_former_modules_name_the_new_one(former):
    new = FORMER_MODULES[former]
    assert find_spec(new) is not None
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module(former)
    assert str(caught.value) == f"{former} is now called {new}: import that."


def test_former_packages_name_the_new_one_however_they_are_imported():
    with pytest.raises(ModuleNotFoundError, match="uniedit_hf.small_world.quickstart: import that"):
        from uniedit_hf import quickstart  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="is now called uniedit_hf.calls"):
        from uniedit_hf.synthesis.calls.caller import Caller  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="No module named 'uniedit_hf.nothing'"):
        import uniedit_hf.nothing  # noqa: F401


@pytest.mark.parametrize("first", ["uniedit_hf", "transformers", "uniedit_hf.models.bagel.modeling_bagel"])
def test_bagel_is_registered_in_any_order_of_imports(first):
    code = f"""
import json, sys
if {first!r} == "transformers":
    from transformers import AutoModel, AutoProcessor
import {first}
import uniedit_hf
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = type(AutoConfig.for_model("bagel"))
print(json.dumps({{
    "config": config.__module__ + "." + config.__name__,
    "known": config in AutoModel._model_mapping and config in PROCESSOR_MAPPING,
    "light": "diffusers" not in sys.modules,
}}))
"""
    assert run_python(code) == {
        "config": "uniedit_hf.models.bagel.configuration_bagel.BagelConfig",
        "known": True,
        "light": not first.endswith("modeling_bagel"),
    }


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        (AutoModel, "BagelModel"),
        (AutoModelForImageTextToText, "BagelForConditionalGeneration"),
        (AutoModelForMultimodalLM, "BagelForConditionalGeneration"),
    ],
)
def test_auto_models(auto, name):
    assert auto._model_mapping[uniedit_hf.BagelConfig] is getattr(uniedit_hf, name)


def test_auto_processors():
    assert PROCESSOR_MAPPING[uniedit_hf.BagelConfig] is uniedit_hf.BagelProcessor
    assert processor_class_from_name("BagelProcessor") is uniedit_hf.BagelProcessor
    assert IMAGE_PROCESSOR_MAPPING[uniedit_hf.BagelConfig] == {"pil": uniedit_hf.BagelImageProcessor}
    assert get_image_processor_class_from_name("BagelImageProcessor") is uniedit_hf.BagelImageProcessor
