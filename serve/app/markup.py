"""What a reader sees of a comment in HTML, and where each character of it stood.

One pass, each character looked at once: a comment may be hostile.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_TOKEN = re.compile(r"<!--|<(/?)([A-Za-z][A-Za-z0-9]*+)[^<>]*+>|<[/!?][^<>]*+>|&#?\w{1,32};")
_BREAKS = frozenset(
    "address article blockquote br dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p".split()
)
_BREAKS |= frozenset("pre section table td th tr ul".split())
"""Elements that begin a line: the words on both sides of one are two words."""
_HIDDEN = {name: re.compile(rf"</{name}\b[^<>]*+>", re.IGNORECASE) for name in ("script", "style")}


@dataclass(frozen=True)
class Visible:
    """Text, and for each character of it, and for its end, where it begins in what was given."""

    text: str
    origins: list[int]


def visible(markup: str) -> Visible:
    """The text of `markup` without its elements and comments, its references resolved."""
    parts: list[str] = []
    origins: list[int] = []
    at = 0
    while True:
        found = _TOKEN.search(markup, at)
        end = found.start() if found else len(markup)
        parts.append(markup[at:end])
        origins.extend(range(at, end))
        if found is None:
            break
        at = found.end()
        token = found.group()
        if token == "<!--":
            closed = markup.find("-->", at)
            at = closed + 3 if closed >= 0 else len(markup)
            continue
        text = html.unescape(token) if token[0] == "&" else ""
        name = (found.group(2) or "").lower()
        if name in _HIDDEN and not found.group(1):
            closing = _HIDDEN[name].search(markup, at)
            at = closing.end() if closing else len(markup)
        elif name in _BREAKS:
            text = "\n"
        parts.append(text)
        origins.extend([end] * len(text))
    return Visible("".join(parts), [*origins, len(markup)])
