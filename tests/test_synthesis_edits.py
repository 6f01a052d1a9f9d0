"""Every instruction of a 5,000-row set means what was drawn, by a reading that does not know the generator."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from tests.instruction_parser import Fact, answer_to, facts_of_data_set, hidden_words, measured, target_of
from uniedit_hf.small_world.asking import ASKING_STYLES
from uniedit_hf.small_world.easy_vqa import easy_vqa_folder, load_easy_vqa
from uniedit_hf.small_world.edits import Shares, intelligent_edits, made, plain_counterparts, plain_edits
from uniedit_hf.small_world.reader import read_all
from uniedit_hf.small_world.vocabulary import vocabulary
from uniedit_hf.small_world.wording import count_words, split_words
from uniedit_hf.synthesis.records import Record, Rejection, record_to_row, variant_choices


SIZE = 5000

# Making 5,000 edits takes 15 seconds on an idle core, several times that on a busy machine.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def rows():
    return load_easy_vqa("train")


@pytest.fixture(scope="module")
def results(rows):
    return list(intelligent_edits(rows, seed=7, size=SIZE))


@pytest.fixture(scope="module")
def records(results):
    return [result for result in results if isinstance(result, Record)]


@pytest.fixture(scope="module")
def facts(rows):
    """What each training image shows, by its bytes; shape and color agree with the data set's own answers."""
    answers = facts_of_data_set(easy_vqa_folder(), "train")
    found = {}
    for path, image_id in {row.image_path: row.image_id for row in rows}.items():
        fact = found[path.read_bytes()] = measured(Image.open(path))
        shape, color = answers[image_id]
        assert (shape or fact.shape, color or fact.color) == (fact.shape, fact.color), path
    return found


def assert_shows(image: bytes, expected: list[Fact], what: str) -> None:
    found = read_all(Image.open(io.BytesIO(image)))
    assert len(found) == len(expected), what
    for fact, scene in zip(sorted(expected, key=lambda f: (round(f.y / 16), f.x)), found):
        assert (scene.shape, scene.color) == (fact.shape, fact.color), what
        assert scene.center == pytest.approx((fact.x, fact.y), abs=1.0), what
        assert scene.size == pytest.approx(fact.size, abs=1.0), what


def test_every_instruction_means_what_was_drawn(records, facts):
    assert len(records) == SIZE
    for record in records:
        fact = facts[record.source_image]
        expected = target_of(record.instruction, fact)
        assert_shows(record.target_image, expected, record.instruction)
        changed = variant_choices(record.variant)["changed"] == "true"
        assert changed == (expected != [fact]) == (record.target_image != record.source_image), record.instruction


def test_questions_are_answered_right(records, facts):
    for record in records:
        assert answer_to(record.question, facts[record.source_image]) == record.answer, record.question


def test_no_answer_stands_in_an_instruction(records, facts):
    referred = 0
    for record in records:
        hidden = hidden_words(record.instruction, record.answer, facts[record.source_image])
        assert not hidden & set(re.findall("[a-z]+", record.instruction)), record.instruction
        referred += len(hidden) > 1
    assert referred > 100


def test_shares_are_as_configured(records):
    shares = Shares()
    choices = [variant_choices(record.variant) for record in records]
    categories = Counter(record.task_category for record in records)
    for category, share in shares.categories.items():
        assert categories[category] / SIZE == pytest.approx(share, abs=0.03)
    for level, share in shares.depths.items():
        assert sum(c["depth"] == str(level) for c in choices) / SIZE == pytest.approx(share, abs=0.03)
    assert sum(c["condition"] == "false" for c in choices) / SIZE == pytest.approx(shares.false_conditions, abs=0.03)
    assert sum(c["changed"] == "false" for c in choices) / SIZE == pytest.approx(shares.unchanged, abs=0.03)
    assert {record.source for record in records if record.task_category in ("shape", "color")} == {"easy-vqa"}
    assert {record.source for record in records if record.task_category not in ("shape", "color")} == {"composed"}


def test_depth_is_the_number_of_nested_conditions(records):
    for record in records:
        conditions = len(re.findall(r"\bif\b(?! not(;|,|$| or else))", record.instruction))
        asked = bool(re.search(r"\? if not,", record.instruction))
        assert conditions + asked == int(variant_choices(record.variant)["depth"]), record.instruction


def test_neither_the_sort_of_a_condition_nor_a_word_gives_its_truth_away(records):
    """A reader that looks at the words alone cannot tell whether the image changes."""
    outermost = [(r.instruction.split(",")[0], variant_choices(r.variant)["condition"]) for r in records]
    negated = Counter(truth for condition, truth in outermost if " not " in condition and "?" not in condition)
    plain = Counter(truth for condition, truth in outermost if " not " not in condition and "?" not in condition)
    for truths in (negated, plain):
        assert 0.25 < truths["true"] / truths.total() < 0.75


def test_instructions_are_short_varied_and_in_the_vocabulary(records):
    known = set(vocabulary())
    assert len(known) < 160
    for record in records:
        assert count_words(record.instruction) <= 45
        assert set(split_words(f"{record.instruction} {record.question} {record.answer}")) <= known
    assert len({record.instruction for record in records}) > 0.95 * SIZE
    assert len({record.id for record in records}) == SIZE


def test_every_word_of_easy_vqa_is_in_the_vocabulary(rows):
    words = {word for row in (*rows, *load_easy_vqa("test")) for word in split_words(f"{row.question} {row.answer}")}
    assert words <= set(vocabulary())


def test_rejections_are_few_and_say_why(results):
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert 0 < len(rejections) < 0.05 * SIZE
    assert all(rejection.reason and rejection.id for rejection in rejections)


def test_same_seed_same_records_and_another_seed_others(rows):
    first, again, other = (list(intelligent_edits(rows, seed=seed, size=60)) for seed in (1, 1, 2))
    assert first == again
    assert {r.id for r in first}.isdisjoint({r.id for r in other})


def test_a_longer_run_begins_with_the_shorter_one(rows):
    short, long = (list(intelligent_edits(rows, seed=1, size=size)) for size in (20, 40))
    assert long[: len(short)] == short


@pytest.mark.parametrize("level", [1, 2, 3])
def test_other_shares_are_followed(rows, level):
    shares = Shares(categories={"count": 1.0}, depths={level: 1.0}, false_conditions=1.0, unchanged=0.0)
    records = [r for r in intelligent_edits(rows, seed=3, size=40, shares=shares) if isinstance(r, Record)]
    assert len(records) == 40
    assert {r.task_category for r in records} == {"count"}
    for record in records:
        choices = variant_choices(record.variant)
        assert (choices["depth"], choices["condition"], choices["changed"]) == (str(level), "false", "true")


@pytest.mark.parametrize(
    "settings",
    [
        {"categories": {"ocr": 1.0}},
        {"depths": {4: 1.0}},
        {"depths": {1: -1.0}},
        {"categories": {}},
        {"unchanged": 1.5},
    ],
)
def test_shares_that_cannot_be_followed_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Shares(**settings)


def test_three_ways_of_asking_differ_in_the_instruction_alone(rows, facts):
    asked, answered, plain = (
        [r for r in intelligent_edits(rows, seed=7, size=1000, asking=asking) if isinstance(r, Record)]
        for asking in ASKING_STYLES
    )
    assert asked == [r for r in intelligent_edits(rows, seed=7, size=1000) if isinstance(r, Record)]
    known, in_its_words = set(vocabulary()), 0
    for question, answer, edit in zip(asked, answered, plain, strict=True):
        for other in (answer, edit):
            assert replace(other, instruction=question.instruction) == question
            assert set(split_words(other.instruction)) <= known and count_words(other.instruction) <= 45
            expected = target_of(other.instruction, facts[other.source_image])
            assert_shows(other.target_image, expected, other.instruction)
            assert (expected == [facts[other.source_image]]) == (other.target_image == other.source_image)
        assert answer.instruction.endswith(f", so {edit.instruction}")
        assert not re.search(r"\b(if|otherwise|else|has|like|color of (?!the shape))\b", edit.instruction)
        in_its_words += edit.instruction.removesuffix(".") in question.instruction
    assert in_its_words > 500


def test_plain_edits_mean_what_was_drawn(rows, facts):
    records = [r for r in plain_edits(rows, seed=5, size=300) if isinstance(r, Record)]
    assert len(records) == 300
    assert {r.task_category for r in records} == {"shape", "color", "location", "count", None}
    known = set(vocabulary())
    for record in records:
        assert set(split_words(record.instruction)) <= known
        assert record.question is None
        expected = target_of(record.instruction, facts[record.source_image])
        assert_shows(record.target_image, expected, record.instruction)
        assert record.target_image != record.source_image


def test_plain_counterparts_start_from_the_same_images(records):
    rows = [record_to_row(record) for record in records[:50]]
    first, again = (list(made(plain_counterparts(enumerate(rows), seed=0), 0)) for _ in range(2))
    assert first == again and [plain.source_image for plain in first] == [each.source_image for each in records[:50]]
    assert {variant_choices(plain.variant)["depth"] for plain in first} == {"0"}


def test_without_rows_there_is_nothing_to_make():
    with pytest.raises(ValueError, match="no rows"):
        list(plain_edits([], seed=0, size=1))
