"""Write src/unicode_letters.inc, the code points of category L*: `python -m core.letters`.

Run once for a new Unicode version, with the package unicodedata2; the result is committed. A letter
counts only where a tokenizer's own table has it as a word character, so a newer version changes no
older ids.
"""

from __future__ import annotations

import sys
from pathlib import Path

import unicodedata2 as unicodedata

_TARGET = Path(__file__).parent / "src" / "unicode_letters.inc"


def main() -> None:
    ranges: list[list[int]] = []
    for point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(point))[0] != "L":
            continue
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    rows = [f"    {{0x{first:X}, 0x{last:X}}}," for first, last in ranges]
    lines = [
        f"// Category L* of Unicode {unicodedata.unidata_version}, by `python -m core.letters`.",
        "constexpr Range kLetterRanges[] = {",
        *(" ".join(part.strip() for part in rows[i : i + 5]) for i in range(0, len(rows), 5)),
        "};",
    ]
    _TARGET.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
