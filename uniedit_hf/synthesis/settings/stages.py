"""Settings of each stage, and the thresholds below which a row is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from uniedit_hf.calls.section import Section, Share, Weight
from uniedit_hf.release.statistics import PUBLISHED_SHARES
from uniedit_hf.schema import TASK_CATEGORIES


class BenchmarkDataset(Section):
    """A data set for `load_dataset`, and its column of images."""

    dataset: str
    config: str | None = None
    split: str = "test"
    image: str = "image"


class Decontaminate(Section):
    """Rows to exclude before any call is paid.

    Args:
        benchmarks: Folders of benchmark images.
        benchmark_datasets: Benchmark data sets.
        near_duplicates: Whether to drop a question with the same answer about a similar image; the same question about
            the same image is always dropped.
    """

    benchmarks: list[Path] = []
    benchmark_datasets: list[BenchmarkDataset] = []
    near_duplicates: bool = True


class Classify(Section):
    """The chat model that classifies questions, or `rules` for easy-VQA. Rows with a category need no call."""

    backend: str


class Balance(Section):
    """The number of edits, and the share of each category.

    Args:
        size: Number of edits; by default all that the source gives.
        shares: "148k" or "40k" for the shares of the paper, or a weight for each category.
    """

    size: PositiveInt | None = None
    shares: Literal["148k", "40k"] | dict[Literal[TASK_CATEGORIES], Weight] = "148k"

    @field_validator("shares")
    @classmethod
    def _some_weight(cls, shares):
        if isinstance(shares, dict) and not sum(shares.values()):
            raise ValueError("needs a category with a weight above 0")
        return shares

    @property
    def weights(self) -> dict[str, float]:
        """A weight for every category."""
        chosen = PUBLISHED_SHARES[self.shares] if isinstance(self.shares, str) else self.shares
        return {category: chosen.get(category, 0.0) for category in TASK_CATEGORIES}


class Instruct(Section):
    """The chat model that writes instructions, or `rules` for easy-VQA.

    Args:
        backend: Its name under `backends`.
        depths: A weight for each number of nested conditions, 0 to 3.
        false_conditions: The share of outermost conditions that are false.
        unchanged: The share of conditions whose branch leaves the image unchanged.
    """

    backend: str
    depths: dict[Annotated[int, Field(ge=0, le=3)], Weight] = {1: 0.5, 2: 0.3, 3: 0.2}
    false_conditions: Share = 0.5
    unchanged: Share = 0.2

    @field_validator("depths")
    @classmethod
    def _some_weight(cls, depths):
        if not sum(depths.values()):
            raise ValueError("needs a depth with a weight above 0")
        return depths


class Screen(Section):
    """Limits for instructions.

    Args:
        min_words: Minimum number of words.
        max_words: Maximum number of words.
        similarity: Two instructions for the same image are near duplicates if they share at least this share of words
            (intersection over union); the later one is dropped. null drops only identical edits.
    """

    min_words: PositiveInt = 5
    max_words: PositiveInt = 200
    similarity: Share | None = 0.8


class Edit(Section):
    """The image editor, or `exact` for easy-VQA.

    Args:
        backend: Its name under `backends`.
        pixels: Approximate number of pixels to request.
        multiple: Requested sides are multiples of this.
        max_stretch: The largest relative difference in aspect ratio between result and source at which the result is
            resized to the source's ratio; beyond it `misfit` applies. For an editor without a ratio that close, the
            source is letterboxed, and the bars are cropped from the result.
        misfit: Whether a result with another aspect ratio is rejected or center-cropped.
    """

    backend: str
    pixels: PositiveInt = 1024 * 1024
    multiple: PositiveInt = 16
    max_stretch: Share = 0.05
    misfit: Literal["reject", "crop"] = "reject"


class Verify(Section):
    """Checks of the results; a check that is not set is skipped.

    Args:
        judge: The chat model that compares source and result, or `rules` for easy-VQA.
        quality: The chat model that grades the look of a result, 1 to 5.
        min_quality: The lowest accepted grade.
        min_unchanged: The smallest accepted share of unchanged pixels in edits within the scene.
        ocr: Whether to check rendered text by OCR.
        min_text_match: The share of that text that must be found, 0 to 1.
    """

    judge: str | None = None
    quality: str | None = None
    min_quality: Annotated[float, Field(ge=1, le=5)] = 3.0
    min_unchanged: Share = 0.0
    ocr: bool = False
    min_text_match: Share = 0.8
