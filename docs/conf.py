"""Builds the documentation as a site, out of README.md and docs/, whose pages lie in it as they do
in the repository: `make docs`."""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from ai_agent_service import __version__

CONTENTS = {
    "Start": ["docs/tour", "docs/open-webui", "docs/install"],
    "Set up": [
        "docs/configuration",
        "docs/providers",
        "docs/reference",
        "docs/mcp",
        "docs/memory",
        "docs/security",
        "docs/resilience",
        "SECURITY",
    ],
    "Use": ["docs/api"],
    "Run": [
        "docs/operations",
        "docs/deployment",
        "docs/kubernetes",
        "docs/scaling",
        "docs/backup",
        "docs/evaluation",
    ],
    "Develop": [
        "docs/extending",
        "docs/architecture",
        "docs/benchmarks",
        "CONTRIBUTING",
        "docs/releasing",
        "CHANGELOG",
    ],
}
"""The pages after the README, in the order of the sidebar. A page that is not named here is a
fault, and so is one that is not there."""

project = html_title = "AI Agent Service"
version = release = __version__
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*", "ai_agent_service", "app", "data", "site", "tests", "**/node_modules"]
extensions = ["myst_parser"]
myst_heading_anchors = 4
smartquotes = False
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_use_index = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)\)")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _as_page)
    app.connect("build-finished", _with_index)


def _as_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Takes links to folders, which a site has not, out of a page, and gives the README the
    contents of the site."""
    folder = (Path(app.srcdir) / name).parent
    source[0] = _LINK.sub(
        lambda link: link[1] if (folder / link[2]).is_dir() else link[0], source[0]
    )
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += "\n".join(
                ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
            )


def _with_index(app: Sphinx, error: Exception | None) -> None:
    """Puts the first page where servers of files look for it."""
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")
