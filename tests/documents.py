"""The code in the pages of docs/, which tests run as it stands there."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def blocks_of(page: str, most_lines: int) -> list[tuple[str, str]]:
    """Return kind and text of each block of code in a page, which has at most so many lines."""
    text = (DOCS / page).read_text()
    assert len(text.splitlines()) <= most_lines
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def python_in(page: str, most_lines: int) -> list[str]:
    """Return the Python blocks of a page."""
    return [text for kind, text in blocks_of(page, most_lines) if kind == "python"]
