"""The reports are HTML pages that share one head: they fit a phone, follow the system's colors and escape values."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from uniedit_hf.pages import render


ROOT = Path(__file__).parents[1] / "uniedit_hf"
LONG = "a_name_without_any_place_to_break_it_" * 6
COMPARISON = {
    "suite": f"<b>wise</b> {LONG}",
    "table": [["wise", "tuned", "baseline"], [LONG, "0.612", "0.580"]],
    "sentences": [f"tuned: {LONG}"],
    "extremes": [("lost", [{"prompt": LONG, "figures": [], "answers": ["tuned: a <b>, 0.000"]}])],
}


def test_every_page_extends_the_common_one():
    pages = sorted(ROOT.rglob("templates/*.html.j2"))
    assert len(pages) == 5
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert path.name == "page.html.j2" or text.startswith('{% extends "page.html.j2" %}'), path
        assert path.name == "page.html.j2" or "<head>" not in text


def test_values_are_escaped_and_none_may_be_missing():
    page = render("uniedit_hf.evaluation", "comparison.html.j2", **COMPARISON)
    assert "<title>&lt;b&gt;wise&lt;/b&gt;" in page and "tuned: a &lt;b&gt;, 0.000" in page
    assert "color-scheme: light dark" in page and 'name="viewport"' in page
    with pytest.raises(UndefinedError):
        render("uniedit_hf.evaluation", "comparison.html.j2", **COMPARISON | {"extremes": [("lost", [{}])]})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_page_fits_a_phone(tmp_path):
    (tmp_path / "page.html").write_text(render("uniedit_hf.evaluation", "comparison.html.j2", **COMPARISON))
    measure = "let page = this.contentDocument.documentElement; document.title = page.scrollWidth - page.clientWidth"
    frame = f'<iframe src="page.html" width="390" height="2000" style="border: 0" onload="{measure}"></iframe>'
    (tmp_path / "phone.html").write_text(f"<title>not measured</title>{frame}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += ["--virtual-time-budget=3000", "--dump-dom", (tmp_path / "phone.html").as_uri()]
    shown = subprocess.run(["chromium", *options], capture_output=True, text=True, timeout=100).stdout
    assert "<title>0</title>" in shown
