"""The stages by themselves, on drawn inputs where a rule holds in general, and the settings with their mistakes."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml
from datasets import Dataset, Image as ImageFeature
from hypothesis import given, strategies as st
from PIL import Image, ImageDraw, ImageFont

from uniedit_hf.cli import main
from uniedit_hf.cli.parsing import CommandParser
from uniedit_hf.cli.synthesize import run as command
from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis import benchmark_hashes as benchmark_hashes_module
from uniedit_hf.synthesis.benchmark_hashes import benchmark_hashes
from uniedit_hf.synthesis.calls.caller import NoAnswer
from uniedit_hf.synthesis.calls.messages import Picture, Reply, encoded
from uniedit_hf.synthesis.flow import Passed, at_once
from uniedit_hf.synthesis.geometry import (
    fitted,
    frame_for,
    nearest_ratio,
    size_to_ask,
    with_bars,
    without_bars,
)
from uniedit_hf.synthesis.ocr import text_match
from uniedit_hf.synthesis.plans import FONTS, MEDIA, VARIANTS, draw_choices
from uniedit_hf.synthesis.prompt_texts import FOLDER, prompt
from uniedit_hf.synthesis.records import Draft, Rejection, variant_choices, variant_text
from uniedit_hf.synthesis.settings import (
    Balance as BalanceSettings,
    Decontaminate,
    Edit,
    Instruct,
    Screen,
    settings_from,
)
from uniedit_hf.synthesis.stages.balance import Balance, quotas
from uniedit_hf.synthesis.stages.duplicates import SeenBefore
from uniedit_hf.synthesis.stages.edit import edit, prompt_for
from uniedit_hf.synthesis.stages.instruct import Writing, instruct
from uniedit_hf.synthesis.stages.look import Look
from uniedit_hf.synthesis.stages.screen import leaks, screen
from uniedit_hf.synthesis.stages.verify import unchanged_share, verify


ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "synthesis").glob("*.yaml"))


def photo(seed: int, size=(96, 64)) -> Image.Image:
    """Smooth noise that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def draft(number: int = 0, **fields) -> Draft:
    given = {
        "position": (number, 0), "id": str(number), "image": Picture(encoded(photo(number))), "question": "how many?",
        "answer": "two", "short_answer": "two", "source": "s", "category": "count",
    }  # fmt: skip
    return Draft(**(given | fields))


# ---- screen


@pytest.mark.parametrize(
    ("instruction", "question", "answer", "leak"),
    [
        ("Paint the car red.", "what color is the car?", "red", True),
        ("Paint the car in the colour of the door.", "what color is the door?", "red", False),
        ("Add 2 lamps.", "how many chairs?", "two", True),
        ("Add twenty-two lamps.", "how many?", "2", True),
        ("Add as many lamps as there are chairs.", "how many chairs?", "2", False),
        ("If it stands on the left or right, move it.", "is it left or right?", "left", False),
        ("If it is left, move it left.", "is it left or right?", "left", True),
        ("Draw a colored ball.", "what color?", "red", False),
        (
            "Write: a dog runs over the green grass today.",
            "describe",
            "a dog runs over the green grass in the sun",
            True,
        ),
        ("Describe the animal and the ground.", "describe", "a dog runs over the green grass in the sun", False),
        ("Write ??? on it.", "which sign?", "???", True),
    ],
)
def test_an_answer_in_the_instruction_is_found(instruction, question, answer, leak):
    assert leaks(instruction, question, answer) is leak


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), st.lists(st.sampled_from("stuvwxyz")), st.data())
def test_a_short_answer_is_found_wherever_it_stands(answer, others, data):
    place = data.draw(st.integers(0, len(others)))
    said = " ".join([*others[:place], *answer, *others[place:]])
    assert leaks(said, "what is it?", " ".join(answer))
    assert not leaks(" ".join(others), "what is it?", " ".join(answer))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Too short.", "length of the instruction"),
        ("word " * 300, "length of the instruction"),
        ("Write the <answer> on the board behind her.", "unfinished instruction"),
        ("Add two lamps to the table over there.", "answer in the instruction"),
    ],
)
def test_an_instruction_that_cannot_be_used_says_why(text, reason):
    assert screen(draft(instruction=text), Screen()).reason == reason
    good = draft(instruction="Add as many lamps as you see chairs at the table.")
    assert screen(good, Screen()) is good


# ---- plans and writing


@given(st.integers(), st.sampled_from(TASK_CATEGORIES), st.sampled_from(["two", "7", "red", "round", "a poem"]))
def test_a_plan_is_whole_and_can_be_written_into_a_row(seed, category, answer):
    settings = Instruct(backend="x")
    choices = draw_choices(draft(category=category, short_answer=answer), settings, random.Random(seed))
    assert choices["variant"] in VARIANTS[category] and 1 <= choices["depth"] <= 3
    assert choices.get("distractor") != answer
    assert ("medium" in choices) == (category in ("caption", "ocr", "math") or choices["variant"] == "write")
    assert choices["changed"] or category not in ("caption", "ocr", "math")
    assert variant_choices(variant_text(**choices)) == {name: str(v).lower() for name, v in choices.items()}


def test_shares_of_plans_are_as_set():
    settings = Instruct(backend="x", depths={1: 1, 2: 1}, false_conditions=0.3, unchanged=0.4)
    drawn = [draw_choices(draft(), settings, random.Random(seed)) for seed in range(2000)]
    assert sum(each["depth"] == 2 for each in drawn) / 2000 == pytest.approx(0.5, abs=0.04)
    assert sum(not each["condition"] for each in drawn) / 2000 == pytest.approx(0.3, abs=0.04)
    assert sum(not each["changed"] for each in drawn) / 2000 == pytest.approx(0.4, abs=0.04)
    assert all("distractor" in each for each in drawn if not each["condition"])
    assert not any("," in text or "=" in text for text in (*MEDIA, *FONTS))


class Writer:
    """Answers with one writing, and keeps what it was asked."""

    def __init__(self, **changes):
        self.changes = changes

    async def answer(self, request):
        import json

        self.request = request
        plan = json.loads(request.text)["plan"]
        conditions = [{"condition": "c", "holds": plan.get("holds", True)} for _ in range(plan["depth"])]
        fields = {"conditions": conditions, "instruction": "Do.", "expected": "Done.", "text": "x"}
        return Writing.model_validate(fields | self.changes)


@pytest.mark.parametrize("category", TASK_CATEGORIES)
def test_every_category_is_written_with_its_own_text(category):
    writer = Writer()
    made = asyncio.run(instruct(draft(category=category), writer, Instruct(backend="x"), seed=3))
    assert prompt(f"instruct_{category}").text in writer.request.system
    assert made.choices["prompt"] == "1.1" and made.instruction == "Do." and made.image in writer.request.pictures
    assert made.canvas == ("new" if category in ("caption", "ocr", "math") else "scene")
    again = asyncio.run(instruct(draft(category=category), writer, Instruct(backend="x"), seed=3))
    assert again.choices == made.choices


@pytest.mark.parametrize("changes", [{"conditions": []}, {"conditions": [{"condition": "c", "holds": True}] * 4}])
def test_a_writing_that_is_not_as_planned_is_rejected(changes):
    made = asyncio.run(instruct(draft(), Writer(**changes), Instruct(backend="x"), seed=0))
    assert made.reason == "not as planned" and "conditions where" in made.detail and "Done." in made.reply


def test_prompts_have_versions_and_are_used():
    for file in FOLDER.glob("*.md"):
        assert prompt(file.stem).version >= 1 and len(prompt(file.stem).text) > 100
    assert {f"instruct_{category}" for category in TASK_CATEGORIES} <= {file.stem for file in FOLDER.glob("*.md")}
    text = prompt_for(draft(instruction="Do it.", expected="Done."))
    assert "Do it." in text and "Done." in text and "$" not in text


# ---- balance, order and duplicates


@given(st.integers(0, 10_000), st.dictionaries(st.text(max_size=3), st.floats(0.01, 100), min_size=1, max_size=8))
def test_quotas_add_up_and_follow_the_weights(size, weights):
    parts = quotas(size, weights)
    assert sum(parts.values()) == size
    for name, weight in weights.items():
        assert abs(parts[name] - size * weight / sum(weights.values())) < 1


@hypothesis.settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 6))
def test_balance_does_not_depend_on_which_row_is_faster(seed, size, window):
    """Places are given alike whatever order work ends in, are never exceeded, and are filled while there are rows."""

    async def go(speed):
        rng = random.Random(f"{seed}")
        rows = [draft(n, category=rng.choice(("count", "color"))) for n in range(40)]
        bad = {row.id for row in rows if rng.random() < 0.3}
        balance = Balance(quotas(size, {"count": 1, "color": 2}), lag=2 * window + 8)

        async def source():
            for row in rows:
                yield await balance(row)

        async def work(row):
            await asyncio.sleep(0 if speed.random() < 0.5 else 0.0002)
            return row.rejected("edit", "bad") if row.id in bad else row

        kept = []
        async for result in at_once(source(), work, window, Passed()):
            balance.finish(result)
            if isinstance(result, Draft) and (balance.end is None or result.position < balance.end):
                kept.append(result)
        return kept, balance.end

    first, second = (asyncio.run(go(random.Random(speed))) for speed in (1, 2))
    assert first == second
    counts = Counter(row.category for row in first[0])
    assert all(counts[name] <= most for name, most in quotas(size, {"count": 1, "color": 2}).items())


def test_what_fails_in_the_flow_stops_it_and_leaves_nothing_running():
    async def go():
        async def source():
            for number in range(50):
                yield draft(number)

        async def work(row):
            await asyncio.sleep(0.001)
            if row.position == (7, 0):
                raise OSError("down")
            return row

        seen = []
        with pytest.raises(OSError, match="down"):
            async for row in at_once(source(), work, 4, Passed()):
                seen.append(row)
        assert len(asyncio.all_tasks()) == 1
        return len(seen)

    assert asyncio.run(go()) == 7


def test_duplicates_are_found_and_others_kept(tmp_path):
    look, seen = Look([], near=True), SeenBefore(tmp_path / "seen.sqlite", similarity=0.8)
    jpeg = tmp_path / "a.jpg"
    photo(1).save(jpeg, quality=60)
    pictures = [encoded(photo(1)), encoded(photo(1)), jpeg.read_bytes(), encoded(photo(2)), encoded(photo(1))]
    questions = ["how many?", "How many", "how many?", "how many?", "what color?"]
    rows = [draft(n, image=Picture(p), question=q) for n, (p, q) in enumerate(zip(pictures, questions))]
    results = [seen.question(asyncio.run(look(row))) for row in rows]
    assert [getattr(result, "reason", "kept") for result in results] == [
        "kept", "duplicate question", "near-duplicate picture", "kept", "kept"
    ]  # fmt: skip
    texts = ["add a lamp to the left of the old table", "add a lamp to the left of the table", "remove every chair"]
    said = [seen.instruction(results[0].with_(instruction=text)) for text in texts]
    assert [getattr(result, "reason", "kept") for result in said] == ["kept", "near-duplicate instruction", "kept"]
    assert isinstance(seen.instruction(results[3].with_(instruction=texts[0])), Draft)  # of another picture
    seen.close()
    assert not (tmp_path / "seen.sqlite").exists()


def test_pictures_of_a_benchmark_are_kept_out(tmp_path):
    (tmp_path / "bench").mkdir()
    photo(5).resize((192, 128)).save(tmp_path / "bench" / "x.jpg", quality=70)
    (tmp_path / "bench" / "notes.png").write_bytes(b"no picture")
    flat = Image.new("RGB", (20, 20), "red")  # tells nothing but its pixels
    flat.save(tmp_path / "bench" / "flat.png")
    settings = Decontaminate(benchmarks=[tmp_path / "bench"])
    with pytest.warns(UserWarning, match="1 files of .*bench cannot be read, the first is notes.png"):
        first = benchmark_hashes(settings, tmp_path / "kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_hashes_module, "read_benchmarks", None)  # they are not read a second time
        again = benchmark_hashes(settings, tmp_path / "kept")
    for benchmarks in (first, again):
        look = Look(benchmarks, near=True)
        rows = [draft(4), draft(5), draft(6, image=Picture(encoded(flat)))]
        results = [asyncio.run(look(row)) for row in rows]
        assert isinstance(results[0], Draft) and {each.reason for each in results[1:]} == {"in a benchmark"}
        assert "x.jpg" in results[1].detail and "flat.png: same pixels" in results[2].detail
    photo(4).save(tmp_path / "bench" / "y.png")
    with pytest.warns(UserWarning):
        changed = benchmark_hashes(settings, tmp_path / "kept")
    assert asyncio.run(Look(changed, near=True)(draft(4))).reason == "in a benchmark"


def test_pictures_of_a_benchmark_data_set_are_kept_out(tmp_path):
    Dataset.from_dict({"picture": [photo(5)]}).cast_column("picture", ImageFeature()).to_parquet(
        tmp_path / "bench" / "test.parquet"
    )
    known = Decontaminate(benchmark_datasets=[{"dataset": str(tmp_path / "bench"), "image": "picture"}])
    for _ in range(2):
        look = Look(benchmark_hashes(known, tmp_path / "kept"), near=False)
        assert asyncio.run(look(draft(5))).reason == "in a benchmark" and isinstance(
            asyncio.run(look(draft(4))), Draft
        )
    other = Decontaminate(benchmark_datasets=[{"dataset": str(tmp_path / "bench")}])
    with pytest.raises(ValueError, match="has no column 'image' of images but picture"):
        benchmark_hashes(other, tmp_path / "kept")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "q.txt").write_text("how many lamps are there here?")
    with pytest.raises(ValueError, match="holds no picture that can be read"):
        benchmark_hashes(Decontaminate(benchmarks=[tmp_path / "texts"]), tmp_path / "kept")


# ---- geometry and verification


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
    """An editor that draws one picture, or what it is sent with twice as many pixels, in some proportions only."""

    def __init__(self, image: Image.Image | None = None, ratios: dict[str, float] | None = None):
        self.image, self.ratios, self.backend = image, ratios or {}, self

    async def reply(self, request):
        self.request, sent = request, request.picture.pixels()
        image = self.image or sent.resize((2 * sent.width, 2 * sent.height))
        return Reply("painter-1", picture=Picture(encoded(image)))


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
    row = draft(instruction="Do.", expected="Done.", image=Picture(encoded(photo(9, (128, 96)))))
    painter = Painter(ratios={"1024x1024": 1.0, "1536x1024": 1.5, "1024x1536": 2 / 3})
    made = asyncio.run(edit(row, painter, Edit(backend="x", pixels=144 * 96), seed=0))
    assert painter.request.picture.size == (144, 96) and painter.request.size == (144, 96)
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
    share = unchanged_share(Picture(encoded(source)), Picture(encoded(changed.resize((192, 128)))))
    assert share == pytest.approx(0.75, abs=0.06)
    row = draft(image=Picture(encoded(source)), target=Picture(encoded(source)), editor="e", instruction="Do.")
    settings = settings_from(minimal(verify={"min_unchanged": 0.9}), "it").verify
    assert asyncio.run(verify(row, None, None, None, settings)).reason == "nothing was changed"
    row = row.with_(target=Picture(encoded(changed)))
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
    row = draft(target=Picture(encoded(photo(8))), editor="e", instruction="Do.", expected="Done.")
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
    from uniedit_hf.synthesis.calls.cache import CallCache
    from uniedit_hf.synthesis.ocr import TextReader

    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((20, 30), "Open at 9", fill="black", font=ImageFont.load_default(36))
    cache = CallCache(tmp_path / "c.sqlite", tmp_path / "p")
    reader = TextReader(cache)
    found = asyncio.run(reader.read(Picture(encoded(image))))
    assert text_match("Open at 9", found) > 0.9 and text_match("Closed today", found) < 0.7
    reader.engine = None  # what was read is kept
    assert asyncio.run(TextReader.read(reader, Picture(encoded(image)))) == found
    cache.close()


# ---- settings and the command


def minimal(**changes) -> dict:
    return {
        "output_dir": "x",
        "source": {"kind": "easy_vqa"},
        "classify": {"backend": "rules"},
        "instruct": {"backend": "rules"},
        "edit": {"backend": "exact"},
    } | changes  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_parsed(path):
    (options,) = CommandParser("synthesize", "", command).parse(["--config", str(path)])
    given = dataclasses.asdict(options)
    given.pop("dry_run")
    settings = settings_from(given, path.name)
    assert yaml.safe_load(path.read_text())["output_dir"].startswith("runs/") and settings.edit.backend


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": {"backend": "exact", "sharp": 1}}, "edit.sharp: there is no such setting"),
        ({"source": {"kind": "csv"}}, "source: .*conversations.*rows.*easy_vqa"),
        ({"edit": {"backend": "gpt"}}, "edit: there is no backend 'gpt'; known are exact"),
        ({"balance": {"shares": {"shapes": 1}}}, "balance.shares"),
        ({"source": {"kind": "rows"}}, "needs either files or dataset"),
        ({"instruct": {"backend": "rules", "depths": {4: 1}}}, "depths"),
        ({"instruct": {"backend": "rules", "depths": {1: 0}}}, "needs a depth with a weight above 0"),
        ({"verify": {"judge": "rules"}, "instruct": {"backend": "c"}, "backends": {"c": {"kind": "openai",
          "model": "m", "api_key": "sk-oops"}}}, "backends.c.openai.api_key: there is no such setting"),
        ({"backends": {"c": {"kind": "openai", "model": "m", "base_url": "http://me:sk-oops@host/v1"}}}, "no key"),
        ({"instruct": {"backend": "rules", "depths": {0: 1}}}, "instruct.depths: 'rules' always writes a condition"),
        ({"engine": {"kind": "datatrove", "executor": "slurm"}}, "engine: slurm needs partition and time"),
        ({"source": {"kind": "rows", "files": ["a.jsonl"]}}, "'rules' understands pictures of the source easy_vqa"),
        ({"edit": {"backend": "c"}, "backends": {"c": {"kind": "openai", "model": "m"}}}, "not an image editor"),
        ({"classify": None}, "classify: this source names no categories"),
        ({"backends": {"c": {"kind": "openai", "model": "m", "arguments": {"extra_headers": {"k": "sk-oops"}}}}},
         "extra_headers may hold a key"),
    ],
)  # fmt: skip
def test_mistakes_in_settings_are_one_sentence_without_keys(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        settings_from(minimal(**changes), "it")
    assert "\n" not in str(caught.value) and "sk-oops" not in str(caught.value)


def test_published_shares_are_built_in():
    for name in ("148k", "40k"):
        weights = BalanceSettings(size=10, shares=name).weights
        assert set(weights) == set(TASK_CATEGORIES) and sum(weights.values()) == pytest.approx(100, abs=0.2)


def test_the_command_makes_edits_by_rules_and_prices_them_first(tmp_path, capsys):
    settings = yaml.safe_load((ROOT / "examples" / "synthesis" / "easy_vqa.yaml").read_text())
    settings |= {"output_dir": str(tmp_path / "out"), "balance": settings["balance"] | {"size": 20}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml"), "--dry_run"]) == 0
    assert "38,575 rows" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 0
    assert "20 edits in" in capsys.readouterr().out
    settings |= {"output_dir": str(tmp_path / "few"), "source": {"kind": "easy_vqa", "limit": 12}}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "few.yaml")]) == 0
    assert "20 edits were asked for; the source ended before" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").exists() and list((tmp_path / "out" / "official").glob("*148k.jsonl"))


def test_a_dry_run_prices_every_stage(tmp_path, capsys):
    settings = minimal(
        output_dir=str(tmp_path / "out"),
        source={"kind": "easy_vqa", "limit": 1000},
        backends={
            "chat": {"kind": "openai", "model": "m-1", "price": {"tokens_in": 2.0, "tokens_out": 8.0}},
            "painter": {"kind": "http_editor", "model": "p", "base_url": "http://x/", "price": {"picture": 0.04}},
        },
        classify={"backend": "chat"},
        balance={"size": 100, "shares": {"color": 1}},
        instruct={"backend": "chat"},
        edit={"backend": "painter"},
        verify={"judge": "chat", "quality": "chat"},
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml"), "--dry_run"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["classify"][3] == "1,000" and lines["edit"][3] == "100" and float(lines["edit"][5]) == 4.0
    assert float(lines["at"][-1]) > 4.0


def test_a_run_that_makes_nothing_says_so(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"image": "none.png", "question": "q?", "answer": "a", "category": "ocr"}')
    settings = minimal(
        output_dir=str(tmp_path / "out"),
        source={"kind": "rows", "files": [str(tmp_path / "rows.jsonl")]},
        backends={"c": {"kind": "openai", "model": "m", "base_url": "http://localhost:1"},
                  "e": {"kind": "http_editor", "model": "m", "base_url": "http://localhost:1"}},
        classify=None, instruct={"backend": "c"}, edit={"backend": "e"},
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No edit came of 1 rows (1 source: image not found): see " in error
    (tmp_path / "file").write_text("")
    settings["output_dir"] = str(tmp_path / "file")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 1
    assert "is a file: choose a folder as output_dir" in capsys.readouterr().err


def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, capsys):
    for settings, message in (
        (minimal() | {"sorce": {}}, "there is no option sorce; did you mean source?"),
        (minimal(edit={"backend": "nobody"}), "there is no backend 'nobody'"),
    ):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(SystemExit) if "sorce" in settings else _nothing():
            assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
