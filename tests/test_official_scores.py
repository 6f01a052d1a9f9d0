"""Every `compat` against the official formulas (`official_formulas.py`), over replies in good and in bad form."""

from __future__ import annotations

import math
import random

import pytest

from tests import official_formulas as official
from tests.judge_replies import BAD, FORMS, NOISE
from uniedit_hf.evaluation.items import Item, Outcome
from uniedit_hf.evaluation.scorers import gedit_scores, imgedit_scores, kris_scores, rise_scores, wise_scores
from uniedit_hf.evaluation.suites import suite


def close(found, expected) -> bool:
    return found == expected or math.isclose(found, expected, rel_tol=0, abs_tol=1e-9)


def reply_of(rng: random.Random, labels, low: int, high: int, bad: float = 0.2) -> str:
    """A reply in any form, with marks off the scale and in bad form among them."""
    marks = [rng.choice(BAD) if rng.random() < bad else rng.randint(low, high + (rng.random() < bad)) for _ in labels]
    return NOISE[rng.choice(list(NOISE))](FORMS[rng.choice(list(FORMS))](labels, marks, high))


# ---- WISE


def test_wise():
    rng, suite_ = random.Random(1), suite("wise")
    rows = [{"prompt_id": number, "Subcategory": rng.choice(["Horizontal time", "Longitudinal time", "Geography"])}
            for number in range(1, 1001)]  # fmt: skip
    plain = [
        name
        for name, form in FORMS.items()
        if name
        in ("plain", "bold label", "over", "wide colon", "numbered", "one line", "crlf", "comment", "trailing blanks")
    ]
    names = ("Consistency", "Realism", "Aesthetic Quality")
    replies = [FORMS[rng.choice(plain)](names, [rng.randint(0, 9) for _ in names], 2) for _ in rows]
    rows[500]["Subcategory"], replies[3] = "Horizontal time", "Consistency: 1.5\nRealism 1\nAesthetic Quality: 10"
    items = [Item(str(row["prompt_id"]), "", row) for row in rows]
    outcomes = [suite_.score(item, {"wise": reply}, "uniedit") for item, reply in zip(items, replies)]
    found, expected = suite_.summary(list(zip(items, outcomes)), "uniedit"), official.wise(rows, replies)
    assert expected and all(close(found[name], value) for name, value in expected.items()), (found, expected)
    for broken in ("Consistency: 2", ""):
        with pytest.raises(ValueError):
            official.wise(rows, [*replies[:-1], broken])
        outcomes[-1] = suite_.score(items[-1], {"wise": broken}, "uniedit")
        with pytest.raises(ValueError, match="stops at science"):
            suite_.summary(list(zip(items, outcomes)), "uniedit")


def test_wise_reads_every_reply_as_the_script_does():
    rng, rows = random.Random(2), [{"prompt_id": number, "Subcategory": ""} for number in range(1, 1001)]
    rows[450]["Subcategory"] = "Horizontal time"
    whole = 0
    for _ in range(60):
        reply = reply_of(rng, ("Consistency", "Realism", "Aesthetic Quality"), 0, 2)
        marks = wise_scores.parse(reply, compat=True).marks
        if wise_scores.SENTINEL in marks.values():
            with pytest.raises(ValueError):
                official.wise(rows, [reply] * 1000)
        else:
            assert close(wise_scores.wiscore(marks), official.wise(rows, [reply] * 1000)["culture"])
            whole += 1
    assert 10 < whole < 60


# ---- ImgEdit

IMGEDIT = ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity")
ODD = (
    "A: 5\nB: **4**\nC: 3.",
    "A: 4\r\nB: 4\r\nC: 3\r\n",
    "A: 4 \nB: 3 \nC: 2 ",
    "4\n5\n3",
    "I give\nX 4\nY 5\nZ 2",
    "none",
    "",
    "A: 1\x0bB: 2\x0cC: 5",
    "x: 3: 4\nA: 5",
    "Score: 50\nB: 40\nC: 1",
)


@pytest.mark.parametrize(
    "compat, formula", [("uniedit", official.imgedit_uniedit), ("lmms-eval", official.imgedit_lmms)]
)
def test_imgedit(compat, formula):
    rng, suite_ = random.Random(3), suite("imgedit")
    replies = [*ODD, *(reply_of(rng, IMGEDIT, 1, 5) for _ in range(500))]
    kinds = [rng.choice(imgedit_scores.TYPES) for _ in replies]
    items = [Item(str(index), "", {"edit_type": kind}) for index, kind in enumerate(kinds)]
    outcomes = [suite_.score(item, {"imgedit": reply}, compat) for item, reply in zip(items, replies)]
    found, expected = suite_.summary(list(zip(items, outcomes)), compat), formula(kinds, replies)
    assert found.keys() == expected.keys()
    assert all(close(found[name], value) for name, value in expected.items()), (found, expected)
    for kind, reply in zip(kinds[:200], replies):  # each of its own, so that errors cannot cancel
        one = suite_.score(items[0], {"imgedit": reply}, compat)
        alone = formula([kind], [reply]) if compat == "lmms-eval" or one.value is not None else {"overall": None}
        assert alone["overall"] == (one.value if one.value is not None or compat == "uniedit" else 0.0) or close(
            alone["overall"], one.value)  # fmt: skip


# ---- GEdit

GEDIT = (
    '{"score": [7, 5], "reasoning": "a"}',
    '{"score": [11, 12]}',
    '{"score": 8}',
    "[3, 4]",
    "[3,4]",
    "6",
    "16",
    "no",
    "{score: 7, reasoning: fine}",
    '{"score": [6,\n 3],\n"reasoning": "b"}',
    '||V^=^V|| {"score": [9]} ||V^=^V|| x',
    '{"score": ["7"]}',
    '{"score": []}',
    '{"reasoning": "x"}',
    '{"score": true}',
    '{"score": 2.5}',
    "see [1]",
    'a {"score": [2, 2]} b {"score": [7, 5]}',
    '{"score": -4}',
    '```json\n{"score": [10, 9]}\n```',
    "",
)


@pytest.mark.parametrize("reply", GEDIT)
def test_gedit_replies(reply):
    try:
        expected = min(official.viescore(reply)) + 0.0
    except (TypeError, ValueError):
        expected = None
    assert gedit_scores.parse(reply, "lmms-eval").marks == ({} if expected is None else {"score": expected})


@pytest.mark.parametrize("compat", ["uniedit", "lmms-eval"])
@pytest.mark.parametrize("groups", [gedit_scores.GROUPS, gedit_scores.GROUPS[1:]])
def test_gedit(compat, groups):
    rng, suite_ = random.Random(4), suite("gedit")
    rows = [
        {"task_type": rng.choice(groups), "instruction_language": rng.choice(["en", "cn"]), "Intersection_exist": True}
        for _ in range(600)
    ]
    texts = [each for each in GEDIT if "-4" not in each]
    replies = [(rng.choice(texts), rng.choice(texts)) for _ in rows]
    items = [Item(str(index), "", row) for index, row in enumerate(rows)]
    outcomes = [suite_.score(item, dict(zip(("sc", "pq"), pair)), compat) for item, pair in zip(items, replies)]
    found = suite_.summary(list(zip(items, outcomes)), compat)
    if compat == "lmms-eval":
        expected = official.gedit_lmms(rows, replies)
    else:
        expected = official.gedit_uniedit(rows, replies, gedit_scores.GROUPS)
    for name, value in expected.items():
        assert found[name] is None if math.isnan(value) else close(found[name], value), name
    assert math.isnan(expected["overall"]) == (compat == "uniedit" and len(groups) == 10)
    assert compat != "lmms-eval" or suite_.summary([], compat)["overall"] == 0  # as it says of nothing


# ---- RISE

FINAL = ("Final Score: 5", "**Final Score**: **4**", "final score: 3", "Final Score: 9", "Final Score: 4/10", "none",
         "Final Score: 4.5", "Final Scores: 2", "Final Score: none. Final Score: 1", "Final Score: 1\nFinal Score: 5",
         "FINAL SCORE:\n5", "Final Score: 3-4", "")  # fmt: skip
CATEGORIES = rise_scores.CATEGORIES


def rise_row(rng: random.Random, number: int, flags) -> dict:
    row = {
        "index": str(number),
        "category": rng.choice(CATEGORIES),
        "subtask": rng.choice(["Maze", "Growth", "Layout"]),
    }
    flag = rng.choice(flags)
    return row if flag == "missing" or row["category"] == "logical_reasoning" else row | {"consistency_free": flag}


@pytest.mark.parametrize("compat", ["uniedit", "upstream"])
@pytest.mark.parametrize("flags", [["missing"], ["missing", True], [None, True], ["missing", None, True, False]])
def test_rise(compat, flags):
    rng, suite_ = random.Random(5), suite("rise")
    rows = [rise_row(rng, number, flags) for number in range(400)]
    items = [Item(row["index"], "", row | {"reference": "r", "image": "a.png"}, [None]) for row in rows]
    replies, outcomes = [], []
    for item in items:
        names = [question.name for question in suite_.questions(item, None, {}, compat)]
        pair = (
            [["Final Score: 1, 0", "Final Score: 1, 1", "Final Score: 4, 1", "no"]]
            if names == ["logical"]
            else [FINAL]
        )
        texts = {name: rng.choice(rng.choice(pair)) for name in names}
        outcomes.append(suite_.score(item, texts, compat))
        replies.append(list(texts.values()))
    found = suite_.summary(list(zip(items, outcomes)), compat)
    expected = official.rise(rows, replies, compat == "upstream")
    assert 0 < expected["overall accuracy"] < 100 and any(outcome.status != "ok" for outcome in outcomes)
    assert len(expected) > 12
    for name, value in expected.items():
        assert close(found[name], value), (name, found[name], value)


def test_rise_counts_failed_items_as_wrong():
    rows = [{"category": "causal_reasoning"}, {"category": "causal_reasoning"}]
    right = dict.fromkeys(("consistency", "reasoning", "plausibility"), 5)
    assert rise_scores.summary([(rows[0], right), (rows[1], None)])["overall accuracy"] == 100
    for compat in ("uniedit", "upstream"):
        found = rise_scores.summary([(rows[0], right), (rows[1], {})], compat)
        assert found["overall accuracy"] == 50 and found["overall percent"] == 100


# ---- KRIS-Bench

SINGLE = (
    '{"consistency_score": 4, "reasoning": "r"}',
    '{"consistency_score": 9}',
    '{"consistency_score": 3.7}',
    '{"consistency_score": "4"}',
    '{"consistency_score": "4/5"}',
    '{"consistency_score": null}',
    "3.5/5",
    "4/50",
    "14/5",
    "On 4/5/2023",
    "4.5 out of 5",
    "Consistency Score: 4",
    "consistency_score：3",
    "I see 2 dogs",
    "none",
    "",
    '{"a": {"b": 1}, "consistency_score": 4}',
    '{"consistency_score": 4, "detail": {"x": 2}}',
    '{"consistency_score": 4,}',
    'Draft {"consistency_score": 2} final {"consistency_score": 5}',
    '{"reasoning": "2/5 of the sky',
    '{"consistency_score": true}',
    '{"consistency_score": [4]}',
    "7 of 10, 3 out of 5",
)
DUAL = (
    '{"instruction_score": 4, "knowledge_score": 1}',
    '{"instruction_score": 4}',
    '{"instruction_score": 9, "knowledge_score": 0}',
    'x {"instruction_score": 4, "knowledge_score": {"a": 1}} y',
    '{"instruction_score": 4, "knowledge_score": 1,}',
    '{"instruction_score": "4", "knowledge_score": "2"}',
    '{"instruction_score": null, "knowledge_score": 2}',
    "{}",
    "Instruction Score: 4\nKnowledge score: 3",
    "instruction_score: 4",
    "4 and 3",
    "",
    "}{",
    'a {"x": {"y": 1}, "instruction_score": 2, "knowledge_score": 5} b',
    '{"instruction_score": 3.9, "knowledge_score": 2.1}',
)


@pytest.mark.parametrize("kind", ["color_change", "biology"])
@pytest.mark.parametrize("reply", SINGLE)
def test_kris_single(reply, kind):
    expected = official.kris_single(reply, "consistency_score", kind == "biology")
    found = kris_scores.parse(reply, ["consistency"], compat=True, kind=kind)
    assert found.marks == ({} if expected is None else {"consistency": expected})


@pytest.mark.parametrize("reply", DUAL)
def test_kris_dual(reply):
    try:
        expected = official.kris_dual(reply)
    except (TypeError, ValueError, AttributeError):
        expected = (None, None)
    found = kris_scores.parse(reply, ["instruction", "knowledge"], compat=True)
    assert tuple(found.marks.values()) == (() if None in expected else expected)


def test_kris():
    rng, suite_ = random.Random(6), suite("kris")
    rows, expected = [], []
    for number in range(400):
        kind = rng.choice([each for kinds in kris_scores.META.values() for each in kinds])
        item = Item(str(number), "", {"type": kind, "id": str(number)}, [None])
        texts, marks = {}, []
        for question in suite_.questions(item, None, {}, "uniedit"):
            text = rng.choice(DUAL if question.name == "knowledge" else SINGLE).replace(
                "onsistency", question.name[1:]
            )
            text = text.replace("c" + question.name[1:], question.name)
            texts[question.name] = text
            try:
                marks += (
                    official.kris_dual(text)
                    if question.name == "knowledge"
                    else [official.kris_single(text, f"{question.name}_score", kind in kris_scores.KNOWLEDGE)]
                )
            except (TypeError, ValueError, AttributeError):
                marks.append(None)
        rows.append((item, suite_.score(item, texts, "uniedit")))
        if None not in marks:
            expected.append((kind, marks))
    found = suite_.summary(rows, "uniedit")
    for name, value in official.kris_summary(expected, kris_scores.META).items():
        assert close(found[name], value), name
    assert 50 < len(expected) < 400


def test_a_failed_item_counts_as_each_script_counts_it():
    failed = Outcome("no_reply", reason="HTTP 500")
    item = Item("a", "", {"edit_type": "add", "task_type": "ps_human", "instruction_language": "en",
                          "Intersection_exist": True, "category": "causal_reasoning"})  # fmt: skip
    assert suite("imgedit").summary([(item, failed)], "lmms-eval") == {"add": 0, "overall": 0}
    assert suite("imgedit").summary([(item, failed)], "uniedit") == {"overall": None}
    assert suite("gedit").summary([(item, failed)], "lmms-eval")["overall"] == 0
    assert suite("rise").summary([(item, failed)], "upstream")["overall accuracy"] == 0
    assert suite("rise").summary([(item, failed)]) == {}
