"""The documentation is in plain American English: the habits that made it hard to read do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("spaces/**/*.md"),
    *ROOT.glob("tests/fixtures/*.md"),
    *ROOT.glob("uniedit_hf/models/*/*.md"),
]
HABITS = {
    "write 'is not a'": r"(?<!there )\b(?:is|are|was|were) no (?!(?:longer|more|less|larger|smaller)\b)[a-z]",
    "write 'resume' or 'continue'": r"\b(?:go|goes|gone|going|went) on (?:from|where|when|with|at|to)\b|\bgone on\b",
    "write 'is in'": r"\b(?:stands?|stood) (?:in|beside|between|here|there)\b",
    "write 'is missing'": r"\black(?:s|ed|ing)?\b",
    "write 'image'": r"\bpictures?\b",
    "write 'learned'": r"\blearnt\b",
    "write 'percent'": r"\bper cent\b",
    "use American spelling": r"(?:colour|grey|behaviour|neighbour|favour|licence|centre|artefact)s?\b"
    r"|\b\w*(?:normal|quant|token|recogn|initial|optim|serial|summar|general)is(?:e[sd]?|ing|ation|er)\b",
}
LONGEST = 40  # words of a sentence
# (page, text): why it stays.
DELIBERATE = {("CHANGELOG.md", "image, not picture,"): "names the word that was replaced"}


def prose(text: str) -> str:
    """The text without code blocks and link targets, each code span as one word."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]*`", "X", text))


def habits_of(text: str) -> list[str]:
    """'remedy: found' for each habit in `text`."""
    found = [(remedy, hit) for remedy, habit in HABITS.items() for hit in re.finditer(habit, prose(text), re.I)]
    return [f"{remedy}: {hit.group()}" for remedy, hit in found]


def sentences(text: str) -> list[str]:
    """The sentences of the prose and of the cells of its tables."""
    cells = [cell for line in prose(text).splitlines() for cell in line.split(" | ")]
    return [sentence for cell in cells for sentence in re.split(r"(?<=[.:;?!])\s", cell)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_none_of_the_habits(page):
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    for where, deliberate in DELIBERATE:
        text = text.replace(deliberate, "") if where == name else text
    assert habits_of(text) == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name in ("docs", "bagel", "janus") or page.name == "README.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_no_sentence_is_longer_than_a_reader_can_hold(page):
    assert [each for each in sentences(page.read_text(encoding="utf-8")) if len(each.split()) > LONGEST] == []


def test_exceptions_are_few_and_used():
    assert len(DELIBERATE) <= 10
    for (name, deliberate), reason in DELIBERATE.items():
        assert reason and habits_of(deliberate), (name, deliberate)
        assert deliberate in (ROOT / name).read_text(encoding="utf-8"), f"{name} has no {deliberate!r}: remove it"


@pytest.mark.parametrize(
    "text",
    ["X is no BAGEL checkpoint.", "It goes on from there.", "It stands in a file.", "A key lacks.", "a grey picture"],
)
def test_the_search_finds_a_habit(text):
    assert habits_of(text)


@pytest.mark.parametrize("text", ["There is no cache.", "That is no longer so.", "`picture`", "```\na picture\n```\n"])
def test_the_search_leaves_good_english_and_code_alone(text):
    assert habits_of(text) == []
