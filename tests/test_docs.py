"""The files that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
# In backticks: something with a slash or the ending of a file of ours, and no blanks or wildcards.
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|(?!__)[\w.-]+\.(?:py|md|cfg|toml|txt))`|\]\(((?!https?:|#)[^)#]+)")
MADE_BY_RUNNING = ("runs/", ".venv")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    names = {code or link for code, link in NAMED.findall(page.read_text(encoding="utf-8"))}
    names = {name for name in names if re.search("[a-zA-Z]", name)}  # not 10/10
    lacking = [
        name
        for name in names
        if not name.startswith(MADE_BY_RUNNING) and not (ROOT / name).exists() and not (page.parent / name).exists()
    ]
    assert lacking == []


def test_something_is_checked():
    assert any("uniedit_hf/segments.py" in page.read_text(encoding="utf-8") for page in PAGES)
