"""Hooks of mkdocs: pages link to source files beside `docs/`, which the site holds as text.

In the checkout and on a code host `../src/thurl/metrics.py` is the file itself. In the site such a link leads to a
copy below `files/`, so that pages open from the disk without a network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(\.\./((?:src|tests|examples)/[\w./-]+?\.(?:py|yaml|toml))\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the files that pages link to; one that is not there stays a broken link, which `--strict` refuses."""
    linked = {name for page in files.documentation_pages() for name in LINK.findall(page.content_string)}
    for name in sorted(linked):
        if (ROOT / name).is_file():
            files.append(File.generated(config, f"files/{name}.txt", content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead the links to the copies."""
    return LINK.sub(r"](files/\1.txt)", markdown)
