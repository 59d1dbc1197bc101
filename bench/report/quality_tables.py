"""The tables of quality, fairness and calibration, made from the JSON documents of `quality` and
`experiments`. See `bench.report.page_tables` for the form.
"""

from __future__ import annotations

from typing import Any

from bench.report.page_tables import Document, Rows, number, percent
from quality import checklist as functional
from quality.decisions import DEFAULT, OWN, deciding, metric, rules, words

_HARMLESS = "eval_nontoxic_identity_vs_random"
_PAIRS = "eval_identity_swapped_pairs"
_TEMPLATES = "eval_identity_templates"
_SETS = {"test": "test split", "jigsaw_wiki_test": "`jigsaw_wiki_test`"}
_SETS["civil_comments_gender"] = "Civil Comments"


def _interval(metric: Document, digits: int = 4) -> str:
    value, low, high = (number(metric[name], digits) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _names(document: Document) -> list[str]:
    return list(next(iter(document["results"].values())))


def models(document: Document) -> Rows:
    """What was compared, with the sha256 of each artifact."""
    rows = [["model", "kind", "precision", "sha256"]]
    for name, model in document["models"].items():
        sha256 = model.get("onnx_sha256") or model.get("checkpoint_sha256") or ""
        digest = f"`{sha256[:12]}`" if sha256 else ""
        rows.append([f"`{name}`", model["kind"], model.get("precision", ""), digest])
    return rows


def quality(document: Document) -> Rows:
    """AUROC with its 95 % interval on each set of labelled comments."""
    rows = [["AUROC", *_SETS.values()]]
    for name in _names(document):
        cells = [_interval(document["results"][data][name]["metrics"]["auroc"]) for data in _SETS]
        rows.append([f"`{name}`", *cells])
    return rows


def quality_gain(document: Document) -> Rows:
    """Paired difference of AUROC: the first model over each baseline."""
    rows = [["AUROC gained over", *_SETS.values()]]
    for name in _names(document):
        if document["models"][name]["kind"] != "baseline":
            continue
        row = [f"`{name}`"]
        for data in _SETS:
            # The document has the model's difference from the first one: the gain is its negative.
            found = document["results"][data][name]["difference"]["auroc"]
            gain = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
            row.append(_interval(gain))
        rows.append(row)
    return rows


def decisions(document: Document) -> Rows:
    """Accuracy, precision, recall and F1 on the test split, at each model's own threshold first."""
    names, ranks = ("accuracy", "precision", "recall", "f1"), ("average_precision", "ece")
    stated = _stated(document)
    head = ["test split", "flags from"] if stated else [f"test split, at {DEFAULT}"]
    rows = [[*head, *(name.replace("_", " ") for name in (*names, *ranks))]]
    for model in _names(document):
        found = document["results"]["test"][model]["metrics"]
        for rule in rules(document, model, wanted=False):
            shown = [metric(found, name, rule) for name in names] + [found[name] for name in ranks]
            cells = [number((one or {"value": None})["value"], 4) for one in shown]
            rows.append([f"`{model}`", *([words(document, model, rule)] if stated else []), *cells])
    return rows


def _stated(document: Document) -> bool:
    """Whether the models' own thresholds are in the document; an older one has DEFAULT alone."""
    return all(OWN in found for found in document["thresholds"].values())


def fairness(document: Document) -> Rows:
    """False positives of harmless sentences that mention an identity, and of random ones."""
    sets = document["curated"][_HARMLESS]
    at = OWN if _stated(document) else DEFAULT
    beside = [DEFAULT] if at == OWN else []
    rows = [["model", f"FPR at {at} with an identity, random", f"ratio at {at}"]]
    rows[0] += [f"ratio at {rule}" for rule in (*beside, "precision 0.9", "FPR 0.02")]
    for name, found in sets.items():
        rates = found["rates"]
        pair = [rates[at][key]["value"] for key in ("fpr.identity_term", "fpr.random")]
        ratios = [_interval(rates[rule]["fpr_ratio"], 1) for rule in (at, *beside)]
        ratios += [
            number(rates[at]["fpr_ratio"]["value"], 1) for at in ("precision 0.9", "FPR 0.02")
        ]
        rows.append([f"`{name}`", ", ".join(number(rate, 4) for rate in pair), *ratios])
    return rows


def identities(document: Document) -> Rows:
    """Swapped identities, template sentences, and Jigsaw's bias metric."""
    rows = [["model", "decisions flipped by a swapped identity"]]
    rows[0] += ["harmless templates flagged", "toxic templates missed", "bias metric, two genders"]
    for name in _names(document):
        at = deciding(document, name)
        flipped = metric(document["curated"][_PAIRS][name]["pairs"], "pair_flipped", at)
        templates = document["curated"][_TEMPLATES][name]["rates"][at]
        civil = document["results"]["civil_comments_gender"][name]["metrics"]
        rows.append(
            [
                f"`{name}`",
                percent(flipped["value"], 1) if flipped else "-",
                percent(templates["fpr"]["value"]),
                percent(templates["fnr"]["value"]),
                number(civil["bias_metric"]["value"], 3),
            ]
        )
    return rows


def calibration(document: Document) -> Rows:
    """Expected calibration error: as trained, by a temperature, as served."""
    sets = {"validation": "validation", "jigsaw_wiki_test": "`jigsaw_wiki_test`"}
    sets["civil_comments_gender"] = "Civil Comments"
    rows = [["ECE as trained, by temperature, as served", *sets.values()]]
    for name in _names(document):
        row = [f"`{name}`"]
        for data in sets:
            found = document["calibration"][data][name]
            errors = (found[key]["ece"] for key in ("before", "temperature", "served"))
            row.append(", ".join(number(error, 3) for error in errors))
        rows.append(row)
    return rows


_MISSPELLED = {
    "none": "as written",
    "repeated": "repeated letters",
    "leet": "leet digits",
    "asterisk": "asterisks",
    "swapped": "swapped letters",
    "spaced": "spaced-out words",
    "any": "any of them",
}


def misspelled(document: Document) -> Rows:
    """AUROC on `jigsaw_wiki_test`, the toxic comments alone misspelled, and both halves."""
    kinds = document["misspelled"]["jigsaw_wiki_test"]
    names = _names(document)
    rows = [["AUROC, toxic misspelled / both", "[UNK] in toxic", *(f"`{name}`" for name in names)]]
    for kind, found in kinds.items():
        pairs = (found["auroc"][name] for name in names)
        cells = [f"{number(pair['toxic'], 4)} / {number(pair['every'], 4)}" for pair in pairs]
        rows.append([_MISSPELLED.get(kind, kind), percent(found["oov"], 1), *cells])
    return rows


def checklist(document: Document) -> Rows:
    """Per cent of each capability's sentences that a model gets right."""
    found = functional.rows(document["checklist"])
    names = list(found[0])[3:]
    rows = [["capability", "wanted", "cases", *(f"`{name}`" for name in names)]]
    return rows + [
        [row["capability"], row["wanted"], row["cases"], *(row[n] for n in names)] for row in found
    ]


def ablation(document: Document) -> Rows:
    """One change from the default a row, and its gains over the same seeds."""
    heads = ["change", "AUROC validation", "gained", "test file", "gained", "elsewhere", "gained"]
    rows = [[*heads, "FPR identity, random", "seconds"]]
    for change in document["changes"]:
        aurocs = [
            shown
            for name in ("validation", "test", "elsewhere")
            for shown in (
                number(change[name], 4),
                _interval(change[f"gain_{name}"]) if change["changes"] else "",
            )
        ]
        rows.append([_change(change), *aurocs, *_rates_and_seconds(change)])
    return rows


def _change(row: Document) -> str:
    flags = " ".join(_flag(name, value) for name, value in row["changes"].items())
    return f"`{flags}`" if flags else str(row["name"])


def _rates_and_seconds(row: Document) -> list[str]:
    rates = (row["fpr_identity"], row["fpr_random"])
    return [", ".join(number(rate, 3) for rate in rates), number(row["seconds"])]


def minutes(document: Document) -> Rows:
    """What each plan projected, took and gave."""
    sets = {"validation": "validation", "test": "test split", "test_file": "test file"}
    heads = ["plan", "projected minutes", "minutes", *(f"AUROC {name}" for name in sets.values())]
    rows = [heads]
    for point in document["points"]:
        times = [number(point[name], 1) for name in ("projected_minutes", "minutes")]
        aurocs = [number(point["auroc"][name], 4) for name in sets]
        rows.append([f"`{point['plan']}`", *times, *aurocs])
    return rows


def recipe_seeds(document: Document) -> Rows:
    """AUROC of the version on each set, the mean of the seeds with Student's interval."""
    others = document["runs"][0]["baselines"]
    rows = [["comments", "AUROC", *(f"gained over `{other}`" for other in others)]]
    for name, of in document["sets"].items():
        gains = (_interval(of["gains"][other]) for other in others)
        rows.append([_SETS.get(name, f"`{name}`"), _interval(of["auroc"]), *gains])
    return rows


def leave_one_out(document: Document) -> Rows:
    """Each source, held out, with the mean of the seeds and Student's interval."""
    rows = [["held out", "comments", "toxic", "AUROC of the others", "AUROC", "TF-IDF", "gained"]]
    for one in document["held_out"]:
        rows.append(
            [
                *(f"`{one['source']}`", number(one["comments"]), percent(one["toxic_share"])),
                number(one["validation_auroc"], 4),
                *(_interval(one[name]) for name in ("auroc", "baseline_auroc", "gain")),
            ]
        )
    return rows


def _flag(name: str, value: Any) -> str:
    return f"--{name.replace('_', '-')} {value}"


def ladder(document: Document) -> Rows:
    """Teacher and students: quality, speed, cost, and the artifact of each."""
    rows = [["model", "AUROC validation", "AUROC test split", "comments/s", "cost", "artifact"]]
    for rung in document["rungs"]:
        rows.append(
            [
                rung["name"],
                number(rung["validation_auroc"], 4),
                number(rung["test_auroc"], 4),
                number(rung["comments_per_s"]),
                number(rung["cost"], 3),
                f"`{rung['onnx_sha256'][:12]}`",
            ]
        )
    return rows


def parity(document: Document) -> Rows:
    """The running server beside PyTorch."""
    rows = [["compared", "measured"]]
    for name, value in document["measured"].items():
        rows.append([name.replace("_", " "), f"{value:.2g}"])
    return rows
