"""The official format of the paper's release: a JSONL manifest, and images beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from uniedit_hf.schema import TASK_CATEGORIES, stable_id
from uniedit_hf.synthesis.settings import Settings


ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
ENDINGS |= {"PPM": "ppm", "JPEG2000": "jp2"}


class OfficialWriter:
    """Writes rows of our schema as `uniedit_148k.jsonl` (`uniedit_40k.jsonl` for the shares of that name), with images
    named by their content. `uniedit dataset build` reads it."""

    def __init__(self, folder: Path, settings: Settings):
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        name = "40k" if settings.balance.shares == "40k" else "148k"
        self.manifest = open(folder / f"uniedit_{name}.jsonl", "w", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        category = row["task_category"]
        quality = row["scores"]["quality"]
        line = {
            "task_category": TASK_CATEGORIES[category] if isinstance(category, int) else category,
            "original_question": row["question"],
            "original_answer": row["answer"],
            "process_answer": row["answer"],
            "image_path": self._image(row["source_image"]["bytes"]),
            "edit_instruction": row["instruction"],
            "output_image_path": self._image(row["target_image"]["bytes"]),
            "subject": row["source"],
            **({"score": quality} if quality is not None else {}),
        }
        self.manifest.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.manifest.close()

    def _image(self, data: bytes) -> str:
        """The path of a picture below the folder."""
        digest = stable_id(data)
        path = f"images/{digest[:2]}/{digest}.{_ending(data)}"
        if not (self.folder / path).exists():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_bytes(data)
        return path


def _ending(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return ENDINGS.get(image.format, "png")
