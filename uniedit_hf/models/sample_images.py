"""What the processors of all families do with the images of a sample."""

from __future__ import annotations

from dataclasses import replace

import torch

from uniedit_hf.segments import ImageSegment, Sample, TextSegment


class SampleImages:
    """Opens and prepares the images of samples; how one is prepared is the processor's own."""

    def with_pixels(self, sample: Sample) -> Sample:
        """The sample with its images opened and prepared, so that what is wrong with one of them shows by itself.

        Raises:
            ImageError: If an image cannot be read, or is not of the size that its row states.
        """
        return sample.with_segments(
            [
                segment if image is None else replace(segment, image=image)
                for segment, image in zip(sample.segments, self._pixels(sample))
            ]
        )

    def _pixels(self, sample: Sample) -> list[torch.Tensor | None]:
        """What the model takes of every image, pixels (3, h, w) for one; None for texts and what is dropped."""
        name = f"The image of sample {sample.id!r}" if sample.id else "The image"
        return [
            None if isinstance(segment, TextSegment) or segment.dropped else self._prepare(segment, name, sample.id)
            for segment in sample.segments
        ]

    def _prepare(self, segment: ImageSegment, name: str, sample_id: str) -> torch.Tensor:
        raise NotImplementedError
