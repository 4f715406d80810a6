"""The site: `nox -s site`."""

project = "lora-doctor"
author = "The lora-doctor authors"
project_copyright = "The lora-doctor authors"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
myst_fence_as_directive = {"mermaid"}
myst_heading_anchors = 3
html_theme = "furo"
html_title = "lora-doctor"
exclude_patterns = ["_build"]
html_static_path = ["_static"]
html_js_files = ["search_tables.js"]
