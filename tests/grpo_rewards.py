"""Rewards for tests of reinforcement learning, which commands import by path."""

from __future__ import annotations

import numpy as np


def redness(images, **columns):
    """How much more red than blue an image has; `None` for texts."""
    return [
        None if each is None else float(np.asarray(each, dtype=float)[..., [0, 2]].mean((0, 1)) @ [1, -1]) / 255
        for each in images
    ]


def central_redness(images, **columns):
    """The same of the pixel in the middle. Processes that draw in other batches differ by rounding, which lifts some
    pixels to the next gray level. The mean of all would show that in the advantages; this pixel is hardly ever one.
    """
    return [None if each is None else redness([each.crop(middle(each))])[0] for each in images]


def middle(image):
    """(left, top, right, bottom) of its middle pixel."""
    left, top = image.width // 2, image.height // 2
    return left, top, left + 1, top + 1
