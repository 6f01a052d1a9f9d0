"""Pages and code are in plain American English: the habits that made them hard to read do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from inspect import cleandoc
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
PROGRAMS = [
    path
    for folder in ("uniedit_hf", "benchmarks", "dataset_builder", "spaces", "examples", "metrics", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(
        each.is_symlink() for each in path.parents
    )  # a link in a clone leads to a folder that is listed as well
]
# Texts for models are data: a change of them changes results.
DATA = (
    "uniedit_hf/evaluation/judge_prompts.py",
    "uniedit_hf/evaluation/suites/rise.py",
    "uniedit_hf/models/bagel/processing_bagel.py",
    "uniedit_hf/small_world/wording.py",
    "uniedit_hf/small_world/easy_vqa.py",
    "uniedit_hf/synthesis/stages/verify.py",
    "uniedit_hf/calls/cache.py",  # the SQL of a stored file
    "benchmarks/transformers_mixins.py",  # a file of transformers
    "tests/",
)
RIDDLES = {
    "name the thing: a docstring does not begin with 'What'": r"\A\s*(?:What|Who|Whoever|Whatever|Of)\b",
    "name the thing: not 'argument: Of the ...'": r"^ +[\w`][\w`, *]*: (?:Of|What|Whose) ",
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


def documentation(source: str) -> list[str]:
    """The docstrings and the comments of a program."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    docstrings = [node.value.value for node in nodes if isinstance(node.value, ast.Constant)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [text for text in docstrings if isinstance(text, str)] + comments


def messages(source: str) -> list[str]:
    """The string literals of a program that are sentences, its docstrings left out."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in literals if id(node) not in docstrings and " " in node.value]


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


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_has_none_of_the_habits(path):
    source, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    for where, deliberate in DELIBERATE:
        source = source.replace(deliberate, "") if where == name else source
    texts = documentation(source)
    found = [habit for text in texts for habit in habits_of(text)]
    found += [habit for text in (() if name.startswith(DATA) else messages(source)) for habit in habits_of(text)]
    if not name.startswith("tests/"):
        hits = [(remedy, re.search(riddle, text, re.M)) for text in texts for remedy, riddle in RIDDLES.items()]
        found += [f"{remedy}: {hit.group()}" for remedy, hit in hits if hit]
    prose = [re.sub(r"^(?:Shapes:|>).*?(?:\n\n|\Z)", "", cleandoc(text), flags=re.M | re.S) for text in texts]
    found += [each for text in prose for each in sentences(text) if len(each.split()) > LONGEST]
    assert found == []


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
