"""Settings of each stage, and the thresholds below which a row is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from uniedit_hf.calls.section import Section, Share, Weight
from uniedit_hf.release.statistics import PUBLISHED_SHARES
from uniedit_hf.schema import TASK_CATEGORIES


class BenchmarkDataset(Section):
    """A data set that `load_dataset` knows, and its column of images."""

    dataset: str
    config: str | None = None
    split: str = "test"
    image: str = "image"


class Decontaminate(Section):
    """Rows that are kept out before any call is paid.

    Args:
        benchmarks: Folders of benchmark images.
        benchmark_datasets: Benchmark data sets.
        near_duplicates: Whether the same question with the same answer about an image that looks alike is dropped;
            the same question about the very same image always is.
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
        size: Number of edits; as many as the source gives if not set.
        shares: "148k" or "40k" for those of the paper, or a weight for each category.
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
        false_conditions: The share of outermost conditions that do not hold.
        unchanged: The share of conditions whose branch leaves the image as it is.
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
        min_words: Words at least.
        max_words: Words at most.
        similarity: From this share of common words on (intersection over union), two instructions for the same
            image are near duplicates, and the later one is dropped; null drops nothing but the very same edit.
    """

    min_words: PositiveInt = 5
    max_words: PositiveInt = 200
    similarity: Share | None = 0.8


class Edit(Section):
    """The image editor, or `exact` for easy-VQA.

    Args:
        backend: Its name under `backends`.
        pixels: About how many pixels are asked for.
        multiple: Sides asked for are multiples of this.
        max_stretch: By how much the sides of a result may differ in proportion from those of the source. Within it the
            result is resized to the proportions of the source, beyond it `misfit` says what happens. An editor that
            draws in no proportion so near gets the source with bars, which are cut off the result.
        misfit: Whether a result of other proportions is rejected or cropped around its middle.
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
        quality: The chat model that grades how a result looks, 1 to 5.
        min_quality: The least grade.
        min_unchanged: The least share of the image that stays the same in edits within the scene.
        ocr: Whether text that was to be rendered is read back.
        min_text_match: How much of that text has to be found, 0 to 1.
    """

    judge: str | None = None
    quality: str | None = None
    min_quality: Annotated[float, Field(ge=1, le=5)] = 3.0
    min_unchanged: Share = 0.0
    ocr: bool = False
    min_text_match: Share = 0.8
