"""The documentation site: ``sphinx-build -W docs site`` builds it in the folder ``site``.

It needs the extra ``docs``. The reference is made from the docstrings of the installed package. Every block of code of
the pages is run by tests/docs/test_blocks.py.
"""

import rioecho

project = "rioecho"
author = "the rioecho developers"
version = release = rioecho.__version__
extensions = ["sphinx.ext.autodoc"]
exclude_patterns = []
html_theme = "furo"
html_title = f"rioecho {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name the types
default_role = "any"
nitpicky = False
smartquotes = False


def setup(app):
    """Write a default that means "not passed" as ``...``, as the stubs do."""

    def shorten(app, what, name, obj, options, signature, returns):
        return (signature and signature.replace("=Ellipsis", "=..."), returns)

    app.connect("autodoc-process-signature", shorten)
