"""The site: `nox -s site`."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # tools/

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


def add_census_rows(app, docname, source):
    """Behind what docs/census_rows.md says stands a table of every row of the census."""
    if docname == "census_rows":
        from tools.census_rows import table

        source[0] += "\n" + table(json.loads((HERE / "census_rows.json").read_text("utf-8")))


def setup(app):
    app.connect("source-read", add_census_rows)
