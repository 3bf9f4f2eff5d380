"""Sphinx configuration of the site; `docs/build.py` prepares the pages and calls Sphinx."""

from configparser import ConfigParser
from pathlib import Path

_parser = ConfigParser(delimiters=["="], interpolation=None)
_parser.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
_settings = _parser["DEFAULT"]

project = _settings["lib_name"]
author = _settings["author"]
release = version = _settings["version"]
copyright = _settings["copyright"]  # noqa: A001 (Sphinx wants this name)

extensions = ["myst_nb", "sphinx-mathjax-offline"]
nb_execution_mode = "off"  # build.py executes; Sphinx only shows
nb_ipywidgets_js = {}  # nothing from a network
nb_mime_priority_overrides = [("html", "text/html", 0)]
nb_render_markdown_format = "gfm"  # tables in Markdown that code displays
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]  # a section of a notebook may start below H2

root_doc = "nbs/index"
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
    "use_issues_button": False,
    "toc_title": "On this page",
    "navbar_persistent": [],
    "navigation_with_keys": False,
    "extra_footer": f"{project} {release}. Benchmark scenes are simulated unless a page says that they are real.",
}


def setup(app):
    """Read pages on several cores: the extension that copies MathJax has no state, but does not say so."""
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
