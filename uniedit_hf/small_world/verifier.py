"""The verifier: reads an edited image and reports its errors."""

from __future__ import annotations

from PIL import Image

from uniedit_hf.small_world.compare import EXACT, Tolerance, mismatches
from uniedit_hf.small_world.program import Program, apply
from uniedit_hf.small_world.reader import read_all
from uniedit_hf.small_world.scene import Scene


JUDGE = "pixel-reader"


def fault_of_target(target: Image.Image, scene: Scene, program: Program, tolerance: Tolerance = EXACT) -> str:
    """The reason why an edited image is rejected, or an empty string.

    Args:
        target: The edited image, 64 x 64.
        scene: The scene in the source image.
        program: The program of the edit.
        tolerance: The allowed difference.
    """
    found = read_all(target)
    if not found:
        return "the target cannot be read"
    wrong = mismatches(apply(program, scene), found, tolerance)
    return f"the target is wrong in {' and '.join(wrong)}" if wrong else ""
