"""The files that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from uniedit_hf.former_modules import FORMER_MODULES
from uniedit_hf.recipes import Conditioning


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


LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
# Where the pages send a reader. These addresses are listed, not fetched.
EXTERNAL = {
    "https://huggingface.co/datasets/Uni-Edit/Train-Data",
    "https://keepachangelog.com/en/1.1.0/",
    "https://semver.org",
}


def links(page: Path) -> list[str]:
    """The link targets of a page outside its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return LINK.findall(text) + re.findall(r'<img [^>]*src="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page):
    broken = []
    for link in links(page):
        if link.startswith(("http://", "https://")):
            broken += [link] if link not in EXTERNAL else []
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_external_address_is_used():
    assert {link for page in PAGES for link in links(page) if link.startswith("http")} == EXTERNAL


def test_every_page_is_in_the_site_and_in_the_list_of_tasks():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {
        name.strip()
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
        for name in block.split("\n")
    }
    pages = {page.stem for page in ROOT.glob("docs/*.md")} - {"index"}
    assert pages <= listed


def test_readme_fits_two_screens():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 120


def test_changelog_lists_the_names_that_are_refused():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    modules = {
        former.removeprefix("uniedit_hf."): new.removeprefix("uniedit_hf.") for former, new in FORMER_MODULES.items()
    }
    rows = [f"| module | `{former}` | `{new}` |" for former, new in modules.items()]
    rows += [f"| option | `{former}` | `{new}` |" for former, new in Conditioning.FORMER_NAMES.items()]
    assert [row for row in rows if row not in changelog] == []


def test_something_is_checked():
    assert any("uniedit_hf/segments.py" in page.read_text(encoding="utf-8") for page in PAGES)


FAMILIES = [*ROOT.glob("uniedit_hf/models/*/README.md")]


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.parent.name)
def test_a_family_says_where_each_mistake_is_prevented(page):
    """A file, and names that it defines or uses, in the last cell of each row."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row.strip("| ").split(" | ")[-1] for row in rows if not row.startswith(("|---", "| mistake"))]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)`((?:[^`]|`\w+`)*)", row)
        assert named or "`" in row, row
        for file, names in named:
            path = next(path for path in (page.parent / file, ROOT / file) if path.exists())
            source = path.read_text(encoding="utf-8")
            assert all(name in source for name in re.findall(r"`(\w+)`", names)), row
