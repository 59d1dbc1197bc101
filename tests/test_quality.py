"""Evaluation: metrics against scikit-learn, sets whose answer is known, the command end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from bench.report import quality_tables
from console.options import run
from contract import PUBLIC_MODEL, THRESHOLDS_FILE, TOKENIZER_FILE, BadInput
from export.graph.build import build
from export.publish import publish
from export.repository import load_scorer
from quality import metrics
from quality.__main__ import main
from quality.curated import group_rates, load_curated, pair_shifts
from quality.measure import bars
from quality.metrics import bootstrap, interval
from quality.misspell import KINDS, misspell_all
from quality.models import load_model
from serve import triton
from train.artifacts import WEIGHTS_FILE, load_checkpoint, sha256_of
from train.data.load import load_comments
from train.data.split import comments_of_run
from train.validation import probability_of

ROOT = Path(__file__).parent.parent
CHANCE = {"resamples": 200, "seed": 0}


def drawn(n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits with ties, and the weights of three resamples."""
    rng = np.random.default_rng(1)
    labels = (rng.random(n) < 0.3).astype(np.float32)
    logits = np.round(rng.normal(2 * labels - 1, 1.5), 1).astype(np.float32)
    return labels, logits, rng.integers(0, 4, (3, n)).astype(np.float64)


def test_metrics_are_scikit_learns_with_weights() -> None:
    labels, logits, weights = drawn()
    found = metrics.classification(labels, logits, weights)
    probability = probability_of(logits)
    decided = probability >= 0.3
    found |= metrics.at_threshold(labels, decided, weights)
    for row, weight in enumerate(weights):
        by = {"sample_weight": weight}
        expected = {
            "alarms_per_1000": 1000 * np.average(decided, weights=weight),
            "fpr": 1 - sk.recall_score(labels, decided, pos_label=0, **by),
            "auroc": sk.roc_auc_score(labels, logits, **by),
            "average_precision": sk.average_precision_score(labels, logits, **by),
            "accuracy": sk.accuracy_score(labels, decided, **by),
            "precision": sk.precision_score(labels, decided, **by),
            "recall": sk.recall_score(labels, decided, **by),
            "f1": sk.f1_score(labels, decided, **by),
            "ece": ece(labels, probability, weight),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)


def ece(labels: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
    """As in the paper, bin by bin."""
    total = 0.0
    for low in np.arange(15) / 15:
        chosen = (probability >= low) & (probability < low + 1 / 15)
        if weight[chosen].sum():
            gap = np.average(labels[chosen] - probability[chosen], weights=weight[chosen])
            total += weight[chosen].sum() * abs(gap)
    return total / weight.sum()


def test_bootstrap_interval_covers_what_theory_says() -> None:
    """The mean of n coin tosses has the standard error sqrt(p q / n)."""
    tosses = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    values = bootstrap(
        lambda w: {"mean": w @ tosses / w.sum(axis=1)}, len(tosses), resamples=1000, seed=0
    )
    shown = interval(values["mean"])
    assert shown["value"] == pytest.approx(tosses.mean())
    assert shown["low"] is not None and shown["high"] is not None
    assert shown["high"] - shown["low"] == pytest.approx(2 * 1.96 * (0.21 / 2000) ** 0.5, rel=0.1)


def test_undefined_value_is_none_and_not_nan() -> None:
    assert interval(np.array([np.nan, np.nan])) == {"value": None, "low": None, "high": None}
    assert interval(np.array([np.inf, 1.0, np.inf]))["value"] is None


def test_bias_metric_is_the_papers() -> None:
    labels, logits, _ = drawn()
    rng = np.random.default_rng(2)
    mentioned = {name: rng.random(400) < 0.3 for name in ("male", "female", "atheist")}
    found = metrics.bias(labels, logits, mentioned, np.ones((1, 400)))
    toxic, aucs = labels > 0, {"subgroup": [], "bpsn": [], "bnsp": []}
    for name, inside in mentioned.items():
        for kind, rows in {
            "subgroup": inside,
            "bpsn": (toxic & ~inside) | (~toxic & inside),
            "bnsp": (~toxic & ~inside) | (toxic & inside),
        }.items():
            auc = sk.roc_auc_score(labels[rows], logits[rows])
            assert found[f"{kind}_auc.{name}"] == pytest.approx(auc)
            if name != "atheist":  # not one of the nine of the combined metric
                aucs[kind].append(auc)
    means = [np.mean(np.array(of_kind) ** -5.0) ** (-1 / 5) for of_kind in aucs.values()]
    expected = 0.25 * sk.roc_auc_score(labels, logits) + 0.25 * sum(means)
    assert found["bias_metric"] == pytest.approx(expected)


def test_thresholds_are_the_lowest_that_reach_the_target() -> None:
    labels, logits, _ = drawn()
    one = np.ones((1, 400))
    at = metrics.threshold_for_precision(labels, logits, 0.8)
    assert at is not None
    assert metrics.at_threshold(labels, logits >= at, one)["precision"] >= 0.8
    lower = logits[logits < at].max()
    assert metrics.at_threshold(labels, logits >= lower, one)["precision"] < 0.8
    at = metrics.threshold_for_fpr(labels, logits, 0.05)
    assert at is not None
    assert metrics.at_threshold(labels, logits >= at, one)["fpr"] <= 0.05
    lower = logits[logits < at].max()
    assert metrics.at_threshold(labels, logits >= lower, one)["fpr"] > 0.05
    assert metrics.threshold_for_precision(labels, -np.arange(400.0) * labels, 0.999) is None


def write_curated(folder: Path) -> Path:
    rows = [f"harmless {i},0,{'named' if i % 2 else 'other'},{i // 2}" for i in range(40)]
    file = folder / "curated.csv"
    file.write_text("\n".join(["text,label,group,pair_id", *rows]) + "\n")
    (folder / "plain.csv").write_text("text,label\na,0\nb,1\n")
    return file


def test_group_rates_and_pair_shifts(tmp_path: Path) -> None:
    """15 of 20 named comments are called toxic, and 5 of 20 others, in the same pairs."""
    write_curated(tmp_path)
    sets = load_curated([str(tmp_path)])
    assert list(sets) == ["curated"]  # the file without groups is none
    comments = sets["curated"]
    logits = np.full(40, -2.0, np.float32)
    logits[np.arange(1, 30, 2)] = 2.0
    logits[np.arange(0, 10, 2)] = 2.0
    rates = group_rates(comments, logits >= 0)
    assert rates["fpr"]["value"] == 0.5
    assert (rates["fpr.named"]["value"], rates["fpr.other"]["value"]) == (0.75, 0.25)
    assert rates["fpr.named"]["low"] < 0.75 < rates["fpr.named"]["high"]
    ratio = rates["fpr_ratio"]
    assert ratio["value"] == pytest.approx(3) and 1 < ratio["low"] < 3 < ratio["high"]
    assert "fnr" not in rates
    # One group without an alarm: the ratio is infinite, its lower bound is not.
    none = group_rates(comments, (logits >= 0) & (comments.extra["group"] == "named"))["fpr_ratio"]
    assert none["value"] is none["high"] is None and none["low"] > 1
    assert "fpr_ratio" not in group_rates(comments, np.zeros(40, bool))
    shifts = pair_shifts(comments, logits, {"0.5": 0.0, "own threshold": 3.0}, **CHANCE)
    assert shifts["pair_flipped at 0.5"][0] == 0.5  # 10 of 20 pairs
    assert shifts["pair_flipped at own threshold"][0] == 0
    expected = (probability_of(np.array(2.0)) - probability_of(np.array(-2.0))) / 2
    assert shifts["pair_shift"][0] == pytest.approx(expected)


def test_curated_file_without_groups_is_refused(tmp_path: Path) -> None:
    write_curated(tmp_path)
    with pytest.raises(BadInput, match="has no column 'group'"):
        load_curated([str(tmp_path / "plain.csv")])
    (tmp_path / "curated.csv").unlink()
    with pytest.raises(BadInput, match="holds no"):
        load_curated([str(tmp_path)])


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("repeated", lambda word, new: len(new) > len(word) and set(new) == set(word)),
        ("leet", lambda word, new: new.lower() != word and len(new) == len(word)),
        ("asterisk", lambda word, new: new.count("*") == 1 and new[0] == word[0]),
        ("swapped", lambda word, new: sorted(new) == sorted(word)),
        ("spaced", lambda word, new: new == " ".join(word)),
    ],
)
def test_misspellings_are_of_their_kind_and_seeded(kind: str, holds: Any) -> None:
    text = "horrible idiots are posting nonsense about yesterday , again"
    texts = [text] * 50
    changed = misspell_all(texts, (kind,), seed=3)
    assert changed == misspell_all(texts, (kind,), seed=3)
    assert changed != misspell_all(texts, (kind,), seed=4)
    known, touched = text.split(), 0
    for new in changed:
        if kind != "spaced":
            pairs = [p for p in zip(known, new.split(), strict=True) if p[0] != p[1]]
            touched += len(pairs)
            assert all(holds(*pair) for pair in pairs), new
    if kind == "spaced":
        assert "i d i o t s" in " ".join(changed)
        touched = sum(new != text for new in changed) * 4
    assert 0.3 < touched / (50 * 8) < 0.7  # about half of the eight words
    assert set(KINDS) >= {kind}


# --- Models ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def published(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the serving graph of `trained_run`, in FP32 and marked as INT8."""
    folder = tmp_path_factory.mktemp("quality")
    checkpoint = load_checkpoint(trained_run)
    graph, ragged = folder / "serving.onnx", folder / "ragged.onnx"
    build(checkpoint.model, graph, (32, 64), ragged=ragged)
    publish(
        folder / "model_repository",
        onnx_path=graph,
        ragged_path=ragged,
        tokenizer_path=trained_run / TOKENIZER_FILE,
        artifact={
            "precision": "int8",
            "device": "cpu",
            "max_len": checkpoint.tokenizer.max_len,
            "calibration": checkpoint.config["calibration"],
            "checkpoint_sha256": sha256_of(trained_run / WEIGHTS_FILE),
            "thresholds": {PUBLIC_MODEL: 0.8},
        },
        instances=1,
    )
    return folder / "model_repository"


def test_checkpoint_and_its_artifact_give_the_same_logits(
    trained_run: Path, published: Path
) -> None:
    comments, split = comments_of_run(trained_run)
    texts = [*comments.texts[:60], "", "sh1t " * 300]
    own, served = (
        load_model(str(path), comments, split)
        for path in (trained_run, published / "toxicity" / "1")
    )
    assert (own.kind, served.kind) == ("pytorch", "published")
    np.testing.assert_allclose(own.logits(texts), served.logits(texts), atol=1e-4)
    assert own.about["checkpoint_sha256"] == served.about["checkpoint_sha256"]


def test_live_server_gives_its_own_logits(served: triton.ServeConfig, trained_run: Path) -> None:
    comments, split = comments_of_run(trained_run)
    texts = ["you are kind", "", "an awful idea"] * 30
    for url in (f"http://127.0.0.1:{served.http_port}", f"grpc://127.0.0.1:{served.grpc_port}"):
        model = load_model(url, comments, split)
        logits = load_scorer(served.repository).score(texts).logit
        np.testing.assert_allclose(model.logits(texts), logits, atol=1e-5)
    assert model.about == {"version": 1}
    assert (model.decides.threshold, model.decides.source) == (0.5, "default")


@pytest.mark.parametrize("spec", ["nowhere", "runs"])
def test_unknown_model_is_bad_input(spec: str, trained_run: Path) -> None:
    comments, split = comments_of_run(trained_run)
    with pytest.raises(BadInput, match=f"--models names {spec}, expected"):
        load_model(spec, comments, split)


def test_baseline_learns_and_is_calibrated(trained_run: Path) -> None:
    comments, split = comments_of_run(trained_run)
    for name in ("baseline", "baseline-words"):
        model = load_model(name, comments, split)
        texts = [comments.texts[row] for row in split.validation]
        labels, logits = comments.labels[split.validation], model.logits(texts)
        assert sk.roc_auc_score(labels, logits) > 0.7
        assert probability_of(logits).mean() == pytest.approx(labels.mean(), abs=0.01)


# --- The command -----------------------------------------------------------------------------
def measured(*flags: Any) -> subprocess.CompletedProcess[str]:
    return ran("quality", *flags)


def carded(*flags: Any) -> subprocess.CompletedProcess[str]:
    return ran("quality.card", *flags)


def ran(module: str, *flags: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def document(
    trained_run: Path, published: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, str]:
    folder = tmp_path_factory.mktemp("report")
    comments = load_comments("synthetic:3000")
    frame = pd.DataFrame({"text": comments.texts, "label": comments.labels}).head(200)
    frame["male"], frame["female"] = frame.index % 2, (frame.index + 1) % 2
    named, curated = folder / "civil_comments_like.csv", folder / "curated.csv"
    frame.to_csv(named, index=False)
    frame.assign(label=0, group=frame["male"]).to_csv(curated, index=False)
    done = measured(
        *("--run", trained_run, "--data", "test", named, "--curated", curated, "--misspell"),
        "--checklist",
        *("--models", trained_run, published, "baseline-words"),
        *("--out", folder, "--resamples", "100", "--json"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1], parse_constant=never), folder, done.stdout


def never(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")


def test_document_holds_every_figure(document: tuple[dict[str, Any], Path, str]) -> None:
    found, folder, _ = document
    assert json.loads((folder / "evaluation.json").read_text()) == found
    assert list(found["results"]) == ["validation", "test", "civil_comments_like"]
    first, second, third = found["models"]
    for of_set in found["results"].values():
        assert set(of_set) == {first, second, third}
        for model, own in of_set.items():
            shown = own["metrics"]["auroc"]
            assert shown["low"] <= shown["value"] <= shown["high"]
            gap = shown["value"] - of_set[first]["metrics"]["auroc"]["value"]
            assert own["difference"]["auroc"]["value"] == pytest.approx(gap), model
    assert found["sets"]["test"]["in_training"] == 0
    assert found["sets"]["civil_comments_like"]["in_training"] > 100
    assert "bias_metric" in found["results"]["civil_comments_like"][first]["metrics"]
    before, served = (
        found["calibration"]["validation"][second][way]["log_loss"] for way in ("before", "served")
    )
    assert served < before
    assert set(found["misspelled"]["test"]) == {"none", "any", *KINDS}
    assert (
        found["misspelled"]["test"]["swapped"]["oov"] > found["misspelled"]["test"]["none"]["oov"]
    )
    clean = found["misspelled"]["test"]["none"]["auroc"][third]["toxic"]
    assert clean == pytest.approx(
        found["results"]["test"][third]["metrics"]["auroc"]["value"], abs=1e-9
    )
    assert found["misspelled"]["test"]["any"]["auroc"][third]["every"] < clean
    assert set(found["bars"]) == {
        "ece",
        "auroc_over_baseline-words.test",
        "auroc_over_baseline-words.civil_comments_like",
        "fpr_ratio.curated",
        "int8_auroc_difference",
        "checklist_mean",
        "checklist_lowest",
    }
    assert found["bars"]["int8_auroc_difference"]["value"] < 1e-4


def test_decisions_are_at_the_threshold_that_each_model_states(
    document: tuple[dict[str, Any], Path, str], trained_run: Path, published: Path
) -> None:
    found, folder, printed = document
    checkpoint, version, baseline = found["models"]
    curve = json.loads((trained_run / THRESHOLDS_FILE).read_text("utf-8"))
    assert {name: one["decides"] for name, one in found["models"].items()} == {
        checkpoint: {"threshold": curve["decision"]["threshold"], "source": "operating curve"},
        version: {"threshold": 0.8, "source": "manifest"},
        baseline: {"threshold": 0.5, "source": "default"},
    }
    comments, split = comments_of_run(trained_run)
    texts, labels = [comments.texts[row] for row in split.test], comments.labels[split.test]
    score = probability_of(load_scorer(published).score(texts).logit)
    own = found["results"]["test"][version]["metrics"]
    for rule, at in (("own threshold", 0.8), ("0.5", 0.5)):
        expected = {
            "precision": sk.precision_score(labels, score >= at),
            "recall": sk.recall_score(labels, score >= at),
            "fpr": 1 - sk.recall_score(labels, score >= at, pos_label=0),
            "alarms_per_1000": 1000 * np.mean(score >= at),
        }
        shown = {name: own[f"{name} at {rule}"]["value"] for name in expected}
        assert shown == pytest.approx(expected), rule
    assert own["recall at own threshold"]["value"] < own["recall at 0.5"]["value"]
    rates = found["curated"]["curated"][version]["rates"]
    assert list(rates)[:2] == ["own threshold", "0.5"]
    assert rates["own threshold"]["fpr"]["count"] < rates["0.5"]["fpr"]["count"]
    assert found["checklist"]["thresholds"][version] == 0.8
    sentences = found["checklist"]["capabilities"]["disguise-leet"]["models"][version]
    assert "passed_at_default" in sentences
    lines = [line for line in printed.splitlines() if line.lstrip().startswith(version)]
    decided = [line for line in lines if "its manifest's" in line]
    beside = lines[lines.index(decided[0]) + 1]
    assert "0.8, its manifest's" in decided[0] and " 0.5 " in beside
    assert "FPR at own threshold" in (folder / "evaluation.html").read_text("utf-8")
    tables = quality_tables.decisions(found)
    assert [row[:2] for row in tables[1:]] == [
        [f"`{checkpoint}`", "0.5, its operating curve's"],
        [f"`{version}`", "0.8, its manifest's"],
        [f"`{version}`", "0.5"],
        [f"`{baseline}`", "0.5, the default, for it states none"],
    ]


def test_page_needs_no_other_file_and_shows_no_comment(
    document: tuple[dict[str, Any], Path, str], trained_run: Path
) -> None:
    found, folder, printed = document
    page = (folder / "evaluation.html").read_text()
    assert page.count("data:image/png;base64,") == len(found["results"])
    assert "http" not in page.replace(str(folder), "").replace("https://example.org/", "")
    comments, split = comments_of_run(trained_run)
    texts = [comments.texts[row] for row in split.test if len(comments.texts[row]) > 20]
    assert not [text for text in texts if text in page or text in printed]


def test_card_has_the_figures_of_its_version(
    document: tuple[dict[str, Any], Path, str], published: Path, tmp_path: Path
) -> None:
    found, folder, _ = document
    evaluation = folder / "evaluation.json"
    given = ("--repository", published, "--data-licence", "CC0 <b>", "--out", tmp_path / "card")
    done = carded("--evaluation", evaluation, *given)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "card/card.md").read_text("utf-8")
    model = list(found["models"])[1]
    auroc = found["results"]["test"][model]["metrics"]["auroc"]
    assert f"{auroc['value']:.4f} [{auroc['low']:.4f}, {auroc['high']:.4f}]" in text
    assert found["models"][model]["onnx_sha256"] in text
    assert "| precision at 0.8 | recall at 0.8 |" in text and "positives at 0.8 by group" in text
    assert "SYNTHETIC: generated, not written by people" in text
    weak = [
        one["says"]
        for one in found["checklist"]["capabilities"].values()
        if one["models"][model]["passed"] < 0.5
    ]
    assert weak
    for says in weak:
        assert f"| {says} |" in text
    page = (tmp_path / "card/card.html").read_text("utf-8")
    assert "CC0 &lt;b&gt;" in page
    # Of a version without thresholds.json there is no table of them.
    assert page.count("<table>") >= 5 and "The version is older than" in page
    assert "word vectors" not in text

    # Texts that are not in the training file have taught it, too.
    changed = json.loads(evaluation.read_text("utf-8"))
    changed["run"]["word_vectors"] = {"name": "glove.txt", "sha256": "ab" * 32}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed), "utf-8")
    assert carded("--evaluation", other, *given).returncode == 0
    assert f"| word vectors | glove.txt, sha256 `{'ab' * 32}`" in (
        tmp_path / "card/card.md"
    ).read_text("utf-8")

    # Of another version there is nothing to say.
    changed = json.loads(evaluation.read_text("utf-8"))
    changed["models"][model]["onnx_sha256"] = "0" * 64
    other.write_text(json.dumps(changed), "utf-8")
    refused = carded("--evaluation", other, *given)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {other} has no figures of version 1 of")


def test_bars_are_broken_by_bad_figures() -> None:
    def shown(value: float) -> dict[str, float]:
        return {"value": value, "low": value, "high": value}

    def results(own: float, int8: float, baseline: float) -> dict[str, Any]:
        of = {"own": own, "int8": int8, "baseline": baseline}
        return {
            name: {
                "metrics": {"auroc": shown(auroc), "ece": shown(0.03)},
                "difference": {"auroc": shown(auroc - own)},
            }
            for name, auroc in of.items()
        }

    document = {
        "models": {
            "own": {"kind": "pytorch", "precision": "fp32", "checkpoint_sha256": "a"},
            "int8": {
                "kind": "published",
                "precision": "int8",
                "checkpoint_sha256": "a",
                "cascade": None,
            },
            "baseline": {"kind": "baseline"},
        },
        "sets": {"one": {"toxic": 0}},
        "results": {
            "validation": results(0.97, 0.969, 0.96),
            "test": results(0.97, 0.97, 0.96),
            "civil_comments_gender": results(0.87, 0.87, 0.86),
        },
        "thresholds": {"own": {"own threshold": {}, "0.5": {}}},
        "curated": {
            "one": {
                "own": {
                    "rates": {
                        "own threshold": {"fpr_ratio": shown(3.5)},
                        "0.5": {"fpr_ratio": shown(2.5)},
                    }
                }
            }
        },
    }
    holds = {name: bar["holds"] for name, bar in bars(document).items()}
    assert holds == {
        "ece": False,
        "auroc_over_baseline.test": True,
        "auroc_over_baseline.civil_comments_gender": False,
        "fpr_ratio.one": False,
        "int8_auroc_difference": False,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run", "nowhere"), "nowhere/config.json is missing"),
        (("--data", "test", "test"), "--data has two sets named 'test'"),
        (("--data", "nowhere.csv"), "no file at nowhere.csv"),
        (("--wanted-fpr", "2"), "--wanted-fpr is '2'"),
    ],
)
def test_bad_flag_is_one_line_and_status_2(
    flags: Sequence[str],
    message: str,
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: `document` is of the command itself."""
    known = () if "--run" in flags else ("--run", str(trained_run))
    monkeypatch.setattr(sys, "argv", ["quality", *known, "--models", "baseline-words", *flags])
    with pytest.raises(SystemExit) as ended:
        run(main)
    said = capsys.readouterr().err
    assert (ended.value.code, len(said.splitlines())) == (2, 1)
    assert message in said
