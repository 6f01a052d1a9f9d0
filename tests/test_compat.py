"""What we use of other libraries beyond their documented interface: every name exists, the table is complete, and a
BAGEL of somebody else does not stop ours."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from uniedit_hf import compat
from uniedit_hf.compat import OVERRIDDEN, UPSTREAM, Upstream


ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "uniedit_hf").rglob("*.py"), *(ROOT / "spaces").rglob("*.py")])
LIBRARIES = (
    "transformers",
    "datasets",
    "diffusers",
    "peft",
    "accelerate",
    "gradio",
    "trl",
    "huggingface_hub",
    "torch",
)
# Modules whose contents their libraries document.
DOCUMENTED = re.compile(
    r"transformers\.(utils|modeling_outputs|image_utils|image_processing_utils|models\.janus)|"
    r"datasets\.(distributed|exceptions)|huggingface_hub\.(errors|utils|hf_api)|accelerate\.utils|"
    r"torch\.(nn|nn\.functional|nn\.attention|nn\.attention\.flex_attention|utils\.data|utils\.checkpoint)|"
    r"torch\.(utils\.flop_counter|distributed\.\w+|profiler)"
)
# Private names that do not belong to another library: methods of named tuples, the standard library, and the stop that
# diffusers' users know, which our pipeline has as well.
OTHERS = {"_asdict", "_replace", "_fields", "_exit", "_value", "_interrupt"}


@pytest.mark.parametrize("entry", UPSTREAM, ids=lambda entry: f"{entry.name} {entry.attribute or ''}".strip())
def test_it_is_still_there(entry):
    if find_spec(entry.package) is None:
        pytest.skip(f"{entry.package} is an extra that is not installed")
    assert entry.problem() is None, entry.problem()


@pytest.mark.parametrize(
    ("entry", "gone"),
    [
        (Upstream("torch:no_such_name", "pipeline.py"), "has no no_such_name in torch"),
        (Upstream("torch.no_such_module:name", "pipeline.py"), "has no name in torch.no_such_module"),
        (
            Upstream("torch.nn:Module", "pipeline.py", attribute="_gone"),
            "has no attribute _gone that Module in torch.nn",
        ),
        (
            Upstream("torch.nn:Module._apply", "pipeline.py", ("fn", "old")),
            "has no parameter old of Module._apply in torch",
        ),
    ],
)
def test_what_is_gone_is_told_in_a_sentence(entry, gone):
    found = entry.problem()
    assert re.match(r"torch \d[\w.+]* has no ", found) and gone in found
    assert found.endswith("which pipeline.py of uniedit_hf needs.")


def test_used_by_names_our_modules():
    for entry in UPSTREAM:
        for place in re.split(", | and ", entry.used_by):
            assert any(path.exists() for path in (ROOT / "uniedit_hf" / place, ROOT / place)), entry


def private_names() -> dict[str, set[str]]:
    """Private attributes of objects other than `self` that our sources use and do not define -> the files."""
    used: dict[str, set[str]] = {}
    defined: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
                if isinstance(node, ast.ClassDef):
                    values = (each for each in node.body if isinstance(each, ast.Assign))
                    defined |= {
                        target.id for each in values for target in each.targets if isinstance(target, ast.Name)
                    }
            elif isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    if isinstance(node.ctx, ast.Store):
                        defined.add(node.attr)
                else:
                    used.setdefault(node.attr, set()).add(path.relative_to(ROOT).as_posix())
    overridden = {entry.name.rpartition(".")[2] for entry in OVERRIDDEN}
    return {name: files for name, files in used.items() if name not in (defined - overridden) | OTHERS}


def test_no_private_name_is_used_that_the_table_lacks():
    listed = {part for entry in UPSTREAM for part in re.split(r"[.:]", entry.name)} | {e.attribute for e in UPSTREAM}
    used = private_names()
    assert len(used) > 15  # the search finds them
    assert {name: files for name, files in used.items() if name not in listed} == {}


def test_no_undocumented_module_is_used_that_the_table_lacks():
    listed = {entry.name for entry in UPSTREAM} | {entry.name.rpartition(".")[0] for entry in UPSTREAM}
    unlisted, found = set(), 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            if node.module.partition(".")[0] in LIBRARIES and "." in node.module:
                names = {f"{node.module}:{each.name}" for each in node.names}
                found += len(names)
                unlisted |= set() if DOCUMENTED.fullmatch(node.module) else names - listed
    assert unlisted == set() and found > 50


def test_streams_are_followed_to_their_files(tmp_path):
    from datasets import Dataset, load_dataset

    Dataset.from_dict({"number": list(range(8))}).to_parquet(str(tmp_path / "rows.parquet"))
    stream = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train", streaming=True)
    steps = list(compat.stream_steps(stream.map(lambda row: row).shuffle(buffer_size=4)))
    assert len(steps) >= 3 and "files" in vars(steps[-1])["kwargs"]


# --- a BAGEL of somebody else -------------------------------------------------------------------------------------

STAND_IN = """
import warnings
from transformers import AutoConfig, PreTrainedConfig
{registration}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import uniedit_hf
    from transformers import AutoModelForMultimodalLM, AutoProcessor
from uniedit_hf import BagelConfig
found = AutoConfig.for_model("bagel")
assert type(found) is BagelConfig, type(found)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING
assert MODEL_FOR_MULTIMODAL_LM_MAPPING[BagelConfig].__module__.startswith("uniedit_hf.")
print(*(each.message for each in caught if "bagel" in str(each.message)), sep="\\n")
"""
BY_CALL = """
class TheirConfig(PreTrainedConfig):
    model_type = "bagel"
AutoConfig.register("bagel", TheirConfig)
"""
OF_THEIR_OWN = """
from transformers.models.auto import configuration_auto
configuration_auto.CONFIG_MAPPING_NAMES["bagel"] = "TheirConfig"
"""


@pytest.mark.parametrize(
    ("registration", "told"),
    [
        ("", ""),
        (BY_CALL, "The model type 'bagel' is taken by TheirConfig of __main__: uniedit_hf replaces it with its own"),
        (
            OF_THEIR_OWN,
            r"The model type 'bagel' is taken by TheirConfig of transformers \d[\w.]*: uniedit_hf replaces",
        ),
    ],
    ids=["nobody", "registered by a call", "brought by transformers"],
)
def test_another_bagel_is_replaced_and_told(registration, told):
    program = STAND_IN.format(registration=textwrap.dedent(registration))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(told, done.stdout) and (told or not done.stdout.strip())
