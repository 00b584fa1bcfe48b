"""Checks of an HTML file without a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

VOID = "meta link br hr img input".split()


class Page(HTMLParser):
    """Collects tags, links and text; fails at an end tag that closes nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [v for k, v in attrs if k in ("href", "src") and v]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "script" and found.get("type") is None:
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            if self.scripts:
                self.scripts[-1] += data
        elif self.open[-1:] != ["style"]:
            self.words += data


def check_page(text: str) -> Page:
    """Tags are balanced, ids occur once, nothing is loaded from elsewhere."""
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert not [link for link in page.links if re.match("(https?:)?//", link)]
    assert "@import" not in text
    return page


def check_script(script: str, folder: Path) -> str | None:
    """Have a JavaScript engine parse a script; the reason if there is none here."""
    node = shutil.which("node")
    if node is None:
        return "no node here to parse JavaScript"
    file = folder / "script.js"
    file.write_text(script)
    done = subprocess.run([node, "--check", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return None
