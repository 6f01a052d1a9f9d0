"""The verifier: reads an edited image back and says what is wrong with it."""

from __future__ import annotations

from PIL import Image

from uniedit_hf.small_world.compare import EXACT, Tolerance, mismatches
from uniedit_hf.small_world.program import Program, apply
from uniedit_hf.small_world.reader import read_all
from uniedit_hf.small_world.scene import Scene


JUDGE = "pixel-reader"


def fault_of_target(target: Image.Image, scene: Scene, program: Program, tolerance: Tolerance = EXACT) -> str:
    """Why an edited image is rejected, or an empty string.

    Args:
        target: The edited image, 64 x 64.
        scene: What the source image shows.
        program: What was to be done.
        tolerance: How exact the result has to be.
    """
    found = read_all(target)
    if not found:
        return "the target cannot be read"
    wrong = mismatches(apply(program, scene), found, tolerance)
    return f"the target is wrong in {' and '.join(wrong)}" if wrong else ""
