"""Everything that `python -m quality` measures, as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from contract import TOKENIZER_FILE, UNK_ID, BadInput
from quality import attributes, checklist, metrics
from quality.config import TEST, QualityConfig
from quality.curated import group_rates, load_curated, pair_shifts
from quality.decisions import DEFAULT, OWN, as_json, deciding, thresholds_of
from quality.metrics import Values, bootstrap, interval
from quality.misspell import KINDS, misspell_all
from quality.models import Model, load_model, models_here
from quality.sources import VALIDATION, of_validation, rows_by_source, sets_of_sources
from storage.files import read_json, sha256_of
from storage.machine import hardware, versions
from train.artifacts import CONFIG_FILE, WEIGHTS_FILE
from train.data.load import Comments, load_comments
from train.data.sources import is_sources_file
from train.data.split import Split, comments_of_run, overlap
from train.data.tokenizer import Tokenizer
from train.methods.calibration import Platt, fit_platt, fit_temperature, quality
from train.validation import RELIABILITY_BINS, probability_of, reliability_bin

_PACKAGES = ("torch", "onnxruntime", "numpy", "scikit-learn", "scipy")
Logits = dict[str, np.ndarray]
"""Model -> float32 [n]."""


@dataclass(frozen=True)
class QualityReport:
    """The document, and what its curves are drawn from."""

    document: dict[str, Any]
    sets: dict[str, Comments]
    logits: dict[str, Logits]


def measure(config: QualityConfig) -> QualityReport:
    """Score every set with every model and measure.

    Raises BadInput for a model, a file or a run that cannot be used, and ToxicityError when a
    live server fails.
    """
    trained_on, split = comments_of_run(config.run, config.train_data)
    sets = _load_sets(config, trained_on, split)
    curated = load_curated(
        config.curated,
        text_column=config.curated_text_column,
        label_column=config.curated_label_column,
        label_map=config.curated_label_map,
    )
    specs = config.models or models_here()
    models = {m.name: m for m in (load_model(spec, trained_on, split) for spec in specs)}
    logits = {name: _score(models, name, comments.texts) for name, comments in sets.items()}
    thresholds = _thresholds(config, sets[VALIDATION].labels, logits[VALIDATION], models)
    training = [trained_on.texts[row] for row in split.train]
    document: dict[str, Any] = {
        "bench": "quality",
        **_made(),
        "run": {
            "checkpoint_sha256": sha256_of(config.run / WEIGHTS_FILE),
            "trained_on": trained_on.source,
            "word_vectors": read_json(config.run / CONFIG_FILE, "train again").get("word_vectors"),
            "split": split.to_json(),
        },
        "models": {name: _about_model(model) for name, model in models.items()},
        "sets": {name: _about_set(each, training) for name, each in (sets | curated).items()},
        "resamples": config.resamples,
        "seed": config.seed,
        "thresholds": {
            name: {rule: as_json(logit) for rule, logit in rules.items()}
            for name, rules in thresholds.items()
        },
        "results": {
            name: _results(config, comments, logits[name], thresholds)
            for name, comments in sets.items()
        },
        "calibration": {
            name: _calibration(comments, logits[name], sets[VALIDATION], logits[VALIDATION], models)
            for name, comments in sets.items()
        },
        "curated": {
            name: _curated(config, comments, _score(models, name, comments.texts), thresholds)
            for name, comments in curated.items()
        },
        **attributes.measured(config, sets, [*models.values()]),
    }
    if config.misspell:
        document["misspelled"] = {
            name: _misspelled(config, models, name, comments, logits[name])
            for name, comments in sets.items()
            if not of_validation(name)
        }
    document["bars"] = bars(document) | _check(config, document, list(models.values()))
    return QualityReport(document, sets, logits)


def _made() -> dict[str, Any]:
    """When, where and with what it is measured."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(*_PACKAGES),
    }


def _check(config: QualityConfig, document: dict[str, Any], models: list[Model]) -> dict[str, Any]:
    """Add the functional tests to the document, where they are asked for; returns their bars."""
    if not config.checklist:
        return {}
    print("scoring the sentences of the checklist ...", flush=True)
    document["checklist"] = checklist.checked(models)
    return checklist.bars(document["checklist"], models[0].name)


# --- Sets ------------------------------------------------------------------------------------
def _load_sets(config: QualityConfig, trained_on: Comments, split: Split) -> dict[str, Comments]:
    """Validation first, also by source where the run had several, then what was asked for.

    By the file's name without its suffix; those of a sources file by their own names.
    """
    sets = {VALIDATION: _part(trained_on, split.validation, VALIDATION)}
    sets |= {
        f"{VALIDATION}.{name}": _part(trained_on, rows, f"{VALIDATION}.{name}")
        for name, rows in rows_by_source(trained_on, split.validation).items()
    }
    sets |= sets_of_sources(config.data, sets, tuple(trained_on.attributes))
    for source in (one for one in config.data if not is_sources_file(one)):
        name = source if source == TEST else Path(source).name.split(".")[0]
        if name in sets:
            raise BadInput(f"--data has two sets named {name!r}, expected one; rename a file")
        if source == TEST:
            sets[name] = _part(trained_on, split.test, TEST)
        else:
            sets[name] = load_comments(
                source,
                text_column=config.text_column,
                label_column=config.label_column,
                label_map=config.label_map,
                attributes=tuple(trained_on.attributes),
            )
    return sets


def _part(comments: Comments, rows: np.ndarray, part: str) -> Comments:
    return replace(
        comments,
        texts=[comments.texts[row] for row in rows],
        rows=comments.rows[rows],
        labels=comments.labels[rows],
        targets=comments.targets[rows],
        identities={name: share[rows] for name, share in comments.identities.items()},
        origin=None,
        attributes={name: share[rows] for name, share in comments.attributes.items()},
        source={"name": comments.source["name"], "part": part},
    )


def _about_set(comments: Comments, training: list[str]) -> dict[str, Any]:
    """What the document says of a set, with its comments that are in the `training` texts too."""
    seen = overlap(comments.texts, training)
    return {
        **comments.source,
        "comments": len(comments.texts),
        "toxic": int(comments.labels.sum()),
        "in_training": seen.same,
        "in_training_but_for_form": seen.alike,
    }


def _score(models: Mapping[str, Model], name: str, texts: Sequence[str]) -> Logits:
    print(f"scoring {len(texts):,} comments of {name} ...", flush=True)
    return {model.name: model.logits(texts) for model in models.values()}


# --- Labelled sets ---------------------------------------------------------------------------
def _thresholds(
    config: QualityConfig, labels: np.ndarray, logits: Logits, models: Mapping[str, Model]
) -> dict[str, dict[str, float | None]]:
    """Logits from which a comment counts as toxic, by model and rule; these are of validation."""
    wanted = config.wanted_precision, config.wanted_fpr
    return {
        name: thresholds_of(model.decides, labels, logits[name], *wanted)
        for name, model in models.items()
    }


def _about_model(model: Model) -> dict[str, Any]:
    return {"kind": model.kind, **model.about, "decides": model.decides.to_json()}


def _results(
    config: QualityConfig,
    comments: Comments,
    logits: Logits,
    thresholds: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """Metrics of each model with their intervals, and their differences from the first one's."""
    mentioned = metrics.mentions(comments.identities)
    values: dict[str, Values] = {}
    for name, own in logits.items():

        def statistic(weights: np.ndarray, own: np.ndarray = own, name: str = name) -> Values:
            found = metrics.classification(comments.labels, own, weights)
            for rule, logit in thresholds[name].items():
                if logit is not None:
                    rates = metrics.at_threshold(comments.labels, own >= logit, weights)
                    found |= {f"{key} at {rule}": value for key, value in rates.items()}
            return found | metrics.bias(comments.labels, own, mentioned, weights)

        n = len(comments.texts)
        values[name] = bootstrap(statistic, n, resamples=config.resamples, seed=config.seed)
    first = next(iter(values.values()))
    return {
        name: {
            "metrics": {key: interval(value) for key, value in own.items()},
            "difference": {key: interval(own[key] - first[key]) for key in own if key in first},
        }
        for name, own in values.items()
    }


def _reliability(labels: np.ndarray, logits: np.ndarray) -> list[dict[str, float]]:
    """Of each bin of the probability that has comments."""
    probability = probability_of(logits)
    in_bin = reliability_bin(probability)
    return [
        {
            "comments": int(chosen.sum()),
            "probability": float(probability[chosen].mean()),
            "toxic_share": float(labels[chosen].mean()),
        }
        for chosen in (in_bin == k for k in range(RELIABILITY_BINS))
        if chosen.any()
    ]


def _calibration(
    comments: Comments,
    logits: Logits,
    validation: Comments,
    by_model: Logits,
    models: Mapping[str, Model],
) -> dict[str, Any]:
    """Log loss, ECE and reliability before calibration, by maps fitted on validation, as served."""
    found: dict[str, Any] = {}
    for name, served in logits.items():
        # A cascade has one of each of its models.
        about = models[name].about
        known = None if about.get("cascade") else about.get("calibration")
        applied = Platt(**known) if known else Platt(1.0)
        before, fitted_on = applied.undone(served), applied.undone(by_model[name])
        temperature = fit_temperature(validation.labels, fitted_on)
        platt = fit_platt(validation.labels, fitted_on)
        ways = {
            "before": before,
            "temperature": temperature(before),
            "slope and offset": platt(before),
            "served": served,
        }
        found[name] = {way: quality(comments.labels, x) for way, x in ways.items()}
        for way in ("before", "served"):
            found[name][way]["reliability"] = _reliability(comments.labels, ways[way])
    return found


# --- Curated sets, misspellings --------------------------------------------------------------
def _curated(
    config: QualityConfig,
    comments: Comments,
    logits: Logits,
    thresholds: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    chance = {"resamples": config.resamples, "seed": config.seed}
    found: dict[str, Any] = {}
    for name, own in logits.items():
        rates = {
            rule: group_rates(comments, own >= logit)
            for rule, logit in thresholds[name].items()
            if logit is not None
        }
        stated = ((rule, thresholds[name][rule]) for rule in (OWN, DEFAULT))
        flipped = {rule: logit for rule, logit in stated if logit is not None}
        found[name] = {
            "rates": rates,
            "pairs": _intervals(pair_shifts(comments, own, flipped, **chance)),
        }
    return found


def _intervals(values: Values) -> dict[str, Any]:
    return {name: interval(value) for name, value in values.items()}


def _misspelled(
    config: QualityConfig,
    models: Mapping[str, Model],
    name: str,
    comments: Comments,
    logits: Logits,
) -> dict[str, Any]:
    """AUROC by kind of misspelling, and the unknown words of the toxic comments.

    "toxic": the toxic comments alone are misspelled. A model may then rank better than before,
    because a spelling that only they have gives them away. "every": as many others are, too,
    and these two halves are what is ranked; so it says what a model still reads.
    """
    tokenizer = Tokenizer.from_json((config.run / TOKENIZER_FILE).read_text("utf-8"))
    toxic, others = (np.flatnonzero(comments.labels == label) for label in (1, 0))
    drawn = np.random.default_rng(config.seed).permutation(others)[: len(toxic)]
    rows = np.concatenate([toxic, drawn])
    texts = [comments.texts[row] for row in rows]

    def figures(texts: list[str], scores: Logits) -> dict[str, Any]:
        aurocs = {}
        for model, own in scores.items():
            attacked = logits[model].copy()
            attacked[toxic] = own[: len(toxic)]
            aurocs[model] = {
                "toxic": _auroc(comments.labels, attacked),
                "every": _auroc(comments.labels[rows], own),
            }
        return {"oov": _oov(tokenizer, texts[: len(toxic)]), "auroc": aurocs}

    found = {"none": figures(texts, {model: own[rows] for model, own in logits.items()})}
    for kind, kinds in [*((kind, (kind,)) for kind in KINDS), ("any", KINDS)]:
        changed = misspell_all(texts, kinds, seed=config.seed)
        found[kind] = figures(changed, _score(models, f"{name} misspelled ({kind})", changed))
    return found


def _auroc(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(metrics.auroc(labels, logits, np.ones((1, len(labels))))[0])


def _oov(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Share of the tokens, [CLS] apart, that the vocabulary does not have."""
    ids = np.concatenate([tokenizer.encode(text)[1:] for text in texts])
    return float(np.mean(ids == UNK_ID))


# --- Bars ------------------------------------------------------------------------------------
_CIVIL_OVER_BASELINE = 0.02
_ECE = 0.02
_FPR_RATIO = 3.0
_INT8_AUROC = 0.0005


def bars(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the first model, and each INT8 artifact of a checkpoint here, must reach."""
    found: dict[str, dict[str, Any]] = {}
    first, models = next(iter(document["models"])), document["models"]
    results = document["results"]

    def bar(name: str, value: float | None, bound: float, holds: bool) -> None:
        found[name] = {"value": value, "bar": bound, "holds": holds}

    ece = results[VALIDATION][first]["metrics"]["ece"]["value"]
    bar("ece", ece, _ECE, ece <= _ECE)
    for name, of_set in results.items():
        if of_validation(name):
            continue
        for model in (m for m in models if models[m]["kind"] == "baseline" and m != first):
            gain = -of_set[model]["difference"]["auroc"]["value"]
            least = _CIVIL_OVER_BASELINE if name.startswith("civil_comments") else 0.0
            bar(f"auroc_over_{model}.{name}", gain, least, gain > 0 and gain >= least)
    for name, by_model in document["curated"].items():
        ratio = by_model[first]["rates"][deciding(document, first)].get("fpr_ratio")
        if ratio and not document["sets"][name]["toxic"]:
            value = ratio["value"]
            bar(f"fpr_ratio.{name}", value, _FPR_RATIO, value is not None and value <= _FPR_RATIO)
    pairs = [
        (of, int8)
        for of in models
        for int8 in models
        if models[of]["kind"] == "pytorch"
        and models[int8].get("precision") == "int8"
        and not models[int8]["cascade"]
        and models[of]["checkpoint_sha256"] == models[int8]["checkpoint_sha256"]
    ]
    if pairs:
        aurocs = [{m: r[m]["metrics"]["auroc"]["value"] for m in models} for r in results.values()]
        worst = max(abs(auroc[a] - auroc[b]) for auroc in aurocs for a, b in pairs)
        bar("int8_auroc_difference", worst, _INT8_AUROC, worst <= _INT8_AUROC)
    return found
