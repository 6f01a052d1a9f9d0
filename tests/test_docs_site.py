"""`make docs` builds the site without a warning and without a network, and its pages are complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("sphinx", reason="the site needs the extra docs")
pytest.importorskip("furo", reason="the site needs the extra docs")

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site):
    assert {page.stem for page in ROOT.glob("docs/*.md")} <= {page.stem for page in site.glob("*.html")}


def test_links_of_the_site_lead_somewhere(site):
    """Files and anchors, of every page; what autodoc writes as well."""
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    broken = []
    for name, text in pages.items():
        for link in re.findall(r'href="([^"]+)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            target = target.partition("?")[0] or name
            if not (site / target).exists() or (anchor and target in ids and anchor not in ids[target]):
                broken.append((name, link))
    assert broken == []


def test_the_reference_has_docstrings(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("UniEditPipeline.edit", "UniEditTrainer.plan", "hub.load_split", "BagelProcessor"):
        assert f'id="uniedit_hf.{name}"' in text, name


def test_nothing_is_fetched_from_elsewhere(site):
    """Styles and scripts are the site's own, so that it opens without a network."""
    for page in site.glob("*.html"):
        assert re.findall(r'(?:src|<link[^>]+href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")) == []
