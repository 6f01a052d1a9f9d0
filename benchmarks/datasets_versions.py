"""Whether datasets 3.6, 4.8 and 5.2 each load the data set, in every way there is.

    python -m benchmarks.datasets_versions [--versions 3.6.0 4.8.0 5.2.0] [--folder FOLDER]

For each version an environment is made with `datasets` and what our loading script needs (Pillow, NumPy, wrapt), and
our wheel without its requirements. In it, from fresh processes: a built folder; the full name and the bare name, from
a Hub on loopback; the bare name with raw data; and on datasets 3 the loading script as a script. Each way is loaded
whole and streamed, and all must give the same rows. Needs the network or a mirror of PyPI.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.official_release import write_official_release
from uniedit_hf.release.build import build


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # the Hub on loopback

ROWS = 60
REPO = "uniedit-hf/uniedit-148k"

CHECK = """
import hashlib
import sys
{imports}
from datasets import load_dataset

for streaming in (False, True):
    rows = load_dataset({arguments}, split="train", streaming=streaming)
    digest, count, pixels = hashlib.sha256(), 0, 0
    for row in rows:
        digest.update((row["id"] + row["instruction"] + str(row["source_size"])).encode())
        count += 1
        pixels += row["source_image"].size[0] * row["target_image"].size[1]
    print(count, pixels, digest.hexdigest()[:12])
"""


def main() -> None:
    from hub import running_hub

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=["3.6.0", "4.8.0", "5.2.0"])
    parser.add_argument("--folder", type=Path, help="where environments are kept and used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_official_release(work / "raw", ROWS)
        build(work / "raw", work / "out", rows_per_file=16)
        wheel = build_wheel(work / "source")
        environments = options.folder or work
        seen: set[tuple[str, ...]] = set()
        with running_hub(work / "hub") as hub:
            publish = "from uniedit_hf.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
            command = [sys.executable, "-c", publish, "dataset", "publish"]
            run([*command, "--input_dir", work / "out", "--repo_id", REPO], hub.environment)
            for version in options.versions:
                python = environment(environments / version, version, wheel)
                for way, (imports, arguments) in ways(work, version).items():
                    home = work / "homes" / version / way.replace(" ", "-")
                    code = CHECK.format(imports=imports, arguments=arguments)
                    lines = run([python, "-c", code], {**hub.environment, "HF_HOME": home}).splitlines()[-2:]
                    seen.update(map(tuple, (line.split() for line in lines)))
                    print(f"datasets {version}  {way:32} {'; streamed: '.join(lines)}", flush=True)
    if len(seen) != 1:
        sys.exit(f"The rows differ: {sorted(seen)}")
    print("All the same rows.")


def ways(work: Path, version: str) -> dict[str, tuple[str, str]]:
    """The import and the arguments of `load_dataset` for each way."""
    ours = "import uniedit_hf"
    found = {
        "a built folder": ("", repr(str(work / "out"))),
        "the full name": ("", repr(REPO)),
        "the bare name": (ours, '"uniedit-148k"'),
        "the bare name with raw data": (ours, f'"uniedit-148k", data_dir={str(work / "raw")!r}'),
    }
    if version.startswith("3."):
        script = str(ROOT / "dataset_builder" / "uniedit_148k.py")
        found["the script itself"] = ("", f"{script!r}, data_dir={str(work / 'raw')!r}, trust_remote_code=True")
    return found


def environment(folder: Path, version: str, wheel: Path) -> Path:
    """The interpreter of an environment with one version of datasets and our wheel."""
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", f"datasets=={version}", "pillow", "numpy", "wrapt"])
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel])
    return python


def build_wheel(folder: Path) -> Path:
    """Our wheel, built from a copy of the files that git knows."""
    names = run(["git", "-C", ROOT, "ls-files"]).splitlines()
    for name in names:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, folder])
    return next(folder.glob("*.whl"))


def run(command: list, variables: dict | None = None) -> str:
    settings = {name: str(value) for name, value in (variables or {}).items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "UNIEDIT_"))}
    done = subprocess.run(
        list(map(str, command)), env=inherited | settings, cwd=tempfile.gettempdir(), capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))[:300]}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
