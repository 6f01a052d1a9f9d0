"""What each recipe makes of a row, how conditioning dropout and mixes are drawn, and what is said about a bad row."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import pytest
from datasets import Dataset, Features, Image as ImageFeature, List, Value
from hypothesis import assume, given, strategies as st
from PIL import Image
from tiny_models import tiny_bagel_processor, tiny_janus_processor

from uniedit_hf.recipes import (
    Conditioning,
    RowError,
    answer_sample,
    draw_dropout,
    edit_sample,
    generate_sample,
    interleaved_sample,
    mix,
)
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


SOURCE, TARGET = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (32, 80), "blue")
ROW = {
    "id": "row-1",
    "source_image": SOURCE,
    "instruction": "If the sign is red, paint it blue.",
    "target_image": TARGET,
    "question": "Which colour is the sign?",
    "answer": "Red.",
    "source_size": [64, 48],
    "target_size": [32, 80],
}
BOTH = Conditioning(source_views=("drawing", "understanding"), understanding_dropout=0.3, drawing_dropout=0.4)


def without(row, *columns):
    return {name: value for name, value in row.items() if name not in columns}


# ---- recipes


def test_the_paper_shows_the_source_to_the_vit_only():
    assert edit_sample(ROW) == Sample(
        (
            ImageSegment(SOURCE, "understanding", size=(64, 48)),
            TextSegment(ROW["instruction"], dropout=0.1),
            ImageSegment(TARGET, "drawing", loss=True, size=(32, 80)),
        ),
        id="row-1",
    )


def views_of(sample):
    return [(s.view, s.loss, s.dropout) for s in sample.segments if isinstance(s, ImageSegment)]


def test_bagel_reads_the_vae_view_first():
    bagel = tiny_bagel_processor()
    asked = bagel.make_conditioning(source_views=("vit", "vae"), understanding_dropout=0.3, drawing_dropout=0.4)
    assert asked == BOTH == bagel.make_conditioning(**vars(BOTH) | {"source_views": BOTH.source_views[::-1]})
    assert views_of(edit_sample(ROW, asked)) == [
        ("drawing", False, 0.4),
        ("understanding", False, 0.3),
        ("drawing", True, 0.0),
    ]


def test_janus_reads_the_siglip_view_first():
    janus = tiny_janus_processor().make_conditioning(source_views=("vq", "siglip"), drawing_dropout=0.5)
    assert views_of(edit_sample(ROW, janus)) == [
        ("understanding", False, 0.0),
        ("drawing", False, 0.5),
        ("drawing", True, 0.0),
    ]
    assert answer_sample(ROW, janus).segments[0].view == "understanding"
    assert generate_sample(ROW, janus).segments[-1].view == "drawing"


def test_thinking_stands_before_the_drawing_and_may_be_learned():
    row = ROW | {"thinking": "The sign is red, so it becomes blue."}
    read = edit_sample(row, BOTH).segments[-2]
    assert read == TextSegment(row["thinking"], dropout=0.1)

    learned = edit_sample(row, BOTH, thinking_loss=True)
    assert learned.segments[-2] == TextSegment(row["thinking"], loss=True)
    assert [segment.dropout for segment in learned.segments] == [0.0] * 5
    assert edit_sample(ROW | {"thinking": None}) == edit_sample(ROW)


def test_an_answer_is_learned_from_the_whole_question():
    segments = answer_sample(ROW, BOTH).segments
    assert segments == (
        ImageSegment(SOURCE, "understanding", size=(64, 48)),
        TextSegment(ROW["question"]),
        TextSegment(ROW["answer"], loss=True),
    )


def test_an_image_is_generated_from_a_prompt_or_an_instruction():
    target = ImageSegment(TARGET, "drawing", loss=True, size=(32, 80))
    assert generate_sample(ROW).segments == (TextSegment(ROW["instruction"], dropout=0.1), target)
    assert generate_sample(ROW | {"prompt": "a lighthouse"}).segments[0] == TextSegment("a lighthouse", dropout=0.1)


TURNS = [
    {"role": "user", "image": SOURCE},
    {"role": "user", "text": "Which colour is the sign?"},
    {"role": "assistant", "text": "Red."},
    {"role": "user", "text": "Paint it blue."},
    {"role": "assistant", "image": TARGET},
    {"role": "user", "text": "And now?"},
    {"role": "assistant", "image": SOURCE},
]


def test_turns_interleave_text_and_image_losses():
    segments = interleaved_sample({"id": "talk", "turns": TURNS}, BOTH).segments
    assert [(s.view if isinstance(s, ImageSegment) else "text", s.loss, s.dropout) for s in segments] == [
        ("drawing", False, 0.0),
        ("understanding", False, 0.0),
        ("text", False, 0.0),
        ("text", True, 0.0),
        ("text", False, 0.1),
        ("drawing", True, 0.0),  # noise, hidden from what follows
        ("drawing", False, 0.4),
        ("understanding", False, 0.3),
        ("text", False, 0.1),
        ("drawing", True, 0.0),
    ]


def test_the_loss_of_a_turn_overrides_its_role():
    turns = [{**turn, "loss": number == 6} for number, turn in enumerate(TURNS)]
    segments = interleaved_sample({"id": "talk", "turns": turns}).segments
    assert [segment.loss for segment in segments] == [False] * 6 + [True]


def test_turns_come_out_of_arrow():
    turn = {"role": Value("string"), "text": Value("string"), "image": ImageFeature(), "loss": Value("bool")}
    features = Features({"id": Value("string"), "turns": List(turn)})
    stored = Dataset.from_list([{"id": "talk", "turns": TURNS}], features=features)
    from_arrow = interleaved_sample(stored[0]).segments
    by_hand = interleaved_sample({"id": "talk", "turns": TURNS}).segments
    assert [(type(s), s.loss) for s in from_arrow] == [(type(s), s.loss) for s in by_hand]
    assert from_arrow[0].image.size == SOURCE.size


def test_everything_is_left_out_together():
    together = Conditioning(source_views=("understanding", "drawing"), text_dropout=0, full_dropout=0.2)
    apart = Conditioning(source_views=("understanding", "drawing"), text_dropout=0.3)
    counts = Counter()
    for number in range(3000):
        row = ROW | {"id": f"row-{number}"}
        dropped = [segment.dropped for segment in draw_dropout(edit_sample(row, together), seed=0, epoch=0).segments]
        assert dropped[3] is False and len(set(dropped[:3])) == 1
        counts["together"] += dropped[0]
        both = Conditioning(source_views=("understanding", "drawing"), text_dropout=0.3, full_dropout=0.2)
        texts = [draw_dropout(edit_sample(row, each), seed=0, epoch=0).segments[2].dropped for each in (apart, both)]
        assert texts[1] == (texts[0] or dropped[0]), "one draw does not change another"
    assert 0.17 < counts["together"] / 3000 < 0.23


def test_asking_for_views_leaves_out_the_dropout_of_others():
    default = Conditioning(source_views=("understanding", "drawing"), drawing_dropout=0.5, full_dropout=0.05)
    assert default.override(source_views=("understanding",)).drawing_dropout == 0
    assert default.override(text_dropout=0.4) == Conditioning(("understanding", "drawing"), 0.4, 0, 0.5, 0.05)
    with pytest.raises(ValueError, match="add 'drawing' to source_views or set drawing_dropout=0"):
        default.override(source_views=("understanding",), drawing_dropout=0.5)


# ---- planning from sizes


def test_packs_are_planned_without_image_columns():
    planned = edit_sample(without(ROW, "source_image", "target_image"), BOTH)
    assert [s.image for s in planned.segments if isinstance(s, ImageSegment)] == [None] * 3
    assert [s.size for s in planned.segments if isinstance(s, ImageSegment)] == [(64, 48), (64, 48), (32, 80)]
    turns = [{"role": "user", "text": "Draw."}, {"role": "assistant", "size": [32, 80]}]
    assert interleaved_sample({"id": "talk", "turns": turns}).segments[-1].size == (32, 80)


def test_images_may_come_without_sizes_and_undecoded():
    row = without(ROW, "source_size") | {"source_image": {"bytes": b"...", "path": None}, "target_size": None}
    sample = edit_sample(row)
    assert sample.segments[0].image == row["source_image"]
    assert sample.segments[0].size is sample.segments[-1].size is None


# ---- bad rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (without(ROW, "instruction"), "column 'instruction' is missing, there are id, .*; rename or add it"),
        (ROW | {"instruction": None}, "column 'instruction' is null; fill it in or leave the row out"),
        (ROW | {"instruction": " \n"}, "column 'instruction' is empty; write some text"),
        (ROW | {"instruction": 7}, "column 'instruction' holds int 7; expected text"),
        (ROW | {"thinking": ""}, "column 'thinking' is empty"),
        (ROW | {"source_image": None}, "column 'source_image' is null"),
        (ROW | {"source_image": {"bytes": None, "path": None}}, "column 'source_image' has neither bytes nor a path"),
        (ROW | {"target_image": 3.5}, "column 'target_image' holds float 3.5; expected an image, bytes or a path"),
        (without(ROW, "target_image", "target_size"), "column 'target_image' is missing, and so is 'target_size'"),
        (
            without(ROW, "target_image") | {"target_size": None},
            "column 'target_image' is missing, and so is 'target_size'",
        ),
        (ROW | {"target_size": [32]}, r"column 'target_size' holds \[32\]; expected \(width, height\) in pixels"),
        (ROW | {"target_size": [32, 0]}, "column 'target_size' holds"),
        (ROW | {"target_size": "32x80"}, "column 'target_size' holds '32x80'"),
    ],
)
def test_a_bad_row_gets_one_sentence(row, reason):
    with pytest.raises(RowError, match=f"^Row 'row-1': {reason}") as caught:
        edit_sample(row)
    assert caught.value.row_id == "row-1" and str(caught.value).endswith(caught.value.reason)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(("row", "found"), [({}, "missing"), ({"id": None}, "null"), ({"id": 3}, "int 3")])
def test_a_row_has_an_id(row, found):
    with pytest.raises(RowError, match=f"Row '': column 'id' .*{found}"):
        answer_sample(row)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "column 'turns' is null"),
        ([], "column 'turns' holds .*; expected a list of turns"),
        (["hello"], "column 'turns' holds .*; expected a list of turns"),
        ([{"text": "hello"}], "turn 0: 'role' is missing"),
        ([{"role": "robot", "text": "hello"}], "turn 0: 'role' is 'robot'; expected 'user' or 'assistant'"),
        ([{"role": "user", "text": "hello", "loss": 1}], "turn 0: 'loss' is 1; expected true, false or null"),
        ([TURNS[0], {"role": "user", "text": "a", "image": SOURCE}], "turn 1: 'text' comes with an 'image'"),
        ([TURNS[0], {"role": "user", "text": None, "image": None}], "turn 1: 'image' is null"),
        ([TURNS[0], {"role": "user"}], "turn 1: 'image' is missing, and so is 'size'"),
        ([TURNS[0]], "no turn carries a loss"),
    ],
)
def test_bad_turns_get_one_sentence(turns, reason):
    with pytest.raises(RowError, match=f"Row 'talk': {reason}"):
        interleaved_sample({"id": "talk", "turns": turns})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"source_views": ()}, "must name 'understanding', 'drawing' or both"),
        ({"source_views": ("vit", "vq")}, r"source_views=\('vit', 'vq'\) must name"),
        ({"vit_dropout": 0.1}, "vit_dropout is now called understanding_dropout: use the new name."),
        ({"vae_dropout": 0.1}, "vae_dropout is now called drawing_dropout: use the new name."),
        ({"source_views": ("clip",)}, "must name 'understanding', 'drawing' or both"),
        ({"text_dropout": 1.5}, "text_dropout=1.5 is not a probability"),
        (
            {"drawing_dropout": 0.3},
            "drawing_dropout=0.3 has no effect .* add 'drawing' to .* set drawing_dropout=0",
        ),
        ({"source_views": ("drawing",), "understanding_dropout": 0.3}, "add 'understanding' to source_views"),
    ],
)
def test_conditioning_that_cannot_work_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Conditioning(**arguments)


# ---- dropout


@given(
    dropouts=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    losses=st.lists(st.booleans(), min_size=6, max_size=6),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
)
def test_dropout_is_a_function_of_seed_epoch_and_id(dropouts, losses, seed, epoch):
    segments = [TextSegment("text", loss=loss, dropout=dropout) for dropout, loss in zip(dropouts, losses)]
    sample = Sample(segments, id="row-1")
    drawn = draw_dropout(sample, seed, epoch)
    assert draw_dropout(drawn, seed, epoch) == drawn
    assert not any(segment.loss and segment.dropped for segment in drawn.segments)
    assert all(s.dropped for s in drawn.segments if s.dropout == 1 and not s.loss)
    assert not any(s.dropped for s in drawn.segments if s.dropout == 0)
    longer = draw_dropout(sample.with_segments([*segments, TextSegment("more", dropout=0.5)]), seed, epoch)
    assert longer.segments[:-1] == drawn.segments


def test_dropout_has_its_probability_and_changes_with_every_part_of_its_seed():
    sample = edit_sample(ROW, BOTH)

    def dropped(seed, epoch, row_id):
        return tuple(s.dropped for s in draw_dropout(Sample(sample.segments, row_id), seed, epoch).segments)

    draws = [dropped(0, 0, f"row-{number}") for number in range(4000)]
    shares = [sum(column) / len(draws) for column in zip(*draws)]
    assert shares == pytest.approx([0.4, 0.3, 0.1, 0.0], abs=0.03)
    assert len(set(draws)) == 8  # each segment on its own
    assert draws != [dropped(1, 0, f"row-{number}") for number in range(4000)]
    assert draws != [dropped(0, 1, f"row-{number}") for number in range(4000)]


# ---- mixes


parts = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0.1, 0.3, 0.5, 1, 2, 3])), min_size=1, max_size=4)


@given(parts=parts, seed=st.integers(0, 99), epochs=st.integers(1, 5))
def test_a_mix_keeps_its_shares_and_repeats_no_row_before_its_turn(parts, seed, epochs):
    lengths, weights = zip(*parts)
    rows = [row for epoch in range(epochs) for row in mix(lengths, weights, seed, epoch)]
    assert Counter(rows).most_common(1)[0][1] == 1  # no row twice in one walk through its part
    for part, (length, weight) in enumerate(parts):
        mine = [row for row in rows if row.part == part]
        assert abs(len(mine) - epochs * lengths[0] * weight / weights[0]) <= 0.5
        walks = Counter(row.epoch for row in mine)
        assert list(walks) == list(range(len(walks)))
        assert all(count == length for walk, count in walks.items() if walk < len(walks) - 1)


@given(length=st.integers(1, 30), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_walks_through_the_first_part_once(length, seed, epoch):
    rows = mix([length, 7], [1.0, 0.5], seed, epoch)
    assert sorted(row.row for row in rows if row.part == 0) == list(range(length))
    assert {row.epoch for row in rows if row.part == 0} == {epoch}


@given(seed=st.integers(0, 99), other=st.integers(0, 99))
def test_a_mix_is_a_function_of_seed_and_epoch(seed, other):
    assume(seed != other)
    arguments = ([50, 80], [1, 2])
    assert mix(*arguments, seed, 1) == mix(*arguments, seed, 1)
    assert len({tuple(mix(*arguments, *key)) for key in ((seed, 0), (seed, 1), (other, 0))}) == 3


@pytest.mark.parametrize(
    ("lengths", "weights", "sentence"),
    [
        ([], [], r"0 part\(s\)"),
        ([3], [1, 1], r"1 part\(s\) has 2 weight\(s\)"),
        ([3, 0], [1, 1], "Part 1 of the mix has 0 rows"),
        ([3, 3], [1, 0], "Part 1 of the mix has 3 rows and weight 0"),
        ([3, 3], [1, float("nan")], "weight nan"),
    ],
)
def test_a_mix_that_cannot_be_drawn_is_refused(lengths, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        mix(lengths, weights, seed=0, epoch=0)


def test_recipes_and_packing_load_no_framework():
    code = (
        "import sys, uniedit_hf.recipes, uniedit_hf.packing; "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
