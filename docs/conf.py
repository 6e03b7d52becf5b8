"""The documentation's site: Sphinx reads the repository's own Markdown pages, so that every link works in both places.

`make docs` builds it. The source folder is the repository, as pages link to README, SECURITY, CHANGELOG and the chart.
"""

project = "Kiln"
author = "The Kiln developers"
copyright = "The Kiln developers, BSD 3-Clause"  # noqa: A001

extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "chart/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "docs/_*", "builds", "eventing", "handlers", "kiln", "mutants", "tests"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "sphinx_book_theme"
html_title = "Kiln"
html_extra_path = ["_root"]  # the site's first page leads to docs/index.html
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False}
copybutton_exclude = ".linenos, .gp"
