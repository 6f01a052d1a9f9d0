"""The exact editor: reads what an image shows, applies a program to it, and draws the result."""

from __future__ import annotations

from PIL import Image

from uniedit_hf.small_world.program import Program, apply
from uniedit_hf.small_world.scene import Scene, render


EDITOR = "exact-editor"


def edited_image(image: Image.Image, scene: Scene, program: Program) -> Image.Image:
    """The image after the program.

    Args:
        image: 64 x 64 RGB; returned unchanged if the program changes nothing.
        scene: The scene that the reader found in it.
        program: The program to apply.
    """
    after = apply(program, scene)
    return image if after == [scene] else render(*after)
