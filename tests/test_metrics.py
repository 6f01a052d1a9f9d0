"""The modules of `metrics/`, loaded from their folders as users of `evaluate` do."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from uniedit_hf.evaluation.scorers.pixels import score_edit


METRICS = Path(__file__).parents[1] / "metrics"


def load(name: str):
    evaluate = pytest.importorskip("evaluate", reason="evaluate is not installed: pip install uniedit_hf[evaluation]")
    return evaluate.load(str(METRICS / name))


def half(left: str, right: str) -> Image.Image:
    image = Image.new("RGB", (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


@pytest.mark.parametrize(
    "result, expected",
    [
        (half("red", "blue"), {"success": 1.0, "preservation": 1.0}),
        (half("red", "white"), {"success": 0.0, "preservation": 1.0}),
        (half("white", "blue"), {"success": 1.0, "preservation": 0.0}),
        (half("#f00c0c", "blue"), {"success": 1.0, "preservation": 1.0}),  # not to be seen
    ],
)
def test_edits_are_scored_by_what_changes_and_what_stays(result, expected):
    assert score_edit(result, half("red", "white"), half("red", "blue")) == expected


def test_nothing_to_change_has_no_success():
    same = half("red", "blue")
    assert score_edit(same, same, same) == {"success": None, "preservation": 1.0}
    with pytest.raises(ValueError, match="differ in size"):
        score_edit(same, same.resize((4, 4)), same)


def test_edit_success_loads_from_its_folder():
    found = load("edit_success").compute(
        predictions=[half("red", "blue"), half("red", "white")],
        references=[half("red", "blue")] * 2,
        sources=[half("red", "white")] * 2,
    )
    assert found == {"success": 0.5, "preservation": 1.0}


def test_exact_match_loads_from_its_folder():
    found = load("vqa_exact_match").compute(predictions=["Red.", "two", "no"], references=["red", "two", "yes"])
    assert found["exact_match"] == pytest.approx(2 / 3)
