"""What the card's template is filled with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from export.manifest import decision_threshold
from quality import checklist
from quality.decisions import deciding, metric, number
from train.operating import words
from train.operating.document import Thresholds

_WEAK = 0.5
_GROUPS_SHOWN = 12
_TEMPLATE = "card.md.jinja"


def card(
    manifest: Mapping[str, Any],
    document: Mapping[str, Any],
    model: str,
    told: Mapping[str, str],
    thresholds: Thresholds | None = None,
) -> str:
    """The card as Markdown.

    Args:
        manifest: artifact.json of the version.
        document: an evaluation that has `model`.
        model: the version's name in it.
        told: title, licence, label policy and contact, as the user gave them.
        thresholds: those of the version; an older one has none.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown; `page` escapes what becomes HTML
    )
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    environment.filters["interval"] = interval
    return environment.get_template(_TEMPLATE).render(
        manifest=manifest,
        model=model,
        told=told,
        run=document["run"],
        trained_on=Path(document["run"]["trained_on"]["name"]).name,
        at=number(document, model),
        sets=_sets(document, model),
        baselines=_baselines(document),
        decides=decision_threshold(manifest),
        thresholds=thresholds,
        threshold_lines=words.summary(thresholds) if thresholds else [],
        threshold_rows=words.rows(thresholds) if thresholds else [],
        groups=_groups(document, model),
        misspelled=document.get("misspelled", {}),
        checklist=_checklist(document, model),
    )


def interval(metric: Mapping[str, float | None], digits: int = 3) -> str:
    """The value and its 95 % interval."""
    value, low, high = ("-" if metric[k] is None else f"{metric[k]:.{digits}f}" for k in _KEYS)
    return f"{value} [{low}, {high}]"


_KEYS = ("value", "low", "high")


def _sets(document: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "about": document["sets"][name],
            "metrics": results[model]["metrics"],
            "rates": {
                name: metric(results[model]["metrics"], name, deciding(document, model))
                for name in ("precision", "recall")
            },
            "ece": document["calibration"][name][model]["served"]["ece"],
        }
        for name, results in document["results"].items()
    ]


def _baselines(document: Mapping[str, Any]) -> list[str]:
    return [name for name, about in document["models"].items() if about["kind"] == "baseline"]


def _groups(document: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """Of each curated set: overall rates where the version decides, and the groups with most
    false positives.
    """
    found = []
    for name, by_model in document["curated"].items():
        rates = by_model[model]["rates"][deciding(document, model)]
        by_group = {
            key.removeprefix("fpr."): rate
            for key, rate in rates.items()
            if key.startswith("fpr.") and rate["value"] is not None
        }
        worst = sorted(by_group.items(), key=lambda item: -item[1]["value"])[:_GROUPS_SHOWN]
        found.append({"name": name, "rates": rates, "worst": worst, "of": len(by_group)})
    return found


def _checklist(document: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    found = document.get("checklist")
    if not found or model not in found["mean"]:
        return None
    own = {name: one["models"][model] for name, one in found["capabilities"].items()}
    weak = [
        {"name": name, "says": found["capabilities"][name]["says"], **result}
        for name, result in sorted(own.items(), key=lambda item: item[1]["passed"])
        if result["passed"] < _WEAK
    ]
    wrong = {one["capability"]: one for one in reversed(checklist.sentences_wrong(found, model))}
    return {"mean": found["mean"][model], "of": len(own), "weak": weak, "wrong": wrong}
