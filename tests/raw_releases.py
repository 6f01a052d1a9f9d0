"""Raw releases in the official format, made from easy-VQA, with everything wrong in them that a release can have."""

from __future__ import annotations

import io
import json
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from uniedit_hf.release.image_store import MAX_IMAGE_BYTES
from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.small_world.easy_vqa import VqaRow, load_easy_vqa


LAYOUTS = ("folder", "tar", "zip")
SHARDS = 3


@dataclass
class MadeRelease:
    """What was written.

    Args:
        folder: The release.
        good: Per line the source, the instruction and the target of a row that has nothing wrong.
        faults: Per line the reason that is expected.
    """

    folder: Path
    good: dict[int, tuple[bytes, str, bytes]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)


def make_release(folder: Path, num_rows: int, layout: str = "folder", config: str = "148k", faulty: bool = True):
    """Writes a manifest and its images.

    Args:
        folder: Made if it is missing.
        num_rows: Lines of the manifest.
        layout: One of `LAYOUTS`.
        config: `148k` or `40k`.
        faulty: Whether to plant one of every fault, spread over the lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "secret.png").write_bytes(picture_bytes(3999))
    made = MadeRelease(folder)
    planted = faults_of(layout) if faulty else []
    lines_of_faults = {7 + index * (num_rows // (len(planted) + 1)): fault for index, fault in enumerate(planted)}
    files: list[tuple[str, bytes]] = []
    with open(folder / f"uniedit_{config}.jsonl", "wb") as manifest:
        for number, entry in enumerate(entries(num_rows), start=1):
            source, target = picture_bytes(number), picture_bytes(number + 1)
            names = entry["image_path"], entry["output_image_path"]
            if number in lines_of_faults:
                reason, change = lines_of_faults[number]
                made.faults[number] = reason
                line, extra = change(entry, source, folder)
                files += [*extra, (names[1], target)]
            else:
                line, extra = json.dumps(entry).encode(), [(names[0], source), (names[1], target)]
                made.good[number] = (source, entry["edit_instruction"], target)
                files += extra
            manifest.write(line + b"\n")
    {"folder": write_folder, "tar": write_tars, "zip": write_zips}[layout](folder, files)
    return made


def entries(count: int) -> Iterator[dict]:
    """Lines of the official format."""
    rows = questions()
    for number in range(1, count + 1):
        row = rows[number % len(rows)]
        yield {
            "task_category": TASK_CATEGORIES[number % len(TASK_CATEGORIES)],
            "original_question": row.question,
            "original_answer": f"The answer is {row.answer}.",
            "process_answer": row.answer,
            "image_path": f"images/easy/{number}.png",
            "edit_instruction": f'Answer "{row.question}" and paint number {number}.',
            "output_image_path": f"edited/easy/{number}_0a1b2c3d.png",
            "analysis": "clear",
            "score": 3 + number % 3,
        }


@cache
def questions() -> list[VqaRow]:
    return load_easy_vqa("train")


@cache
def pictures() -> list[Path]:
    return sorted({row.image_path for row in questions()})


def picture_bytes(number: int) -> bytes:
    """An image of easy-VQA, as it is stored."""
    return pictures()[number % len(pictures())].read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Faults: the reason, and what becomes of the line and its source image


def faults_of(layout: str) -> list[tuple[str, Callable]]:
    everywhere = [
        ("image not found", lambda entry, source, folder: (_line(entry), [])),
        ("unusable image", lambda entry, source, folder: (_line(entry), [(entry["image_path"], source[:-60])])),
        ("unusable image", lambda entry, source, folder: (_line(entry), [(entry["image_path"], bomb())])),
        ("unusable image", lambda entry, source, folder: (_line(entry), [(entry["image_path"], b"no picture")])),
        ("path with '..'", climbing),
        ("absolute path", absolute),
        ("not UTF-8", lambda entry, source, folder: (_line(entry).replace(b"Answer", b"\xff\xfe"), [])),
        ("not JSON", lambda entry, source, folder: (_line(entry)[:-9], [])),
        ("not JSON", lambda entry, source, folder: (b"[1, 2]", [])),
        ("wrong value", lambda entry, source, folder: (_line(entry | {"edit_instruction": None}), [])),
        ("no instruction", lambda entry, source, folder: (_line(entry | {"edit_instruction": "no_instr"}), [])),
        ("unknown category", unknown_category),
    ]
    link = ("link out of the folder" if layout == "folder" else "link in an archive", linked)
    twice = ("ambiguous name", twice_named)
    inflated = ("too many bytes", lambda entry, source, folder: (_line(entry), [(entry["image_path"], ZEROS)]))
    return everywhere + {"folder": [link], "tar": [link, twice], "zip": [link, twice, inflated]}[layout]


LINK = b"link to ../../../secret.png"
ZEROS = b"zeros without end"


def climbing(entry, source, folder):
    path = "images/../../secret.png"
    return _line(entry | {"image_path": path}), [(path, source)]


def absolute(entry, source, folder):
    path = str(folder.parent / "secret.png")
    return _line(entry | {"image_path": path}), [(path, source)]


def linked(entry, source, folder):
    return _line(entry), [(entry["image_path"], LINK)]


def twice_named(entry, source, folder):
    return _line(entry), [(entry["image_path"], source), (entry["image_path"], source[::-1])]


def unknown_category(entry, source, folder):
    return _line(entry | {"task_category": "yes_no"}), [(entry["image_path"], source)]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims to be 50,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode()


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def write_folder(folder: Path, files: list[tuple[str, bytes]]) -> None:
    for name, data in files:
        if name.startswith("/") or ".." in name:
            continue  # what the path leads to is there already
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data == LINK:
            path.symlink_to("../../../secret.png")
        else:
            path.write_bytes(data)


def write_tars(folder: Path, files: list[tuple[str, bytes]]) -> None:
    for shard in range(SHARDS):
        with tarfile.open(folder / f"pictures-{shard}.tar", "w") as archive:
            for name, data in files[shard::SHARDS]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if data == LINK:
                    member.type, member.linkname, member.size = tarfile.SYMTYPE, "../../../secret.png", 0
                archive.addfile(member, io.BytesIO(data))


def write_zips(folder: Path, files: list[tuple[str, bytes]]) -> None:
    for shard in range(SHARDS):
        with zipfile.ZipFile(folder / f"pictures-{shard}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in files[shard::SHARDS]:
                member = zipfile.ZipInfo(name)
                member.compress_type = zipfile.ZIP_DEFLATED
                if data == LINK:
                    member.external_attr = (stat.S_IFLNK | 0o777) << 16
                with archive.open(member, "w", force_zip64=True) as file:
                    for piece in zeros() if data == ZEROS else [data]:
                        file.write(piece)


def zeros() -> Iterator[bytes]:
    yield from [bytes(2**20)] * (MAX_IMAGE_BYTES // 2**20 + 1)
