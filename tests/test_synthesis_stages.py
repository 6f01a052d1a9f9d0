"""The stages up to the instruction by themselves, on drawn inputs where a rule holds in general."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import hypothesis
import pytest
from datasets import Dataset, Image as ImageFeature
from hypothesis import given, strategies as st
from PIL import Image
from synthesis_drafts import draft, photo

from uniedit_hf.calls.messages import EncodedImage, encoded
from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis import benchmark_hashes as benchmark_hashes_module
from uniedit_hf.synthesis.benchmark_hashes import benchmark_hashes
from uniedit_hf.synthesis.prompt_texts import FOLDER, prompt
from uniedit_hf.synthesis.records import Draft, variant_choices, variant_text
from uniedit_hf.synthesis.settings import Decontaminate, Instruct, Screen
from uniedit_hf.synthesis.shard import Passed, at_once
from uniedit_hf.synthesis.stages.balance import Balancer, quotas
from uniedit_hf.synthesis.stages.draw import prompt_for
from uniedit_hf.synthesis.stages.duplicates import SeenBefore
from uniedit_hf.synthesis.stages.inspection import ImageInspection
from uniedit_hf.synthesis.stages.instruct import FONTS, MEDIA, VARIANTS, Writing, draw_choices, instruct
from uniedit_hf.synthesis.stages.screen import leaks, screen


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
    assert made.choices["prompt"] == "1.1" and made.instruction == "Do." and made.image in writer.request.images
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
    """Places are given alike whatever order work ends in, and rows fill them all as long as there are any."""

    async def go(speed):
        rng = random.Random(f"{seed}")
        rows = [draft(n, category=rng.choice(("count", "color"))) for n in range(40)]
        bad = {row.id for row in rows if rng.random() < 0.3}
        balance = Balancer(quotas(size, {"count": 1, "color": 2}), lag=2 * window + 8)

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
        good = Counter(row.category for row in rows if row.id not in bad)
        return kept, balance.end, good

    first, second = (asyncio.run(go(random.Random(speed))) for speed in (1, 2))
    assert first == second
    counts = Counter(row.category for row in first[0])
    for name, most in quotas(size, {"count": 1, "color": 2}).items():
        assert counts[name] == min(most, first[2][name])


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
    look, seen = ImageInspection([], near=True), SeenBefore(tmp_path / "seen.sqlite", similarity=0.8)
    jpeg = tmp_path / "a.jpg"
    photo(1).save(jpeg, quality=60)
    pictures = [encoded(photo(1)), encoded(photo(1)), jpeg.read_bytes(), encoded(photo(2)), encoded(photo(1))]
    questions = ["how many?", "How many", "how many?", "how many?", "what color?"]
    rows = [draft(n, image=EncodedImage(p), question=q) for n, (p, q) in enumerate(zip(pictures, questions))]
    results = [seen.question(asyncio.run(look(row))) for row in rows]
    assert [getattr(result, "reason", "kept") for result in results] == [
        "kept", "duplicate question", "near-duplicate image", "kept", "kept"
    ]  # fmt: skip
    texts = ["add a lamp to the left of the old table", "add a lamp to the left of the table", "remove every chair"]
    said = [seen.instruction(results[0].with_(instruction=text)) for text in texts]
    assert [getattr(result, "reason", "kept") for result in said] == ["kept", "near-duplicate instruction", "kept"]
    assert isinstance(seen.instruction(results[3].with_(instruction=texts[0])), Draft)  # of another image
    seen.close()
    assert not (tmp_path / "seen.sqlite").exists()


def test_drawings_that_look_alike_are_kept_where_their_answers_differ(tmp_path):
    """A perceptual hash does not see what a question about a drawing asks, such as its color."""
    look, seen = ImageInspection([], near=True), SeenBefore(tmp_path / "seen.sqlite", similarity=0.8)
    pictures = [photo(1), photo(1).convert("L").convert("RGB"), photo(1).point(lambda level: level * 0.97)]
    rows = [
        draft(n, image=EncodedImage(encoded(picture)), question="what color?", answer=answer)
        for n, (picture, answer) in enumerate(zip(pictures, ("green", "gray", "green"), strict=True))
    ]
    results = [seen.question(asyncio.run(look(row))) for row in rows]
    assert [getattr(each, "reason", "kept") for each in results] == ["kept", "kept", "near-duplicate image"]
    seen.close()


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
        look = ImageInspection(benchmarks, near=True)
        rows = [draft(4), draft(5), draft(6, image=EncodedImage(encoded(flat)))]
        results = [asyncio.run(look(row)) for row in rows]
        assert isinstance(results[0], Draft) and {each.reason for each in results[1:]} == {"in a benchmark"}
        assert "x.jpg" in results[1].detail and "flat.png: same pixels" in results[2].detail
    photo(4).save(tmp_path / "bench" / "y.png")
    with pytest.warns(UserWarning):
        changed = benchmark_hashes(settings, tmp_path / "kept")
    assert asyncio.run(ImageInspection(changed, near=True)(draft(4))).reason == "in a benchmark"


def test_pictures_of_a_benchmark_data_set_are_kept_out(tmp_path):
    Dataset.from_dict({"picture": [photo(5)]}).cast_column("picture", ImageFeature()).to_parquet(
        tmp_path / "bench" / "test.parquet"
    )
    known = Decontaminate(benchmark_datasets=[{"dataset": str(tmp_path / "bench"), "image": "picture"}])
    for _ in range(2):
        look = ImageInspection(benchmark_hashes(known, tmp_path / "kept"), near=False)
        assert asyncio.run(look(draft(5))).reason == "in a benchmark" and isinstance(
            asyncio.run(look(draft(4))), Draft
        )
    other = Decontaminate(benchmark_datasets=[{"dataset": str(tmp_path / "bench")}])
    with pytest.raises(ValueError, match="has no column 'image' of images but picture"):
        benchmark_hashes(other, tmp_path / "kept")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "q.txt").write_text("how many lamps are there here?")
    with pytest.raises(ValueError, match="contains no image that can be read"):
        benchmark_hashes(Decontaminate(benchmarks=[tmp_path / "texts"]), tmp_path / "kept")
