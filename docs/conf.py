"""How Sphinx builds the site: `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded to write documentation

from uniedit_hf import __version__  # noqa: E402


project, author, copyright = "uniedit_hf", "the maintainers", "the maintainers, Apache License 2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme, html_title = "furo", "uniedit_hf"
html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_static_path, html_css_files = ["site"], ["wrapped.css"]
default_role = "code"  # `name` in a docstring
html_theme_options = {"light_css_variables": {"color-brand-primary": "#2f6f4f", "color-brand-content": "#2f6f4f"}}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings, as in own_data.md#from-parquet
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "__init__, __new__"}
napoleon_google_docstring, napoleon_numpy_docstring = True, False


def setup(app) -> None:
    """Pages link to the results as a reader of the repository needs it; the site has a page of its own for them."""

    def linked(app, name, text):
        text[0] = text[0].replace("](../benchmarks/RESULTS.md", "](results.md")

    app.connect("source-read", linked)
