"""Opens the image of a draft and checks whether it can be used, what it looks like, and whether a benchmark contains
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from uniedit_hf.calls.messages import EncodedImage, off_loop
from uniedit_hf.images import ImageError
from uniedit_hf.release.decontamination import Benchmarks, Match, perceptual_hash, pixel_hash, tells_apart
from uniedit_hf.synthesis.records import Draft, Rejection


STAGE = "inspect"


class ImageInspection:
    """Decodes an image once for consecutive questions about it.

    Args:
        benchmarks: Images to exclude.
        near: Whether to compute perceptual hashes, for `duplicates`.
    """

    def __init__(self, benchmarks: Sequence[Benchmarks], near: bool):
        self.benchmarks, self.near = benchmarks, near
        self.seen = lru_cache(maxsize=256)(self._seen)

    async def __call__(self, draft: Draft) -> Draft | Rejection:
        try:
            image, hashes, match = await off_loop(self.seen, draft.image)
        except ImageError as error:
            return draft.rejected(STAGE, "unusable image", str(error))
        if match is not None:
            return draft.rejected(STAGE, "in a benchmark", f"the image is like {match.benchmark}: {match.kind}.")
        return draft.with_(image=image, hashes=hashes)

    def _seen(self, image: EncodedImage) -> tuple[EncodedImage, tuple[bytes, bytes | None], Match | None]:
        """The image (one object, so that rows share cached properties), its hashes, and its match in a benchmark."""
        pixels = image.pixels()
        perceptual = None
        if self.near:
            hashed = perceptual_hash(pixels)
            perceptual = hashed.tobytes() if tells_apart(hashed) else None
        matches = (benchmark.image_match("", "source_image", pixels) for benchmark in self.benchmarks)
        return image, (pixel_hash(pixels), perceptual), next(filter(None, matches), None)
