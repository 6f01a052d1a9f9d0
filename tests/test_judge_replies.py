"""Judges' replies as a careful person reads them: by hand, and made from forms, marks and noise."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, strategies as st

from tests.judge_replies import readable, unreadable
from uniedit_hf.evaluation.scorers import gedit_scores, imgedit_scores, kris_scores, rise_scores, wise_scores
from uniedit_hf.evaluation.scorers.marks import Marks


WISE = ("Consistency", "Realism", "Aesthetic Quality")
IMGEDIT = ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity")
DUAL = ("Instruction", "Knowledge")


def kris(reply: str) -> Marks:
    return kris_scores.parse(reply, ["consistency"])


def dual(reply: str) -> Marks:
    return kris_scores.parse(reply, ["instruction", "knowledge"])


def rise(reply: str) -> Marks:
    return rise_scores.parse(reply, logical=False)


def puzzle(reply: str) -> Marks:
    return rise_scores.parse(reply, logical=True, number=2)


READERS = {
    "wise": (wise_scores.parse, WISE, 0, 2),
    "imgedit": (imgedit_scores.parse, IMGEDIT, 1, 5),
    "kris": (kris, ("Consistency",), 1, 5),
    "kris dual": (dual, DUAL, 1, 5),
    "rise": (rise, ("Final Score",), 1, 5),
}
MADE = [(name, *case) for name, (_, *rest) in READERS.items() for case in readable(*rest)]
UNREADABLE = [(name, *case) for name, (_, *rest) in READERS.items() for case in unreadable(*rest)]


def test_there_are_enough_replies():
    assert len(MADE) > 5000 and len(UNREADABLE) > 500 and len({reply for *_, reply, _ in MADE}) > 1200


@pytest.mark.parametrize("name", READERS)
def test_what_was_written_is_read(name):
    parse, *_ = READERS[name]
    wrong = [(case, reply, found) for reader, case, reply, marks in MADE if reader == name
             and list((found := parse(reply)).marks.values()) != marks]  # fmt: skip
    assert not wrong, f"{len(wrong)}, such as {wrong[:3]}"


@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_mark_is_not_read(name):
    parse, *_ = READERS[name]
    wrong = [(case, reply, found) for reader, case, reply in UNREADABLE if reader == name
             and (found := parse(reply)).status == "ok"]  # fmt: skip
    assert not wrong, f"{len(wrong)}, such as {wrong[:3]}"


REST = "\nRealism: 1\nAesthetic Quality: 0"


@pytest.mark.parametrize(
    "mark, read",
    [("1.5", None), ("10/10", None), ("100%", None), ("20", None), ("2 of the 3 apples are shown, so 1", 1),
     ("2 of the 3 apples are shown", None), ("1, as 2 of the 3 apples are shown", 1), ("2/2", 2), ("1/3", None),
     ("Exemplary (2)", 2), ("two", 2), ("0-2", None), ("1–2", None), ("there are 2 apples", None), ("2 apples", None),
     ("1 because 2 are missing", 1)],
)  # fmt: skip
def test_wise_marks(mark, read):
    found = wise_scores.parse(f"Consistency: {mark}{REST}")
    assert found.marks.get("consistency") == read and found.status == ("parse_error" if read is None else "ok")


@pytest.mark.parametrize(
    "reply, mark",
    [
        ("3.5/5", None),
        ("4.5 out of 5", None),
        ('{"reasoning": "about 2/5 of the sky', None),
        ('{"consistency_score": 4, "reasoning": "about 2/5 of the sky', 4),
        ("4/50", None),
        ("14/5", None),
        ("On 4/5/2023 it was fine.", None),
        ("4/5", 4),
        ("I give 3/5.", 3),
        ("I rate the sky, 2/5 of the image.", None),
        ('Draft: {"consistency_score": 2, "reasoning": "d"}\nFinal: {"consistency_score": 4, "reasoning": "f"}', 4),
        ("Consistency Score: 4", 4),
        ("The consistency of the 2 dogs is good.", None),
        ('{"consistency_score": 9}', None),
        ('{"consistency_score": true}', None),
        ('{"consistency_score": null}', None),
        ('{"quality_score": 4}', None),
        ('{"score": 4}', 4),
        ("Quality score: 4", None),
    ],
)
def test_kris_marks(reply, mark):
    assert kris(reply).marks == ({} if mark is None else {"consistency": mark})


@pytest.mark.parametrize(
    "reply, mark",
    [
        ("Final Score: 4.5", None), ("Final Score: 4/10", None), ("Final Score: 3-4", None), ("Final score: 4", 4),
        ("FINAL SCORE: 4", 4), ("final score: **4**", 4), ('{"final_score": 4, "reasoning": "3 of 5"}', 4),
        ("Final Score: 4\nScale: Final Score: 1 = poor, Final Score: 5 = perfect", 4),
        ("Final Score: 4 (1 = poor, 5 = perfect)", 4), ("Final Score: 4\nNote: Final Score 5 means perfect.", 4),
        ("Final Score: 4\n(Final Score 1: bad, Final Score 5: good)", 4), ("Final Score: 4/5/2023", None),
        ("Final Score: 4\n1: bad\n5: good", 4), ("Final Score: 4\nFinal Score: 1-5, where 5 is best", 4),
        ("Final Score: 3. Wait, the tail is right.\nFinal Score: 4", 4), ("Final Score: 3\nFinal Score: 4", None),
        ("Initial score: 2\nFinal Score: 4", 4), ("Final Score:\n4", 4), ("Final Score: \\boxed{4}", 4),
    ],
)  # fmt: skip
def test_rise_marks(reply, mark):
    assert list(rise(reply).marks.values()) == ([] if mark is None else [mark])


@pytest.mark.parametrize(
    "reply, marks",
    [("Final Score: 1, 0", [1, 0]), ("Final Score: 1,0", [1, 0]), ("**Final Score**: **1**, **0**", [1, 0]),
     ("Final Scores: [1, 0]", [1, 0]), ("Final Score: 1/1, 0/1", [1, 0]), ('{"final_score": [1, 0]}', [1, 0]),
     ("Final Score: 1", []), ("Final Score: 5, 1", []), ("Final Score: 0.5, 1", [])],
)  # fmt: skip
def test_puzzle_marks(reply, marks):
    assert list(puzzle(reply).marks.values()) == marks


LONG = [
    "**a" * 20_000,
    "<a" * 30_000,
    "| a " * 20_000 + "\n| 1",
    "Consistency: " * 5000,
    "\\frac{1" * 9000,
    "a " * 40_000,
]
DEEP = [*LONG, "[" * 2000, '{"a":' * 2000, '{"score": [' + "9" * 4400 + "]}", "9" * 4400, "{" * 5000, '"' * 5000]


@pytest.mark.parametrize(
    "reply, mark",
    [
        ("I cannot score, see policy [1]", None), ("The dogs are at [3, 4]", None),
        ('{"reasoning": "cut in two"} at [1, 2]', None), ('{"score": [7, 5], "reasoning": "a\nb"}', 5),
        ('{"score": [7, 1', None), ('{"score": 1', None), ("Score: [7, 5]", 5), ("**Score:** 7/10", 7),
        ('{"reasoning": "see [3, 4]", "score": [7, 5],}', 5), ('Draft {"score": [2, 2]}, then {"score": [7, 5]}', 5),
        ('{"score": [7, 11]}', None),
        ('```{"score": [7, 5]```', 5), ("[3, 4]", 3), ("6", 6), ('{"score": NaN}', None),
        *((each, None) for each in DEEP),
    ],
)  # fmt: skip
def test_gedit_marks(reply, mark):
    assert gedit_scores.parse(reply).marks == ({} if mark is None else {"score": mark})


@pytest.mark.parametrize(
    "reply, marks",
    [
        ("Instruction: 4\nQuality: 3\nObjects changed: 3", []),
        ("Instruction: 4\nQuality: 3\nShadows: 2", []),
        ("Objects changed: 3\nInstruction: 4\nQuality: 3\nPreservation: 2", [4, 3, 2]),
        ("Instruction: 5 (clear)\nQuality: 4\nPreservation: 3\nOverall: 4", [5, 4, 3]),
        ('{"Instruction": 5, "Quality": 4, "Preservation": 3, "overall": 4}', [5, 4, 3]),
        ("Instruction: 4.5\nQuality: 4\nPreservation: 3", []),
        ("Object Identity: 4\nMask Precision: 3\nVisual Quality: 5", [4, 3, 5]),
        ("Average: 4.33\nInstruction: 5\nQuality: 4\nPreservation: 4", [5, 4, 4]),
    ],
)
def test_imgedit_marks(reply, marks):
    assert list(imgedit_scores.parse(reply).marks.values()) == marks


TRAPS = {
    "wise": [
        ("It asks for consistency of 2 apples.\n\nConsistency: 1\nRealism: 0\nAesthetic Quality: 2", [1, 0, 2]),
        ("Consistency: 2 (0 would mean no match)\nRealism: 1 (scale 0-2)\nAesthetic Quality: 1 (2 = best)", [2, 1, 1]),
        ("Rubric: Consistency: 0-2, Realism: 0-2, Aesthetic Quality: 0-2.\n\nConsistency: 2\nRealism: 1\n"
         "Aesthetic Quality: 1", [2, 1, 1]),
        ("Consistency: 0\nRealism: 1\nAesthetic Quality: 2\n\nRevised scores:\nConsistency: 1\nRealism: 1\n"
         "Aesthetic Quality: 2", [1, 1, 2]),
        ("A - Consistency: 2, Realism: 1, Aesthetic Quality: 1\nB - Consistency: 1, Realism: 1, "
         "Aesthetic Quality: 1", []),
        ("Scores (Consistency/Realism/Aesthetic Quality): 2/1/0", []),
        ("Consistency: 3/3\nRealism: 1/2\nAesthetic Quality: 0/2", []),
        ("Consistency: \nRealism: 0\nAesthetic Quality: 1", []),
        ("Consistency：2分\nRealism：1分\nAesthetic Quality：1分", [2, 1, 1]),
    ],
    "kris": [
        ('{"consistency_score": "4 - minor changes"}', [4]), ('{"consistency_score": 4, "consistency_score": 2}', [2]),
        ('{"consistency_score": [3, 4]}', []), ('{"consistency_score": null, "reasoning": "4/5"}', []),
        ('{"reasoning": "first consistency_score: 2", "consistency_score": 4}', [4]),
        ("Sorry, I cannot help. Error 4/5.", []), ("Between 3 and 4, I lean 4.", []), ("I'd give it 4/5.", [4]),
        ("Consistency: 4/5, Quality: 2/5", [4]), ("| Consistency | 4 | 5 |", []),
    ],
    "kris dual": [
        ('{"instruction_score": 4}\n{"knowledge_score": 2}', [4, 2]), ("Both 4", []),
        ("Instruction: 4/5. Knowledge: 2/5.", [4, 2]),
    ],
    "rise": [
        ("Final Score: (3+5)/2 = 4", []), ("Final Score: Consistency 4, Reasoning 3", []), ("Final Score: 4 → 3", []),
        ("The final score of the game is 4:2. Final Score: 3", [3]), ("Final Score: 4 to 5", []),
        ("Score: 2 for the sky, 5 for the rest. Final Score: 4", [4]), ("Final Score: 3\n\nFinal Score: 3", [3]),
        ("My final score would be 4.", [4]),
    ],
    "imgedit": [
        ("Instruction: 4\nQuality: 3\nNumber of objects: 5", []), ("4, 3, 5", []), ("Scores: 4, 3, 5", [4, 3, 5]),
        ("Instruction: 4\nQuality: 3\nPreservation: 5\nNumber of dogs: 2\nFinal Score: 4", [4, 3, 5]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_a_careful_reader_is_not_misled(name):
    parse, *_ = READERS[name]
    wrong = [(reply, found) for reply, marks in TRAPS[name] if list((found := parse(reply)).marks.values()) != marks]
    assert not wrong, wrong


ALL = [
    *(parse for parse, *_ in READERS.values()),
    puzzle,
    gedit_scores.parse,
    lambda reply: wise_scores.parse(reply, compat=True),
    lambda reply: imgedit_scores.parse(reply, "uniedit"),
    lambda reply: imgedit_scores.parse(reply, "lmms-eval"),
    lambda reply: gedit_scores.parse(reply, "uniedit"),
    lambda reply: rise_scores.parse(reply, False, 1, "uniedit"),
    lambda reply: kris_scores.parse(reply, ["quality"], True),
    lambda reply: kris_scores.parse(reply, ["instruction", "knowledge"], True),
]
PIECES = (
    "Final Score",
    "Consistency",
    "score",
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    "5",
    "/",
    "of",
    "\n",
    "**",
    "9" * 20,
    " ",
    "½",
)


@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_reply_raises(reply):
    for parse in ALL:
        found = parse(reply)
        assert bool(found.marks) == (found.status == "ok")


@pytest.mark.parametrize("reply", DEEP, ids=range(len(DEEP)))
def test_no_reply_is_too_deep_or_long(reply):
    start = time.process_time()
    for parse in ALL:
        parse(reply)
    assert time.process_time() - start < 5


@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.text(max_size=60))
def test_json_is_read_whatever_the_reasons_say(first, second, third, reasons):
    marks = {"consistency": first, "realism": second, "aesthetic quality": third}
    assert wise_scores.parse(json.dumps(marks | {"reasons": reasons})).marks == marks
