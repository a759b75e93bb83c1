"""How the site is built: `make docs`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more only wait for each other in small solves

import api_pages  # noqa: E402  (docs/_ext)

import eigenexp  # noqa: E402

project = "eigenexp"
author = "The eigenexp authors"
copyright = "The eigenexp authors"
version = release = eigenexp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "sphinx_copybutton",
    "gallery",  # docs/_ext: notebooks, their thumbnails and their cards
    "reference_pages",  # docs/_ext: command line, configuration, benchmarks
]
exclude_patterns = ["_build", "_ext"]
templates_path = ["_templates"]
suppress_warnings = ["ref.python"]  # attributes of one name in several classes: no link is meant

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = os.environ.get("EIGENEXP_DOCS_EXECUTE", "cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_execution_cache_path = str(HERE / "_build" / "notebooks")

# Docstrings
# The pages themselves: Sphinx looks for new ones only after autosummary has looked for its own.
autosummary_generate = api_pages.pages(HERE / "reference")
autodoc_typehints = "none"  # the numpy sections of a docstring say the types, and the shapes
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Links: a page of code hosts or journals that is down is no fault of the docs.
linkcheck_anchors = False
linkcheck_timeout = 20

html_theme = "pydata_sphinx_theme"
html_title = "eigenexp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_sidebars = {"index": [], "start": []}


def plain_bars(
    app: object, kind: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Let ``|x|`` in a docstring be an absolute value: none of them means a substitution."""
    lines[:] = [
        re.sub(r"``.*?``|\|", lambda m: m[0] if len(m[0]) > 1 else "\\|", line) for line in lines
    ]


def setup(app: Sphinx) -> None:
    """Tell Sphinx what is here."""
    app.connect("autodoc-process-docstring", plain_bars)
