"""How fast a data set is built from the official format, and how much memory that takes.

    python -m benchmarks.dataset_build [--rows 10000 100000] [--side 64] [--images 4000] [--layout folder|tar]

Each size is built by the command line in a process of its own, whose largest resident memory is taken. The images
are easy-VQA's, or drawn with grain if `--side` is not 64; every one is decoded to its end, source and target.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from benchmarks.official_release import write_official_release


BUILD = "from uniedit_hf.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--side", type=int, default=64, help="width and height of the images in pixels")
    parser.add_argument("--pictures", type=int, default=4000, help="number of different images")
    parser.add_argument("--layout", choices=["folder", "tar"], default="folder")
    options = parser.parse_args()
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            write_official_release(work / "raw", rows, options.side, options.pictures)
            if options.layout == "tar":
                pack(work / "raw")
            seconds, peak = measured_build(work)
            size = sum(path.stat().st_size for path in work.glob("out/*/*.parquet"))
            print(
                f"{rows:,} rows of {options.side} px in {options.layout}: "
                f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s, peak memory {peak >> 20:,} MiB, "
                f"{size >> 20:,} MiB of Parquet",
                flush=True,
            )


def pack(folder: Path) -> None:
    """The images into a tar file beside the manifest."""
    with tarfile.open(folder / "images.tar", "w") as archive:
        archive.add(folder / "images", "images")
    shutil.rmtree(folder / "images")


def measured_build(work: Path) -> tuple[float, int]:
    """Seconds, and the most bytes that were resident."""
    command = [sys.executable, "-c", BUILD, "dataset", "build"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--source", str(work / "raw"), "--output_dir", str(work / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"The build ended with {status}.")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
