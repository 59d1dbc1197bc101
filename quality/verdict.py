"""The verdict of an evaluation: a few lines, each computed from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from console.tables import with_interval
from quality.decisions import deciding, metric, number, words
from quality.sources import VALIDATION

State = Literal["pass", "miss", "note"]


class VerdictLine(NamedTuple):
    """One finding."""

    state: State
    words: str


def verdict(document: Mapping[str, Any]) -> list[VerdictLine]:
    """Of the first model: its bars first, then how it ranks, decides and treats groups."""
    first = next(iter(document["models"]))
    lines = [_bars(document, first), *_missed(document)]
    lines += _ranking(document, first)
    lines += _decisions(document, first)
    return [*lines, *_not_measured(document)]


def _bars(document: Mapping[str, Any], first: str) -> VerdictLine:
    bars = document["bars"].values()
    held = sum(bar["holds"] for bar in bars)
    return VerdictLine(
        "pass" if held == len(bars) else "miss", f"{first}: {held} of {len(bars)} bars hold"
    )


def _missed(document: Mapping[str, Any]) -> Iterator[VerdictLine]:
    for name, bar in document["bars"].items():
        if not bar["holds"]:
            value = "infinite" if bar["value"] is None else f"{bar['value']:.4g}"
            yield VerdictLine("miss", f"{name} is {value}, asked was {bar['bar']:g}")


def _ranking(document: Mapping[str, Any], first: str) -> Iterator[VerdictLine]:
    """AUROC on each set, and whether a baseline is beaten beyond chance."""
    baselines = [m for m, about in document["models"].items() if about["kind"] == "baseline"]
    for name, of_set in document["results"].items():
        auroc = of_set[first]["metrics"]["auroc"]
        words = f"{name}: AUROC {with_interval(auroc)}"
        state: State = "pass" if baselines else "note"
        for other in (m for m in baselines if m in of_set and m != first):
            less = of_set[other]["difference"]["auroc"]  # the baseline's minus the first one's
            if less["high"] is not None and less["high"] < 0:
                words += f", above {other}"
            elif less["low"] is not None and less["low"] > 0:
                words, state = f"{words}, BELOW {other}", "miss"
            else:
                words += f", level with {other}"
                state = "note" if state == "pass" else state
        yield VerdictLine(state, words)


def _decisions(document: Mapping[str, Any], first: str) -> Iterator[VerdictLine]:
    """Whether scores reach the threshold that decides, and the calibration error."""
    metrics = document["results"][VALIDATION][first]["metrics"]
    rule, ece = deciding(document, first), metrics["ece"]
    recall, precision = (metric(metrics, name, rule) for name in ("recall", "precision"))
    at = words(document, first, rule)
    if not recall or not precision or not recall["value"]:
        at = number(document, first)
        yield VerdictLine(
            "miss", f"no toxic comment of {VALIDATION} is flagged at {at}; use another threshold"
        )
    else:
        rates = f"precision {with_interval(precision)}, recall {with_interval(recall)}"
        yield VerdictLine("note", f"flags from {at}: {rates} on {VALIDATION}")
    yield VerdictLine("note", f"calibration error on {VALIDATION}: {with_interval(ece)}")
    unreached = [rule for rule, chosen in document["thresholds"][first].items() if not chosen]
    if unreached:
        yield VerdictLine("note", f"not reachable on {VALIDATION}: {', '.join(unreached)}")


def _not_measured(document: Mapping[str, Any]) -> Iterator[VerdictLine]:
    flags = {"curated": "--curated", "misspelled": "--misspell", "checklist": "--checklist"}
    missing = [flag for key, flag in flags.items() if not document.get(key)]
    if missing:
        yield VerdictLine("note", f"not measured, for want of {', '.join(missing)}")
