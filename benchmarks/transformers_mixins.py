"""Runs transformers' own test mixins over our models and processors: `python -m benchmarks.transformers_mixins`.

Fetches the source archive of the installed transformers release, takes its `tests/` folder, and runs
`benchmarks/transformers_mixin_cases.py` with it. Prints a line for each class with the number of tests that passed,
and one for each test that did not. Tests that the mixins skip by themselves are not counted. Exits with 1 if a test
failed that `EXPECTED` does not name.

The archive holds the common mixins alone. `--checkout FOLDER`, a checkout of transformers' repository at this release
or near it, adds what they import from elsewhere: `GenerationTesterMixin`, and the values that `ConfigTester` sets.
The images that processor tests fetch from the Hub are replaced by one made here.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import transformers
from PIL import Image


CASES = Path(__file__).with_name("transformers_mixin_cases.py")

# Modules under `tests/` that the archive leaves out, with empty stand-ins.
LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
# Replaces the helper that downloads test images: all of them are `picture.png`.
LOCAL_PATHS = """from pathlib import Path


def url_to_local_path(url):
    return str(Path(__file__).with_name("picture.png")) if url.endswith((".png", ".jpg")) else url
"""

# What `--checkout`, of an older release, names differently than the installed one.
OLDER_NAMES = {'"dynamic_full"': "None", "get_max_cache_shape": "get_max_length"}

# Tests that fail, each with the reason.
REFUSES = "a checkpoint that does not fill the model is refused, where transformers leaves weights at random"
FROZEN = "the frozen autoencoder is not recomputed, as it runs without gradients"
CACHED = "images are embedded first, so transformers always keeps a cache; use_cache=False gives the same text"
AHEAD = "images are read before candidates are added: returned states begin at the last token; the text is the same"
EXPECTED = {
    "test_base_model_prefix_loads_base_weights": REFUSES,
    "test_correct_missing_keys": REFUSES,
    "test_model_weights_reload_no_missing_tied_weights": REFUSES,
    "test_gradient_checkpointing_enable_disable": FROZEN,
    "test_peft_gradient_checkpointing_enable_disable": FROZEN,
    "test_reverse_loading_mapping": "official names are reached in several steps, of which the test looks at one",
    "test_assisted_decoding_matches_greedy_search_0_random": AHEAD,
    "test_assisted_decoding_matches_greedy_search_1_same": AHEAD,
    "test_assisted_decoding_sample": AHEAD,
    "test_beam_sample_generate_dict_output": CACHED,
    "test_beam_search_generate_dict_output": CACHED,
    "test_greedy_generate_dict_outputs": CACHED,
    "test_sample_generate_dict_output": CACHED,
    "test_generate_continue_from_past_key_values": "the test drops token_type_ids, without which images are refused",
    "test_generate_with_and_without_position_ids": "the test passes position_ids beside those of the processor",
    "test_left_padding_compatibility": "the test pads some columns of a context only, which is refused",
    "test_apply_chat_template_assistant_mask": "chats become tokens by segments: a template of the caller is refused",
    "test_subprocessor_defaults_0_text": "a text is a turn of a chat and has its markers",
    "test_replacement_offsets": "the tiny tokenizer of our tests has no tokens for the words of this test",
}


def main() -> None:
    """Prints what passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where archive and tests are kept; a temporary folder by default")
    parser.add_argument("--checkout", help="a checkout of transformers' repository at the installed release")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest, such as -k NAME")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_tests(folder, Path(options.checkout) if options.checkout else None)
        report = folder / "report.xml"
        path = os.pathsep.join([str(folder), str(CASES.parent.parent / "tests"), str(CASES.parent.parent)])
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider",
             "--rootdir", str(folder), "-c", os.devnull, f"--junitxml={report}", str(CASES), *options.pytest],
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, check=False,
        )  # fmt: skip
        sys.exit(print_report(report))


def make_tests(folder: Path, checkout: Path | None) -> None:
    """The package `transformers_tests` in `folder`."""
    package = folder / "transformers_tests"
    if package.is_dir():
        return
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    release = f"transformers=={transformers.__version__}"
    subprocess.run(
        [*pip, "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", folder, release],
        check=True,
    )
    subprocess.run([*pip, "install", "--no-deps", "--target", folder, "parameterized"], check=True)
    archive = folder / f"transformers-{transformers.__version__}.tar.gz"
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    shutil.copytree(archive.with_suffix("").with_suffix("") / "tests", package)
    (package / "__init__.py").touch()
    for name, stand_in in LEFT_OUT.items():
        source, target = checkout and checkout / "tests" / name, package / name
        target.parent.mkdir(exist_ok=True)
        (target.parent / "__init__.py").touch()
        text = source.read_text() if source and source.is_file() else stand_in
        for older, newer in OLDER_NAMES.items():
            text = text.replace(older, newer)
        target.write_text(text)
    if checkout:
        shutil.copytree(checkout / "utils" / "test_module", folder / "test_module")
    (folder / "fetch_hub_objects_for_ci.py").write_text(LOCAL_PATHS)
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(folder / "picture.png")


def print_report(report: Path) -> int:
    """Passed of all by class, and what failed; 1 if something failed that is not expected."""
    passed: collections.Counter = collections.Counter()
    failed: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = case.get("classname", "").rsplit(".", 1)[-1]
        problem = next((each for each in case if each.tag in ("failure", "error")), None)
        if problem is not None:
            failed[name][case.get("name", "")] = (problem.get("message") or "").splitlines()[0][:150]
        elif case.find("skipped") is None:
            passed[name] += 1
    unexpected = 0
    for name in sorted({*passed, *failed}):
        print(f"{name}: {passed[name]} of {passed[name] + len(failed[name])} passed")
        for test, message in failed[name].items():
            reason = EXPECTED.get(test)
            unexpected += reason is None
            print(f"  {test}: {reason or message}")
    return int(unexpected > 0)


if __name__ == "__main__":
    main()
