"""The sentences of a comment, as spans of it.

A sentence ends at a line's end, and at one or more of `.!?` (with closing quotes or brackets) that
white space follows. Each character is looked at once.
"""

from __future__ import annotations

import re

MOST = 255
"""Of one comment; with the comment itself they are as many as one request may have. What is left
after so many is one more span."""
_PIECE = re.compile(r"""[^.!?…。！？\n]*+(?:[.!?…。！？]++["'”’»)\]]*+|\n|\Z)""")
_WIDE = "。！？"


def sentences(text: str) -> list[tuple[int, int]]:
    """Begin and end of each sentence, in characters, without the white space around it."""
    spans: list[tuple[int, int]] = []
    begin = 0
    for piece in _PIECE.finditer(text):
        end = piece.end()
        last = end == len(text)
        ends = last or text[end].isspace() or text[end - 1] == "\n" or text[end - 1] in _WIDE
        if not ends or (len(spans) == MOST - 1 and not last):
            continue
        inner = text[begin:end]
        if stripped := inner.strip():
            start = begin + len(inner) - len(inner.lstrip())
            spans.append((start, start + len(stripped)))
        begin = end
        if last:
            break
    return spans
