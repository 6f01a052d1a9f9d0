"""Drawing and verifying targets: sizes and proportions, what is sent to an editor, pixels, text and judges."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, strategies as st
from PIL import Image, ImageDraw, ImageFont
from synthesis_drafts import draft, minimal, photo

from uniedit_hf.calls.caller import NoAnswer
from uniedit_hf.calls.messages import EncodedImage, Reply, encoded
from uniedit_hf.reading_text import text_match
from uniedit_hf.synthesis.geometry import fitted, frame_for, nearest_ratio, size_to_ask, with_bars, without_bars
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Rejection
from uniedit_hf.synthesis.settings import Edit, settings_from
from uniedit_hf.synthesis.stages.draw import edit
from uniedit_hf.synthesis.stages.verify import unchanged_share, verify


@given(st.integers(16, 4000), st.integers(16, 4000))
def test_what_is_asked_for_has_the_proportions_of_the_source(width, height):
    settings = Edit(backend="x")
    asked = size_to_ask((width, height), settings)
    assert all(side % 16 == 0 and side >= 16 for side in asked)
    if 1 / 4 < width / height < 4:
        assert asked[0] / asked[1] == pytest.approx(width / height, rel=0.04)
        assert asked[0] * asked[1] == pytest.approx(settings.pixels, rel=0.05)


@given(st.integers(20, 300), st.integers(20, 300), st.floats(0.7, 1.4))
def test_results_are_fitted_to_the_source_or_rejected(width, height, stretch):
    result = Image.new("RGB", (max(1, round(width * 2 * stretch)), height * 2))
    for misfit in ("reject", "crop"):
        fit = fitted(result, (width, height), Edit(backend="x", misfit=misfit))
        if fit is None:
            assert misfit == "reject" and abs(stretch - 1) > 0.04
            continue
        image, how = fit
        assert (
            abs(image.width - image.height * width / height) <= 1.5
            or abs(image.height - image.width * height / width) <= 1.5
        )
        assert how == "none" or image.size != result.size


def test_the_nearest_proportion_is_taken():
    ratios = {"1:1": 1.0, "3:2": 1.5, "2:3": 2 / 3}
    assert [nearest_ratio(size, ratios) for size in ((100, 90), (90, 60), (50, 90))] == ["1:1", "3:2", "2:3"]


class Painter:
    """An editor that draws one image, or what it is sent with twice as many pixels, in some proportions only."""

    def __init__(self, image: Image.Image | None = None, ratios: dict[str, float] | None = None):
        self.image, self.ratios, self.backend = image, ratios or {}, self

    async def reply(self, request):
        self.request, sent = request, request.image.pixels()
        image = self.image or sent.resize((2 * sent.width, 2 * sent.height))
        return Reply("painter-1", image=EncodedImage(encoded(image)))


@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from([{"1:1": 1.0}, {"3:2": 1.5, "2:3": 2 / 3}]))
def test_bars_fill_up_to_a_proportion_and_come_off_again(width, height, ratios):
    settings = Edit(backend="x")
    source = photo(1, (width, height))
    frame = frame_for(source.size, ratios, settings)
    assert frame_for(source.size, {}, settings) == source.size
    if frame == source.size:
        return
    ratio = ratios[nearest_ratio(source.size, ratios)]
    assert abs(frame[0] - frame[1] * ratio) <= 1 or abs(frame[1] - frame[0] / ratio) <= 1
    assert frame[0] >= width and frame[1] >= height and (frame[0] == width or frame[1] == height)
    assert without_bars(with_bars(source, frame), source.size, frame).tobytes() == source.tobytes()
    larger = with_bars(source, frame).resize((3 * frame[0], 3 * frame[1]), Image.Resampling.NEAREST)
    assert without_bars(larger, source.size, frame).size == (3 * width, 3 * height)


def test_an_editor_of_few_proportions_gets_bars_and_everything_stays_at_its_place():
    row = draft(instruction="Do.", expected="Done.", image=EncodedImage(encoded(photo(9, (128, 96)))))
    painter = Painter(ratios={"1024x1024": 1.0, "1536x1024": 1.5, "1024x1536": 2 / 3})
    made = asyncio.run(edit(row, painter, Edit(backend="x", pixels=144 * 96), seed=0))
    assert painter.request.image.size == (144, 96) and painter.request.size == (144, 96)
    assert prompt("edit_bars").text in painter.request.prompt
    assert made.target.size == (256, 192) and unchanged_share(row.image, made.target) > 0.95
    assert (made.choices["drawn"], made.choices["resize"]) == ("288x192", "bars")
    new = asyncio.run(edit(row.with_(canvas="new"), painter, Edit(backend="x"), seed=0))
    assert new.choices["resize"] == "none" and prompt("edit_bars").text not in painter.request.prompt


def test_the_edit_records_its_sizes_and_an_unchanged_target_is_not_paid_for():
    row = draft(instruction="Do.", expected="Done.")
    wide = asyncio.run(edit(row, Painter(photo(9, (196, 128))), Edit(backend="x"), seed=0))
    assert (wide.choices["resize"], wide.choices["drawn"], wide.target.size) == ("stretch", "196x128", (196, 131))
    square = asyncio.run(edit(row, Painter(photo(9, (128, 128))), Edit(backend="x"), seed=0))
    assert square.reason == "other proportions"
    new = asyncio.run(edit(row.with_(canvas="new"), Painter(photo(9, (128, 128))), Edit(backend="x"), seed=0))
    assert new.target.size == (128, 128)
    same = asyncio.run(edit(row.with_(unchanged=True), None, Edit(backend="x"), seed=0))
    assert same.target == row.image and same.editor == "copy"


@pytest.mark.parametrize("right", [True, False])
def test_a_source_that_was_to_be_left_as_it_is_goes_before_the_judge_too(right):
    row = draft(instruction="Do.", expected="Done.", unchanged=True)
    row = asyncio.run(edit(row, None, Edit(backend="x"), seed=0))
    judge = Judge({"premise": right, "change": True, "rest": True, "reason": "r"})
    result = asyncio.run(verify(row, judge, None, None, settings_from(minimal(), "it").verify))
    if right:
        assert result.scores == {"preservation": 1.0, "instruction": 1.0} and result.judge == "judge-1"
    else:
        assert result.reason == "the judge found the premise wrong"


def test_pixels_tell_what_was_kept():
    source = photo(3)
    changed = source.copy()
    ImageDraw.Draw(changed).rectangle((0, 0, 47, 31), fill="white")
    share = unchanged_share(EncodedImage(encoded(source)), EncodedImage(encoded(changed.resize((192, 128)))))
    assert share == pytest.approx(0.75, abs=0.06)
    same = EncodedImage(encoded(source))
    row = draft(image=same, target=same, editor="e", instruction="Do.")
    settings = settings_from(minimal(verify={"min_unchanged": 0.9}), "it").verify
    assert asyncio.run(verify(row, None, None, None, settings)).reason == "nothing was changed"
    row = row.with_(target=EncodedImage(encoded(changed)))
    assert asyncio.run(verify(row, None, None, None, settings)).reason == "too much was changed"


class Judge:
    def __init__(self, answer):
        self.given = answer
        self.settings = type("Settings", (), {"model": "judge-1"})

    async def answer(self, request):
        return request.answer.model_validate(self.given) if isinstance(self.given, dict) else self.given


@pytest.mark.parametrize(
    ("verdict", "grade", "reason"),
    [
        ({"premise": False, "change": False, "rest": True, "reason": "r"}, 5, "the judge found the premise wrong"),
        ({"premise": True, "change": True, "rest": True, "reason": "r"}, 2, "low quality"),
        (NoAnswer("the model refused", "no"), 5, "the model refused"),
        ({"premise": True, "change": True, "rest": True, "reason": "r"}, 4, None),
    ],
)
def test_judges_decide(verdict, grade, reason):
    row = draft(target=EncodedImage(encoded(photo(8))), editor="e", instruction="Do.", expected="Done.")
    settings = settings_from(minimal(), "it").verify
    result = asyncio.run(verify(row, Judge(verdict), Judge({"reason": "r", "quality": grade}), None, settings))
    if reason:
        assert isinstance(result, Rejection) and result.reason == reason
    else:
        assert result.scores["quality"] == 4.0 and result.scores["instruction"] == 1.0 and result.judge == "judge-1"


@pytest.mark.parametrize(
    ("wanted", "found", "low", "high"),
    [
        ("Open at 9", "shop\nOPEN AT 9\ndaily", 1, 1),
        ("Open at 9", "0pen at 9", 0.8, 0.99),
        ("Open at 9", "closed for good", 0, 0.6),
        ("twelve", "the total is 12.", 1, 1),
        ("a long text about a dog that runs over the grass", "a long text about a dog that runs ouer the gra", 0.9, 1),
        ("a long text about a dog that runs over the grass", "something else entirely, for a change", 0, 0.4),
        ("x", "", 0, 0),
    ],
)  # fmt: skip
def test_read_text_is_compared(wanted, found, low, high):
    assert low <= text_match(wanted, found) <= high


def test_text_is_really_read(tmp_path):
    pytest.importorskip("rapidocr", reason="rapidocr is not installed")
    from uniedit_hf.calls.cache import CallCache
    from uniedit_hf.synthesis.ocr import TextReader

    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((20, 30), "Open at 9", fill="black", font=ImageFont.load_default(36))
    cache = CallCache(tmp_path / "c.sqlite", tmp_path / "p")
    reader = TextReader(cache)
    found = asyncio.run(reader.read(EncodedImage(encoded(image))))
    assert text_match("Open at 9", found) > 0.9 and text_match("Closed today", found) < 0.7
    reader.engine = None  # what was read is kept
    assert asyncio.run(TextReader.read(reader, EncodedImage(encoded(image)))) == found
    cache.close()
