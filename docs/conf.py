"""Sphinx: the pages are MyST Markdown, the API reference comes from the docstrings."""

import ladderkern

project = "ladderkern"
author = "the ladderkern authors"
release = version = ladderkern.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["images"]
html_theme = "furo"
html_title = f"ladderkern {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the signature stands in the docstring's words, with shapes
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
