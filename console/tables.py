"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """One line a row, columns as wide as their widest cell; the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def with_interval(
    found: Mapping[str, float | None], *, signed: bool = False, digits: int = 4
) -> str:
    """A "value" with its "low" and "high"; a dash for what is not defined."""
    form = f"{'+' if signed else ''}.{digits}f"
    value, low, high = (
        "-" if found[key] is None else f"{found[key]:{form}}" for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"
