"""Several sources in one training: what a file says of them, what is left out, drawn and judged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from console.options import make_config
from contract import BadInput
from experiments import leave_one_out
from quality.config import QualityConfig
from quality.measure import measure
from train.artifacts import CONFIG_FILE, METRICS_FILE, SPLIT_FILE, WEIGHTS_FILE
from train.by_source import figures
from train.config import TrainConfig
from train.corpus import load_corpus
from train.data import near_duplicates
from train.data.load import load_comments
from train.data.near_duplicates import near_rows
from train.data.sources import (
    CommentSource,
    given_sources,
    learned_targets,
    load_all,
    load_source,
    read_sources,
    without,
)
from train.data.split import comments_of_run, split_comments
from train.data.synthetic import generate
from train.distributed import Processes
from train.earlier import EarlierRuns
from train.examples import make_examples
from train.loop import train
from train.methods import sampling
from train.terminal import StopRequest

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"text_column": None, "label_column": None, "label_map": ()}
SMALL: dict[str, Any] = {
    **{"max_vocab": 500, "max_len": 24, "d_model": 16, "n_layers": 1, "n_heads": 2},
    **{"epochs": 1, "batch_size": 32, "device": "cpu"},
}
FOREIGN = ["Der Zug", "hält heute", "in keinem", "Bahnhof am", "Meer und", "niemand weiß", "warum"]


def table(path: Path, header: str, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "sources.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sources file with three sources: labels, classes, and shares of annotators."""
    found = tmp_path_factory.mktemp("sources")
    texts, targets = generate(900)
    labelled = [(text, int(target >= 0.5)) for text, target in zip(texts, targets, strict=True)]
    table(found / "wiki.csv", "text,label", labelled[:600])
    tweets = [(f"{text} rt", 1 - label) for text, label in labelled[600:750]]
    table(found / "tweets.csv", "body,class", tweets)
    shares = [(f"{text} indeed", t) for text, t in zip(texts[750:], targets[750:], strict=True)]
    table(found / "civil.csv", "comment_text,target", shares)
    yaml_file(
        found,
        """
- {name: wiki, path: wiki.csv, licence: CC0}
- name: tweets
  path: tweets.csv
  text-column: body
  label-column: class
  meaning: classes
  label-map: {0: 0.9, 1: 0}
  share: 0.1
  weight: 0.5
- {name: civil, path: civil.csv, meaning: probability, threshold: 0.6}
""",
    )
    return found


@pytest.fixture(scope="module")
def run_of_three(folder: Path) -> Path:
    """A finished run of these sources, of which one comment of the test file is nearly one."""
    rows = rows_of(folder / "wiki.csv")
    copies = [(f"{text.upper()} !!", label) for text, label in rows[:40]]
    table(folder / "test.csv", "text,label", [*copies, ("you idiot", 1), ("good day", 0)])
    out = folder / "runs" / "model"
    config = {"sources": folder / "sources.yaml", "test_data": str(folder / "test.csv"), "out": out}
    train(make_config(TrainConfig, {**SMALL, **config}), CPU)
    return out


# --- What a sources file says ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, path: [", "is no YAML at line 1, expected a YAML list of sources"),
        ("", "is empty, expected a YAML list of sources"),
        ("name: a", "is a dict, expected a YAML list of sources"),
        ("- {name: a}", "source 'a': path is missing, expected a value; add it"),
        ("- {path: a.csv}", "source 1: name is missing"),
        ("- plain", "source 1: Input should be a valid dictionary"),
        ("- {name: a, path: a.csv, label: toxic}", "source 'a': label is no key, expected some of"),
        ("- {name: a b, path: a.csv}", "source 'a b': name is 'a b': String should match"),
        ("- {name: all, path: a.csv}", "source 'all': the name all stands for all sources"),
        ("- {name: a, path: a.csv, meaning: rude}", "source 'a': meaning is 'rude'"),
        ("- {name: a, path: a.csv, weight: 0}", "source 'a': weight is 0: Input should be greater"),
        ("- {name: a, path: a.csv, meaning: words}", "meaning is words, expected a label-map"),
        (
            "- {name: a, path: a.csv, meaning: probability, label-map: {x: 1}}",
            "meaning is probability, expected words or classes",
        ),
        (
            "- {name: a, path: a.csv, meaning: words, label-map: {yes: 1, no: 0}}",
            "label-map has a plain true (yes and no are such, too), expected a word in quotes",
        ),
        (
            "- {name: a, path: a.csv, meaning: words, label-map: {x: 7}}",
            "label-map has 7, expected 0 to 1, or drop",
        ),
        (
            "[{name: a, path: a.csv}, {name: a, path: b.csv}]",
            "names 'a' twice, expected each source once",
        ),
        (
            "[{name: a, path: a.csv, share: 0.7}, {name: b, path: b.csv, share: 0.7}]",
            "gives shares that sum to 1.4, expected 1",
        ),
        (
            "[{name: a, path: a.csv, share: 1.0}, {name: b, path: b.csv}]",
            "gives shares that sum to 1, expected less than 1",
        ),
    ],
)
def test_a_bad_sources_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        read_sources(yaml_file(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "sources.yaml" in str(error.value) and "; " in str(error.value)


def test_a_sources_file_that_is_not_there_and_one_of_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no file at .*none\.yaml, expected a YAML list"):
        read_sources(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("- {name: ä}".encode("latin-1"))
    with pytest.raises(BadInput, match="is not UTF-8"):
        read_sources(tmp_path / "latin.yaml")


def test_paths_are_from_the_folder_of_the_file(tmp_path: Path) -> None:
    entries = "[{name: a, path: a.csv}, {name: b, path: 'hub:x/y'}, {name: c, path: 'synthetic:9'}]"
    paths = [source.path for source in read_sources(yaml_file(tmp_path, entries))]
    assert paths == [str(tmp_path / "a.csv"), "hub:x/y", "synthetic:9"]


def test_a_column_that_is_not_there_is_named_with_its_source(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "text,label", [("one", 1), ("two", 0)])
    file = yaml_file(tmp_path, "- {name: a, path: a.csv, text-column: body}")
    with pytest.raises(BadInput) as error:
        load_all(read_sources(file), str(file))
    assert "are text, label, expected 'body' for the text" in str(error.value)
    assert str(error.value).endswith(f"name it with {file}, a: text-column")


def test_a_class_that_the_map_does_not_name_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "text,class", [("one", 0), ("two", 1), ("three", 2)])
    entry = "- {name: a, path: a.csv, label-column: class, meaning: classes, "
    file = yaml_file(tmp_path, entry + "label-map: {0: 1, 1: 0}}")
    with pytest.raises(BadInput) as error:
        load_all(read_sources(file), str(file))
    assert "'2' (1), the first that is none in row 2, expected only" in str(error.value)
    assert f"add {file}, a: label-map 2=N" in str(error.value)


def test_each_source_has_its_own_columns_and_meaning(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "text,class", [("a0", 0), ("a1", 1), ("a2", 2), ("a3", -1)])
    table(tmp_path / "b.csv", "body,says", [("b0", "rude"), ("b1", "kind")])
    table(tmp_path / "c.csv", "text,toxicity,male", [("c0", 0.55, 1), ("c1", 0.7, 0)])
    table(tmp_path / "d.csv", "text,toxicity", [("d0", 0.55), ("d1", 0.2)])
    file = yaml_file(
        tmp_path,
        """
- name: a
  path: a.csv
  label-column: class
  meaning: classes
  label-map: {0: 1, 1: 0.6, 2: 0, -1: drop}
- name: b
  path: b.csv
  text-column: body
  label-column: says
  meaning: words
  label-map: {rude: 1, kind: 0}
- {name: c, path: c.csv, meaning: probability, threshold: 0.6}
- {name: d, path: d.csv}
""",
    )
    sources = read_sources(file)
    comments = load_all(sources, str(file))
    assert comments.texts == ["a0", "a1", "a2", "b0", "b1", "c0", "c1", "d0", "d1"]
    assert comments.origin is not None and comments.origin.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert comments.labels.tolist() == [1, 1, 0, 1, 0, 0, 1, 1, 0]
    learned = learned_targets(comments, sources)
    assert learned == pytest.approx([1, 0.6, 0, 1, 0, 0.55, 0.7, 1, 0])
    assert comments.source["dropped_by_label_map"] == 1
    male = comments.identities["male"]
    assert np.isnan(male[:5]).all() and male[5:7].tolist() == [1, 0]


def test_files_behind_data_are_sources_with_names_of_their_own(tmp_path: Path) -> None:
    data = ("x/train.csv", "y/train.csv.gz", "hub:google/civil_comments:test", "synthetic:50")
    sources, where = given_sources(data, None, **PLAIN)
    names = [source.name for source in sources]
    assert names == ["train", "train-2", "civil-comments", "synthetic"] and where == ""
    assert given_sources(("one.csv",), None, **PLAIN) == ((), "")
    file = yaml_file(tmp_path, "- {name: a, path: 'hub:x/y'}")
    listed = given_sources(("synthetic",), file, **PLAIN)
    assert given_sources((str(file),), None, **PLAIN) == listed == (read_sources(file), str(file))
    mapped = given_sources(("a.csv", "b.csv"), None, **{**PLAIN, "label_map": ("x=1", "y=drop")})
    assert mapped[0][1].label_map == {"x": 1.0, "y": "drop"} and not mapped[0][1].soft
    with pytest.raises(BadInput, match=r"--data names a\.csv twice"):
        given_sources(("a.csv", "a.csv"), None, **PLAIN)


# --- What is nearly the same ----------------------------------------------------------------------
def test_near_duplicates_are_found_and_others_are_not() -> None:
    long = " ".join(FOREIGN)
    judging = [long, "thank you"]
    texts = [
        long.upper() + "!?",  # the same but for form
        long + " denn",  # five letters more
        " ".join(reversed(FOREIGN)),  # the same words in another order
        "thank you!",
        "thank you all",
        "something else entirely, of no source",
    ]
    assert near_rows(texts, np.arange(6), judging).tolist() == [0, 1, 3]
    assert near_rows(texts, np.array([2, 3]), judging).tolist() == [3]
    assert near_rows(texts, np.arange(6), []).tolist() == []


def test_found_ones_are_those_of_every_pair_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all pairs, in chunks smaller than the texts."""
    monkeypatch.setattr(near_duplicates, "_CHUNK", 64)
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(300)])
    base = [" ".join(rng.choice(words, 25)) for _ in range(150)]
    changed = []
    for text in base:
        kept = text.split()
        for place in rng.choice(25, rng.integers(0, 6), replace=False):
            kept[place] = str(rng.choice(words))
        changed.append(" ".join(kept))
    shingles = near_duplicates._shingles
    own = [[shingles(t.replace(" ", "")) for t in texts] for texts in (changed, base)]
    alike = [max(len(a & b) / len(a | b) for b in own[1]) >= 0.8 for a in own[0]]
    assert 20 < sum(alike) < 130
    assert near_rows(changed, np.arange(150), base).tolist() == np.flatnonzero(alike).tolist()


def test_near_duplicates_do_not_straddle(folder: Path, tmp_path: Path) -> None:
    """Every comment stands in two sources, in another form: it is in one part only."""
    rows = rows_of(folder / "wiki.csv")
    table(tmp_path / "a.csv", "text,label", rows)
    table(tmp_path / "b.csv", "text,label", [(f"{text.upper()}!", label) for text, label in rows])
    table(tmp_path / "test.csv", "text,label", [(f"{text}.", label) for text, label in rows[:30]])
    data = (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    said: list[str] = []

    def corpus(choice: str) -> Any:
        config = TrainConfig(
            data=data, test_data=str(tmp_path / "test.csv"), near_duplicates=choice, max_vocab=500
        )
        return load_corpus(config, EarlierRuns(None, []), said.append)

    dropped = corpus("auto")
    split, texts = dropped.split, dropped.comments.texts
    judging = [texts[row] for row in (*split.validation, *split.test)]
    judging += dropped.test_file.comments.texts
    assert near_rows(texts, split.train, judging).size == 0
    parts = np.concatenate([split.train, split.validation, split.test, split.left_out])
    assert sorted(parts.tolist()) == list(range(len(texts)))
    assert len(split.left_out) > 100
    assert any(f"{len(split.left_out):,} of " in line and "left out" in line for line in said)
    kept = corpus("keep").split
    assert near_rows(texts, kept.train, judging).tolist() == split.left_out.tolist()
    assert kept.fingerprint == split.fingerprint and "left_out" not in kept.to_json()


# --- Shares and weights ---------------------------------------------------------------------------
def test_the_largest_source_does_not_drown_the_others() -> None:
    shares = sampling.shares_of([60_000, 3_000], [None, None])
    assert shares.sum() == pytest.approx(1) and 0.05 < shares[1] < 0.2  # of 0.048 of the comments
    assert shares[1] / shares[0] == pytest.approx((3 / 60) ** sampling.TEMPER)
    given = sampling.shares_of([60_000, 3_000, 3_000], [None, 0.5, None])
    assert given[1] == pytest.approx(0.5) and given[0] > given[2]
    assert sampling.shares_of([10, 0], [0.5, 0.5]).tolist() == [1, 0]


def test_an_epoch_has_the_share_of_each_source() -> None:
    origin = np.repeat([0, 1], [90, 10])
    training = np.arange(100)
    drawn = sampling.plan(training, origin, [None, 0.25], 0, np.array([100, 101]))
    assert drawn.counts == (75, 25)
    first, second = drawn.epoch_rows(0), drawn.epoch_rows(1)
    for rows in (first, second):
        assert len(rows) == 102 and rows[-2:].tolist() == [100, 101]
        times = np.bincount(rows, minlength=100)
        assert times[:90].max() == 1 and times[:90].sum() == 75
        assert set(times[90:100]) == {2, 3} and times[90:100].sum() == 25
    assert first.tolist() != second.tolist()
    assert first.tolist() == drawn.epoch_rows(0).tolist()
    assert drawn.rate(100)[95] == pytest.approx(2.5)


def test_each_source_is_split_likewise() -> None:
    labels = np.tile([1.0, 0, 0, 0], 250)
    origin = np.repeat([0, 1, 2], [800, 190, 10])  # of the last too few to be split by themselves
    texts = [f"comment {n}" for n in range(1000)]
    split = split_comments(texts, labels, origin=origin)
    for number, share in ((0, 0.1), (1, 0.1)):
        own = origin[split.validation] == number
        assert own.sum() == pytest.approx(share * (origin == number).sum(), abs=2)
        assert labels[split.validation][own].mean() == pytest.approx(0.25, abs=0.05)
    assert len(split.train) + len(split.validation) + len(split.test) == 1000


def test_figures_of_one_class_have_no_auroc() -> None:
    found = figures(np.zeros(3), np.array([-2.0, -1.0, 3.0]))
    assert found["auroc"] is found["best_f1"] is found["recall"] is None
    assert found["fpr"] == pytest.approx(1 / 3) and found["precision"] == 0


# --- Trainings ------------------------------------------------------------------------------------
@pytest.mark.slow
def test_one_source_trains_as_its_file_does(folder: Path, tmp_path: Path) -> None:
    """Bit for bit, by whichever flag it is given."""
    file = yaml_file(tmp_path, f"- {{name: wiki, path: {folder / 'wiki.csv'}}}")
    runs = {"data": {"data": str(folder / "wiki.csv")}, "sources": {"sources": file}}
    for name, given in runs.items():
        train(make_config(TrainConfig, {**SMALL, **given, "out": tmp_path / name}), CPU)
    one, other = (load_file(tmp_path / name / WEIGHTS_FILE) for name in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    splits = [json.loads((tmp_path / name / SPLIT_FILE).read_text()) for name in runs]
    assert splits[0] == splits[1] and "left_out" not in splits[0]
    metrics = [json.loads((tmp_path / name / METRICS_FILE).read_text()) for name in runs]
    assert metrics[0]["validation"] == metrics[1]["validation"]
    assert not any("by_source" in each for each in metrics)


class StopAfter(StopRequest):
    """Asks for a stop once the loop has looked this often."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.mark.slow
def test_a_run_of_several_sources_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """Stopped in its second epoch, which draws other examples than the first."""
    text = (folder / "sources.yaml").read_text("utf-8")
    for name in ("wiki", "tweets", "civil"):
        text = text.replace(f"{name}.csv", str(folder / f"{name}.csv"))
    file = yaml_file(tmp_path, text)

    def config(out: str) -> TrainConfig:
        given = {"data": str(file), "epochs": 2, "out": tmp_path / out}
        return make_config(TrainConfig, {**SMALL, **given})

    train(config("whole"), CPU)
    with pytest.raises(KeyboardInterrupt):
        train(config("stopped"), CPU, stop=StopAfter(30))
    yaml_file(tmp_path, text.replace("weight: 0.5", "weight: 0.25"))
    with pytest.raises(BadInput, match="holds an interrupted run with sources"):
        train(config("stopped"), CPU)
    yaml_file(tmp_path, text)
    train(config("stopped"), CPU)
    one, other = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_weight_and_meaning_reach_the_loss(folder: Path, tmp_path: Path) -> None:
    """What a step reads: targets as each source's labels mean them, and what each counts."""
    config = make_config(
        TrainConfig, {**SMALL, "sources": folder / "sources.yaml", "out": tmp_path / "run"}
    )
    corpus = load_corpus(config, EarlierRuns(None, []), lambda _: None)
    alone = Processes(CPU, 0, 1, None)
    data = make_examples(config, corpus, tmp_path, alone, lambda _: None)
    origin = corpus.comments.origin
    assert origin is not None
    assert set(data.weights[origin == 1]) == {0.5} and set(data.weights[origin != 1]) == {1.0}
    assert set(data.targets[origin == 1]) == {np.float32(0.9), 0}
    assert data.targets[origin == 2] == pytest.approx(corpus.comments.targets[origin == 2])
    assert len(set(data.targets[origin == 2])) > 2 and set(data.targets[origin == 0]) == {0, 1}
    epochs = [data.epoch_rows(epoch) for epoch in range(40)]
    rows = np.concatenate(epochs)
    toxic = (data.weights[rows] * data.targets[rows]).sum()
    assert data.pos_weight == pytest.approx(data.weights[rows].sum() / toxic - 1, rel=0.05)


@pytest.mark.slow
def test_a_run_of_three_says_how_each_does(run_of_three: Path, folder: Path) -> None:
    metrics = json.loads((run_of_three / METRICS_FILE).read_text())
    found = metrics["by_source"]
    assert list(found) == ["all", "wiki", "tweets", "civil"]
    assert found["all"]["validation"]["auroc"] == pytest.approx(metrics["validation"]["auroc"])
    parts = [found[name]["validation"]["comments"] for name in ("wiki", "tweets", "civil")]
    assert sum(parts) == metrics["validation"]["comments"]
    comments, split = comments_of_run(run_of_three)
    assert comments.origin is not None
    own = comments.origin[split.train]
    drawn = [found[name]["examples_an_epoch"] for name in ("wiki", "tweets", "civil")]
    assert sum(drawn) == len(split.train) and drawn[1] == pytest.approx(0.1 * sum(drawn), abs=1)
    assert [found[n]["training_comments"] for n in ("wiki", "tweets", "civil")] == [
        int((own == number).sum()) for number in range(3)
    ]
    recorded = json.loads((run_of_three / CONFIG_FILE).read_text())["sources"]
    assert [each["licence"] for each in recorded] == ["CC0", "", ""]
    # What of the test file stands in the training part is left out, and counted.
    assert metrics["near_duplicates_left_out"] == len(split.left_out) > 10
    test = load_comments(str(folder / "test.csv")).texts
    assert near_rows(comments.texts, split.train, test).size == 0
    assert near_rows(comments.texts, split.left_out, test).size > 10


@pytest.mark.slow
def test_eval_judges_each_source_and_those_of_a_sources_file(
    run_of_three: Path, folder: Path, tmp_path: Path
) -> None:
    config = QualityConfig(
        run=run_of_three,
        models=(str(run_of_three),),
        data=("test", str(folder / "sources.yaml")),
        resamples=100,
        out=tmp_path,
    )
    results = measure(config).document["results"]
    of_run = ["validation", "validation.wiki", "validation.tweets", "validation.civil"]
    assert list(results) == [*of_run, "wiki", "tweets", "civil", "test"]
    metrics = json.loads((run_of_three / METRICS_FILE).read_text())["by_source"]
    for name in ("wiki", "tweets", "civil"):
        (own,) = results[f"validation.{name}"].values()
        expected = metrics[name]["validation"]["auroc"]
        assert own["metrics"]["auroc"]["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_source_that_is_held_out_is_judged_and_never_read(folder: Path, tmp_path: Path) -> None:
    rest, held = without(read_sources(folder / "sources.yaml"), "tweets")
    config = {"sources": folder / "sources.yaml", "hold_out_source": "tweets"}
    train(make_config(TrainConfig, {**SMALL, **config, "out": tmp_path / "run"}), CPU)
    metrics = json.loads((tmp_path / "run" / METRICS_FILE).read_text())
    assert list(metrics["by_source"]) == ["all", *(source.name for source in rest)]
    assert metrics["held_out_source"]["comments"] == len(load_source(held).texts) == 150
    assert 0 <= metrics["held_out_source"]["auroc"] <= 1
    comments, split = comments_of_run(tmp_path / "run")
    assert not set(comments.texts) & set(load_source(held).texts)
    assert near_rows(comments.texts, split.train, load_source(held).texts).size == 0
    moved, same = comments_of_run(tmp_path / "run", str(folder / "sources.yaml"))
    assert moved.texts == comments.texts and same.left_out.tolist() == split.left_out.tolist()


def test_a_source_to_hold_out_must_be_one_of_several(folder: Path) -> None:
    sources = read_sources(folder / "sources.yaml")
    with pytest.raises(
        BadInput, match=r"is 'reddit', expected one of several sources \(wiki, twee"
    ):
        without(sources, "reddit")
    with pytest.raises(BadInput, match="is 'x', expected one of several"):
        without((), "x")
    halves = tuple(CommentSource(name=n, path="a", share=s) for n, s in (("a", 0.2), ("b", 0.3)))
    shared = (*halves, CommentSource(name="c", path="a", share=0.5))
    rest, held = without(shared, "c")
    assert [source.share for source in rest] == pytest.approx([0.4, 0.6]) and held.name == "c"


@pytest.mark.slow
def test_leave_one_out_from_trainings_to_document(folder: Path, tmp_path: Path) -> None:
    names = ("max_vocab", "max_len", "d_model", "n_layers", "n_heads", "epochs", "batch_size")
    config = leave_one_out.LeaveOneOutConfig(
        sources=folder / "sources.yaml",
        only=("tweets", "civil"),
        runs=tmp_path / "runs",
        out=tmp_path,
        **{name: SMALL[name] for name in names},
    )
    document = leave_one_out.measure(config)
    assert [row["source"] for row in document["rows"]] == ["tweets", "civil"]
    assert min(row["baseline_auroc"] for row in document["rows"]) > 0.6
    gains = []
    for row in document["rows"]:
        bar = document["bars"][f"auroc_over_baseline.{row['source']}"]
        assert bar["value"] == pytest.approx(row["auroc"] - row["baseline_auroc"], abs=1e-4)
        assert bar["holds"] == (bar["value"] >= 0)
        gains.append(row["auroc"] - row["baseline_auroc"])
    in_mean = document["bars"]["mean_auroc_over_baseline"]
    assert in_mean["value"] == pytest.approx(sum(gains) / 2, abs=1e-4)
    assert in_mean["holds"] == (in_mean["value"] >= 0.03)
    weights = tmp_path / "runs" / "seed-0" / "civil" / WEIGHTS_FILE
    before = weights.stat().st_mtime_ns
    assert leave_one_out.measure(config)["rows"] == document["rows"]
    assert weights.stat().st_mtime_ns == before  # read again, not trained again
    text = (folder / "sources.yaml").read_text("utf-8")
    for name in ("wiki", "tweets", "civil"):
        text = text.replace(f"{name}.csv", str(folder / f"{name}.csv"))
    other = yaml_file(tmp_path, text.replace("weight: 0.5", "weight: 0.25"))
    with pytest.raises(BadInput, match=r"has sources|is of other sources"):
        leave_one_out.measure(
            leave_one_out.LeaveOneOutConfig(
                **{**vars(config), "sources": other, "only": ("civil",)}
            )
        )
    with pytest.raises(BadInput, match="--only has 'reddit', expected some of wiki, tweets, civil"):
        leave_one_out.measure(
            leave_one_out.LeaveOneOutConfig(**{**vars(config), "only": ("reddit",)})
        )


# --- A hub's Civil Comments -----------------------------------------------------------------------
HUB_COLUMNS = (
    "toxicity severe_toxicity obscene threat insult identity_attack sexual_explicit".split()
)


@pytest.fixture
def civil_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local folder in the schema of google/civil_comments, two files of several row groups."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pytest.importorskip("datasets")
    data = tmp_path / "civil_comments" / "data"
    data.mkdir(parents=True)
    kinds = pa.schema([("text", pa.string()), *((n, pa.float32()) for n in HUB_COLUMNS)])
    for number in range(2):
        rows = range(number * 15_000, (number + 1) * 15_000)
        columns = {"text": [f"comment {row}" for row in rows]}
        columns |= {name: [row % 5 / 4 for row in rows] for name in HUB_COLUMNS}
        path = data / f"train-0000{number}-of-00002.parquet"
        pq.write_table(pa.table(columns, schema=kinds), path, row_group_size=4_000)
    return f"hub:{tmp_path / 'civil_comments'}"


def test_civil_comments_of_a_hub_are_read_whole_with_their_soft_targets(
    civil_comments: str,
) -> None:
    comments = load_comments(civil_comments)
    assert len(comments.texts) == 30_000 and comments.texts[-1] == "comment 29999"
    assert comments.source["kind"] == "hub" and comments.source["label_column"] == "toxicity"
    assert comments.targets[:5].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert comments.labels[:5].tolist() == [0, 0, 1, 1, 1]
    source = CommentSource(name="civil", path=civil_comments, meaning="probability")
    merged = load_all((source, source.model_copy(update={"name": "again"})))
    learned = learned_targets(merged, (source, source))
    assert learned[30_000:30_005].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_a_column_that_the_hub_does_not_have_is_named(civil_comments: str) -> None:
    with pytest.raises(BadInput, match="expected 'body' for the text; name it with --text-column"):
        load_comments(civil_comments, text_column="body")
    with pytest.raises(BadInput, match="could not be loaded"):
        load_comments(f"{civil_comments}-none")
    with pytest.raises(BadInput, match="could not be loaded"):
        load_comments(f"{civil_comments}:nosplit")
