"""Scorers, from tables made from the formulas. Known faults of official scripts appear with `compat` alone."""

from __future__ import annotations

import time

import pytest

from uniedit_hf.evaluation.scorers import (
    gedit_scores,
    geneval_scores,
    imgedit_scores,
    kris_scores,
    rise_scores,
    wise_scores,
)
from uniedit_hf.evaluation.scorers.geneval_scores import Detection, evaluate, relative_position


# ---- GenEval

LEFT, RIGHT, LOW = Detection((0, 0, 10, 10)), Detection((40, 0, 50, 10)), Detection((0, 40, 10, 50))


@pytest.mark.parametrize(
    "metadata, objects, colors, right",
    [
        ({"include": [{"class": "bench", "count": 1}]}, {"bench": [LEFT]}, [], True),  # single_object
        ({"include": [{"class": "bench", "count": 1}]}, {}, [], False),
        ({"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1}]}, {"cup": [LEFT]}, [], False),
        ({"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1}]},
         {"cup": [LEFT], "dog": [RIGHT]}, [], True),  # two_object
        ({"include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup", "count": 3}]},
         {"cup": [LEFT, RIGHT]}, [], True),  # counting
        ({"include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup", "count": 3}]},
         {"cup": [LEFT, RIGHT, LOW]}, [], False),
        ({"include": [{"class": "cup", "count": 1, "color": "blue"}]}, {"cup": [LEFT]}, ["blue"], True),  # colors
        ({"include": [{"class": "cup", "count": 1, "color": "blue"}]}, {"cup": [LEFT]}, ["red"], False),
        ({"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]},
         {"cup": [LEFT], "dog": [RIGHT]}, [], True),  # position
        ({"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["below", 0]}]},
         {"cup": [LEFT], "dog": [RIGHT]}, [], False),
        ({"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]},
         {"dog": [RIGHT]}, [], False),  # no target
        ({"include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "red"}]},
         {"cup": [LEFT], "dog": [LOW]}, ["red"], True),  # color_attr
        ({"include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]},
         {"cup": [LEFT], "dog": [LOW]}, ["red"], False),
    ],
)  # fmt: skip
def test_geneval_rules(metadata, objects, colors, right):
    found, wrong = evaluate(objects, metadata, lambda detections, name: colors)
    assert found == right and bool(wrong) != right


@pytest.mark.parametrize(
    "box, expected",
    [
        ((40, 0, 50, 10), {"right of"}), ((-40, 0, -30, 10), {"left of"}), ((0, 40, 10, 50), {"below"}),
        ((0, -40, 10, -30), {"above"}), ((40, 40, 50, 50), {"right of", "below"}), ((1, 1, 11, 11), set()),
        ((0, 0, 10, 10), set()), ((3.9, 0, 13.9, 10), set()), ((4.1, 0, 14.1, 10), {"right of"}),
    ],
)  # fmt: skip
def test_relative_positions(box, expected):
    # 10 pixels wide each: they overlap by rule up to 2 pixels; what is left must be over half of the distance
    assert relative_position(box, (0, 0, 10, 10)) == expected


def test_geneval_thresholds():
    scores = [0.2, 0.95, 0.3, 0.5, *[0.4] * 20]
    detections = [Detection((0, 0, 1, 1), score) for score in scores]
    assert [each.score for each in geneval_scores.kept(detections, "colors")] == [0.95, 0.5, *[0.4] * 14]
    assert [each.score for each in geneval_scores.kept(detections, "counting")] == [0.95]


def test_geneval_overall_is_the_mean_of_tags():
    rows = [("colors", "a", True), ("colors", "a", False), ("colors", "b", False), ("position", "c", True)]
    assert geneval_scores.summary(rows) == {
        "colors": pytest.approx(1 / 3), "position": 1, "overall": pytest.approx(2 / 3), "images": 0.5,
        "prompts": pytest.approx(2 / 3),
    }  # fmt: skip


# ---- WISE

READ = {"consistency": 2, "realism": 1, "aesthetic quality": 0}


@pytest.mark.parametrize(
    "reply, marks, official",
    [
        ("**Consistency**: 2\n**Realism**: 1\n**Aesthetic Quality**: 0", READ, READ),
        ("Consistency：2 Realism 1 aesthetic quality: 0", READ, READ),
        ("Consistency: 2\nRealism: 1", None, READ | {"aesthetic quality": 9.9}),
        ("Consistency: 7\nRealism: 1\nAesthetic Quality: 0", None, READ | {"consistency": 7}),
        ("Consistency: 1\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0", None, READ),
        ("", None, dict.fromkeys(READ, 9.9)),
    ],
)
def test_wise_replies(reply, marks, official):
    found = wise_scores.parse(reply)
    assert found.marks == (marks or {}) and found.status == ("ok" if marks else "parse_error")
    assert wise_scores.parse(reply, compat=True).marks == official


def test_wise_overalls_differ_by_name():
    assert wise_scores.wiscore(READ) == pytest.approx((0.7 * 2 + 0.2) / 2)
    full, none = dict.fromkeys(READ, 2), dict.fromkeys(READ, 0)
    rows = [(name, full if name in ("culture", "time") else none) for name in wise_scores.CATEGORIES]
    found = wise_scores.summary(rows)
    assert found["overall_mean"] == pytest.approx(1 / 3)
    assert found["overall_legacy"] == pytest.approx(0.567) and found["overall_verified_weights"] == pytest.approx(0.52)
    assert wise_scores.summary(rows[:2])["overall_mean"] is None


@pytest.mark.parametrize(
    "number, sub, expected",
    [(400, "", "culture"), (401, "Horizontal time", "time"), (700, "Geography", "space"), (701, "", "biology"),
     (800, "", "biology"), (801, "", "physics"), (901, "", "chemistry"), (1000, "", "chemistry")],
)  # fmt: skip
def test_wise_categories(number, sub, expected):
    assert wise_scores.category({"prompt_id": number, "Subcategory": sub}) == expected


def _wise_replies():
    reply = "**Consistency**: 2\n**Realism**: 1\n**Aesthetic Quality**: 1"
    return [({"prompt_id": number, "Subcategory": "Horizontal time" if number < 568 else ""}, reply)
            for number in range(1, 1001)]  # fmt: skip


def test_wise_stops_as_the_official_script_does():
    rows = [(wise_scores.category(row), wise_scores.parse(reply, compat=True).marks) for row, reply in _wise_replies()]
    assert wise_scores.summary(rows, compat=True)["overall_mean"] == pytest.approx(0.85)
    with pytest.raises(ValueError, match="stops at science: it has 299 of 300"):
        wise_scores.summary(rows[:-1], compat=True)
    with pytest.raises(ValueError, match="1 replies without marks"):
        wise_scores.summary([*rows[:-1], ("chemistry", wise_scores.parse("no", compat=True).marks)], compat=True)


def test_a_thousand_wise_replies_are_scored_in_seconds():
    start = time.perf_counter()
    wise_scores.summary((wise_scores.category(row), wise_scores.parse(reply).marks) for row, reply in _wise_replies())
    assert time.perf_counter() - start < 5


# ---- ImgEdit


@pytest.mark.parametrize(
    "reply, ours, official, lmms",
    [
        ("Brief: fine.\nCompliance: 5\nBlending: 4\nPhysics: 3", [5, 4, 3], [5, 4, 3], [5, 4, 3]),
        ("A: 5\nB: **4**\nC: 3.", [5, 4, 3], [5], None),  # "**4**" and "3." are lost
        ("A: 5\nB: 4", None, [5, 4], None),
        ("A: 9\nB: 4\nC: 4", None, [9, 4, 4], [9, 4, 4]),
        ("I cannot help.", None, None, None),
        ("A: 1/5\nB: 2/5\nC: 3 out of 5", [1, 2, 3], None, [1, 2, 3]),
    ],
)
def test_imgedit_replies(reply, ours, official, lmms):
    for compat, expected in ((None, ours), ("uniedit", official), ("lmms-eval", lmms)):
        found = imgedit_scores.parse(reply, compat)
        assert list(found.marks.values()) == (expected or []), compat
        assert found.status == ("ok" if expected else "parse_error")


def test_imgedit_scores():
    marks = imgedit_scores.parse("A: 2\nB: 5\nC: 4")
    assert imgedit_scores.score(marks) == 3.67 and imgedit_scores.score(marks, cap=True) == 2
    rows = [("add", 4.0), ("add", 3.33), ("style", 1.0), ("style", None)]
    assert imgedit_scores.summary(rows) == {"add": 3.67, "style": 1.0, "overall": 2.78}  # over items, not over types
    assert imgedit_scores.summary(rows, compat="lmms-eval")["overall"] == pytest.approx(2.0825)  # not rounded
    assert imgedit_scores.score(marks, compat="lmms-eval") == pytest.approx(11 / 3)


# ---- GEdit


@pytest.mark.parametrize(
    "reply, score",
    [
        ('{"score": [7, 5], "reasoning": "r"}', 5), ('so ||V^=^V|| {"score": [9]} ||V^=^V|| end', 9),
        ('text {"score": 8, "reasoning": "x"} text', 8), ("[3, 4]", 3), ("6", 6), ("no idea", None),
        ('{"score": [11, 5]}', None), ('{"score": ["7"]}', 7), ('{"reasoning": "x"}', None), ("{}", None),
        ("", None), ('{"score": []}', None), ('{"score": true}', None),
    ],
)  # fmt: skip
def test_gedit_replies_give_a_number_or_a_status_never_a_random_one(reply, score):
    found = [gedit_scores.parse(reply) for _ in range(3)]
    assert all(each.marks == ({} if score is None else {"score": score}) for each in found)
    assert found[0].status == ("parse_error" if score is None else "ok")


def test_gedit_averages_items_then_groups():
    row = {"language": "en", "intersection": True}
    others = [row | {"group": group, "sc": 8, "pq": 8} for group in gedit_scores.GROUPS[5:]]
    rows = [
        *(row | {"group": group, "sc": 0, "pq": 9} for group in gedit_scores.GROUPS[:4]), *others,
        row | {"group": "ps_human", "sc": 4, "pq": 9}, row | {"group": "ps_human", "sc": 0, "pq": 9},
        row | {"group": "text_change", "sc": None, "pq": 8},
        row | {"group": "ps_human", "sc": 1, "pq": 1, "language": "cn"},
        row | {"group": "ps_human", "sc": 10, "pq": 10, "intersection": False},
    ]  # fmt: skip
    found = gedit_scores.summary(rows)
    assert found["ps_human O"] == pytest.approx(16 / 3)  # of sqrt(36), 0 and 10
    assert found["overall"] == pytest.approx((6 * 8 + 16 / 3) / 11) and found["SC"] == pytest.approx(
        (48 + 14 / 3) / 11
    )
    assert found["items O"] == pytest.approx((48 + 16) / 13)
    assert gedit_scores.summary(rows, only_intersection=True)["ps_human O"] == 3
    assert gedit_scores.summary(rows, compat="lmms-eval")["text_change O"] == 4
    assert gedit_scores.summary(rows, compat="lmms-eval")["overall"] == pytest.approx((48 + 16) / 14)  # over items
    assert gedit_scores.summary(rows[1:])["overall"] is None  # a group is missing: not the mean of ten
    assert gedit_scores.summary([])["overall"] is None


# ---- RISE

FREE, PLAIN, PUZZLE = "temporal_reasoning", "causal_reasoning", "logical_reasoning"


@pytest.mark.parametrize(
    "reply, logical, number, marks",
    [
        ("**Final Score**: **4**", False, 1, [4]), ("Final Score: 1, 0", True, 2, [1, 0]),
        ("Final Score: 4,5", False, 1, None), ("I say 5", False, 1, None), ("Final Score: 7", False, 1, None),
        ("Final Score: 2", True, 1, None),
    ],
)  # fmt: skip
def test_rise_replies(reply, logical, number, marks):
    assert list(rise_scores.parse(reply, logical, number).marks.values()) == (marks or [])


MARKS = {"consistency": 1, "reasoning": 5, "plausibility": 5}


@pytest.mark.parametrize(
    "row, values, any_flag, compat, score, complete",
    [
        ({"category": PLAIN}, MARKS, True, None, 3.8, False),
        ({"category": PLAIN}, MARKS, True, "uniedit", 5, False),  # the missing flag counts as true
        ({"category": PLAIN}, MARKS, True, "upstream", 5, False),
        ({"category": PLAIN}, MARKS, False, "upstream", 3.8, False),
        ({"category": PLAIN, "consistency_free": None}, MARKS, True, "uniedit", 3.8, False),  # null is not NaN
        ({"category": PLAIN, "consistency_free": False}, MARKS, True, "upstream", 3.8, True),  # False is taken as free
        ({"category": FREE, "consistency_free": True}, {"reasoning": 5, "plausibility": 5}, True, None, 5, True),
        ({"category": FREE, "consistency_free": True}, {"reasoning": 5, "plausibility": 5}, True, "uniedit", 5, False),
        ({"category": FREE, "consistency_free": True}, {"reasoning": 5, "plausibility": 5}, True, "upstream", 5, True),
        ({"category": PUZZLE}, {"consistency": 5, "reasoning": 5}, True, None, 5, True),
        ({"category": PUZZLE}, {"consistency": 5, "reasoning": 1}, True, "uniedit", 1.1, False),  # half of 2.2
        ({"category": PLAIN}, dict.fromkeys(MARKS, 1), False, None, 1, False),  # not below 1
    ],
)  # fmt: skip
def test_rise_scores(row, values, any_flag, compat, score, complete):
    assert rise_scores.score(row, values, any_flag, compat) == pytest.approx(score)
    assert rise_scores.complete(row, values, compat) == complete


def test_rise_pictures_and_paths():
    row = {"category": PLAIN, "index": "c_1", "image": "in.png", "reference_img": "ref.png"}
    assert rise_scores.second_picture(row) == rise_scores.second_picture(row, "upstream") == "ref.png"
    with pytest.raises(KeyError, match="reasoning_img"):
        rise_scores.second_picture(row, "uniedit")
    assert rise_scores.picture_path(row, "uniedit") == "causal_reasoning/c_1.png"
    assert rise_scores.picture_path(row, "upstream") == "images/causal_reasoning/c_1.png"


def test_rise_summary():
    puzzle = {"category": PUZZLE, "subtask": "maze"}
    values = rise_scores.dimensions(puzzle, {"consistency": 1, "reasoning": 0})
    found = rise_scores.summary([(puzzle, values), ({"category": PLAIN}, dict.fromkeys(MARKS, 5))])
    assert values == {"consistency": 5, "reasoning": 1}
    assert found["overall accuracy"] == 50 and found["maze percent"] == pytest.approx(2.5)
    assert found["plausibility"] == 5 and found["reasoning"] == 3


# ---- KRIS


@pytest.mark.parametrize(
    "reply, names, ours, official",
    [
        ('{"consistency_score": 4, "reasoning": "r"}', ["consistency"], [4], [4]),
        ("I give 3/5.", ["quality"], [3], [3]),
        ("2 out of 5", ["quality"], [2], [2]), ("There are 2 dogs.", ["quality"], None, [2]),  # a loose digit
        ('{"instruction_score": 4, "knowledge_score": 1}', ["instruction", "knowledge"], [4, 1], [4, 1]),
        ('{"instruction_score": 4}', ["instruction", "knowledge"], None, None),
        ('{"quality_score": 9}', ["quality"], None, [9]), ("nothing", ["quality"], None, None),
    ],
)  # fmt: skip
def test_kris_replies(reply, names, ours, official):
    assert list(kris_scores.parse(reply, names).marks.values()) == (ours or [])
    assert list(kris_scores.parse(reply, names, compat=True).marks.values()) == (official or [])


def test_kris_pools_all_marks():
    rows = [("biology", {"consistency": 5, "instruction": 5, "knowledge": 1, "quality": 1}),
            ("color_change", {"consistency": 3, "instruction": 3, "quality": 5})]  # fmt: skip
    found = kris_scores.summary(rows)
    assert found["biology"] == 50 and found["factual"] == pytest.approx(200 / 3)
    assert found["overall"] == pytest.approx(400 / 7)  # over marks; the mean over items would be 58.3


def test_kris_faults_of_what_the_judge_sees():
    assert kris_scores.explained("anomaly_correction") and not kris_scores.explained("anomaly_correction", compat=True)
    assert sum(len(kinds) for kinds in kris_scores.META.values()) == 20
    with pytest.raises(ValueError, match="no type 'magic'"):
        kris_scores.meta("magic")
