"""The document of an evaluation as tables, for the screen and for the page (`quality.page`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from console.tables import with_interval
from contract import ATTRIBUTES
from quality import checklist
from quality.decisions import metric, rules, words
from quality.sources import VALIDATION
from quality.verdict import verdict

_METRICS = ("average_precision", "ece")
_RATES = ("precision", "recall", "fpr")
Table = tuple[str, pd.DataFrame]
"""Title and cells, all of them text."""


# --- Tables ----------------------------------------------------------------------------------
def screen(document: Mapping[str, Any]) -> str:
    """What to read first: the groups and the identities one by one are in the page."""
    tables = [*labelled(document), *attributes(document), *decisions(document)]
    tables += [*calibration(document), *fairness(document)]
    tables += [*misspelled(document), *capabilities(document), bar_table(document)]
    texts = [f"{title}\n{cells.to_string(index=False)}" for title, cells in tables]
    said = "\n".join(f"{line.state:4}  {line.words}" for line in verdict(document))
    return "\n\n".join([f"verdict\n{said}", *texts])


def labelled(document: Mapping[str, Any]) -> Iterator[Table]:
    """One table a set: AUROC with its interval, the difference from the first model, the rest."""
    for name, of_set in document["results"].items():
        about = document["sets"][name]
        rows: list[dict[str, str]] = []
        for model, found in of_set.items():
            values, difference = found["metrics"], found["difference"]["auroc"]
            row = {"model": model, "AUROC": with_interval(values["auroc"])}
            row["difference"] = "" if not rows else with_interval(difference, signed=True)
            row |= {metric.replace("_", " "): _number(values[metric]) for metric in _METRICS}
            if "bias_metric" in values:
                row["bias metric"] = _number(values["bias_metric"])
            rows.append(row)
        title = f"{name}: {about['comments']:,} comments, {about['toxic']:,} toxic"
        if name != VALIDATION:
            title += f"; {about['in_training']:,} of them trained on"
            if more := about["in_training_but_for_form"]:
                title += f", {more:,} more but for case, punctuation and spaces"
        yield title, pd.DataFrame(rows)


def attributes(document: Mapping[str, Any]) -> Iterator[Table]:
    """One table a set: AUROC of each attribute that it has labels of, with its interval."""
    for name, of_set in document.get(ATTRIBUTES, {}).items():
        rows = [
            {
                "model": model,
                "attribute": attribute,
                "comments": f"{found['comments']:,}",
                "positive": f"{found['positive']:,}",
                "AUROC": with_interval(found["auroc"]),
            }
            for model, of_model in of_set.items()
            for attribute, found in of_model.items()
        ]
        yield f"attributes of {name}", pd.DataFrame(rows)


def decisions(document: Mapping[str, Any]) -> Iterator[Table]:
    """What each model flags at its own threshold, then at DEFAULT, on a set."""
    for name, of_set in document["results"].items():
        rows = [
            _decided(document, model, found["metrics"], rule)
            for model, found in of_set.items()
            for rule in rules(document, model, wanted=False)
        ]
        yield f"decisions on {name}", pd.DataFrame(rows)


def thresholds(document: Mapping[str, Any]) -> Iterator[Table]:
    """The same, and of each threshold that was chosen on the validation split."""
    for name, of_set in document["results"].items():
        rows = [
            _decided(document, model, found["metrics"], rule)
            for model, found in of_set.items()
            for rule in rules(document, model)
        ]
        yield f"decisions and thresholds on {name}", pd.DataFrame(rows)


def _decided(
    document: Mapping[str, Any], model: str, found: Mapping[str, Any], rule: str
) -> dict[str, str]:
    row = {"model": model, "flags from": words(document, model, rule)}
    row["probability"] = _number({"value": document["thresholds"][model][rule]["probability"]})
    alarms = metric(found, "alarms_per_1000", rule)
    row["alarms per 1,000"] = with_interval(alarms, digits=1) if alarms else "-"
    rates = {name: metric(found, name, rule) for name in (*_RATES, "accuracy", "f1")}
    row |= {name: with_interval(rate) if rate else "-" for name, rate in rates.items()}
    return row


def calibration(document: Mapping[str, Any]) -> Iterator[Table]:
    """ECE and log loss before, by temperature alone, by slope and offset, and as served."""
    rows = [
        {
            "set": name,
            "model": model,
            **{f"ECE {way}": f"{found['ece']:.4f}" for way, found in ways.items()},
            **{f"log loss {way}": f"{found['log_loss']:.4f}" for way, found in ways.items()},
        }
        for name, of_set in document["calibration"].items()
        for model, ways in of_set.items()
    ]
    yield "calibration: temperature, and slope and offset, fitted on validation", pd.DataFrame(rows)


def fairness(document: Mapping[str, Any]) -> Iterator[Table]:
    """One table a curated set: the error rates of its two groups, or the range over many."""
    for name, of_set in document["curated"].items():
        rows = []
        for model, rule in ((m, r) for m in of_set for r in rules(document, m, wanted=False)):
            found = of_set[model]
            rates = found["rates"][rule]
            row = {"model": model, "flags from": words(document, model, rule)}
            for rate in ("fpr", "fnr"):
                groups = {key: value for key, value in rates.items() if key.startswith(f"{rate}.")}
                if len(groups) > 2:
                    values = [value["value"] for value in groups.values()]
                    row[rate.upper()] = _number(rates[rate])
                    row[f"{rate.upper()} of {len(groups)} groups"] = (
                        f"{min(values):.4f} to {max(values):.4f}"
                    )
                else:
                    for key, value in groups.items():
                        row[key.replace(f"{rate}.", f"{rate.upper()} ")] = _number(value)
            if "fpr_ratio" in rates:
                row["FPR ratio"] = with_interval(rates["fpr_ratio"], digits=2)
            for key in ("pair_shift", "pair_shift_absolute", "pair_flipped"):
                if value := metric(found["pairs"], key, rule) or found["pairs"].get(key):
                    row[key.replace("_", " ")] = _number(value)
            rows.append(row)
        yield f"decisions of {name}", pd.DataFrame(rows)


def misspelled(document: Mapping[str, Any]) -> Iterator[Table]:
    """AUROC by kind of misspelling: of the toxic comments alone, and of as many others too."""
    for name, by_kind in document.get("misspelled", {}).items():
        for which, title in (
            ("toxic", "its toxic comments misspelled"),
            ("every", "misspelled: its toxic comments and as many others"),
        ):
            rows = [
                {
                    "misspelled": kind,
                    "unknown tokens": f"{100 * found['oov']:.2f} %",
                    **{model: f"{auroc[which]:.4f}" for model, auroc in found["auroc"].items()},
                }
                for kind, found in by_kind.items()
            ]
            yield f"AUROC on {name}, {title}", pd.DataFrame(rows)


def capabilities(document: Mapping[str, Any]) -> Iterator[Table]:
    """Functional tests: per cent of each capability's sentences that a model gets right."""
    if found := document.get("checklist"):
        at = "0.5" if "thresholds" not in found else "each model's own threshold, "
        if "thresholds" in found:
            at += ", ".join(f"{t:g}" for t in found["thresholds"].values())
        title = f"checklist: {found['sentences']:,} sentences, per cent right at {at}"
        yield title, pd.DataFrame(checklist.rows(found))


def wrong_sentences(document: Mapping[str, Any]) -> Iterator[Table]:
    """Sentences of the checklist that the first model gets wrong."""
    if found := document.get("checklist"):
        first = next(iter(found["mean"]))
        rows = checklist.sentences_wrong(found, first)
        yield f"checklist: what {first} gets wrong", pd.DataFrame(rows)


CHECKLIST = (capabilities, wrong_sentences)


def bar_table(document: Mapping[str, Any]) -> Table:
    """What is asked of the first model."""
    rows = [
        {
            "bar": name,
            "value": "infinite" if bar["value"] is None else f"{bar['value']:.5f}",
            "asked": f"{bar['bar']:g}",
            "holds": "yes" if bar["holds"] else "NO",
        }
        for name, bar in document["bars"].items()
    ]
    return f"bars of {next(iter(document['models']))}", pd.DataFrame(rows)


def _number(shown: Mapping[str, float | None]) -> str:
    value = shown["value"]
    return "-" if value is None else f"{value:.4f}"
