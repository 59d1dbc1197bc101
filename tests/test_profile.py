"""The reference profile of a version: exact counts, without text, covered by the manifest."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Exported, TinyModel

from contract import (
    ARTIFACT_FILE,
    DECISION_THRESHOLD,
    PROFILE_FILE,
    PUBLIC_MODEL,
    SCORE_BINS,
    TOKEN_BOUNDS,
    BadInput,
)
from core.binding import sha256
from export.manifest import read_artifact
from export.profile import Profile, read_profile
from export.reference import SCORE_BOUNDS, counts_upto, profile_of
from export.repository import load_scorer, served_files, verify, version_folder
from export.scorer import Scorer, probability
from export.switch import rollback, serve_version
from serve import view
from train.data.curated import load_curated
from train.data.split import comments_of_run
from train.data.tokenizer import Respelling


# --- What the core counts of texts ------------------------------------------------------------
def _is_word(token: str) -> bool:
    return unicodedata.category(token[0])[0] in "LMN"


def test_words_are_the_tokens_of_word_characters(
    tiny_model: TinyModel, comments: list[str]
) -> None:
    scorer, known = Scorer(tiny_model.onnx_path, tiny_model.tokenizer), {"counted": 0}
    vocabulary = set(tiny_model.tokenizer.vocabulary)
    for text in comments:
        found = scorer.score([text])
        if found.cut:
            continue
        words = [token for token in tiny_model.tokenizer.native.split(text) if _is_word(token)]
        assert found.words == len(words), repr(text)
        assert found.unknown_words == sum(word not in vocabulary for word in words), repr(text)
        assert found.respelled_words == 0
        known["counted"] += len(words)
    assert known["counted"] > 300


@pytest.mark.parametrize(
    ("text", "words", "unknown", "respelled"),
    [
        ("you are kind", 3, 0, 0),
        ("you, are!! kind.", 3, 0, 0),
        ("zzz qqq kind", 3, 2, 0),
        ("kiiiind", 1, 0, 1),
        ("k1nd p*rson knid", 3, 0, 3),
        ("p e r s o n", 1, 0, 1),
        ("y o u r w o r k", 2, 0, 1),  # a run is one, though it is two words
        ("personwork", 1, 0, 1),  # a word is one, though it becomes two ids
        ("the (k1nd) 😀 p*rs0n", 3, 0, 2),
        ("", 0, 0, 0),
    ],
)
def test_disguised_words_are_counted(
    tiny_model: TinyModel, text: str, words: int, unknown: int, respelled: int
) -> None:
    tokenizer = dataclasses.replace(tiny_model.tokenizer, respelling=Respelling())
    found = Scorer(tiny_model.onnx_path, tokenizer).score([text, text])
    assert found.words == 2 * words
    assert found.unknown_words == 2 * unknown
    assert found.respelled_words == 2 * respelled


def test_words_beyond_the_cut_are_not_counted(tiny_model: TinyModel) -> None:
    scorer, most = Scorer(tiny_model.onnx_path, tiny_model.tokenizer), 15
    for words in (most, most + 1, 5_000):
        found = scorer.score(["zzz " * words])
        assert (found.words, found.unknown_words, found.cut) == (most, most, words > most)
        assert found.lengths.tolist() == [most + 1]


# --- Of an export --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exported(exported_of: Callable[[str], Exported]) -> Exported:
    return exported_of("int8")


def test_export_counts_its_validation_split(exported: Exported) -> None:
    config, report = exported
    folder = version_folder(config.repository, 1)
    artifact = verify(config.repository)
    assert PROFILE_FILE in artifact["files"] and PROFILE_FILE in report["published"]["files"]
    profile = read_profile(folder, artifact["files"])
    assert profile is not None
    comments, split = comments_of_run(config.checkpoint)
    texts = [comments.texts[row] for row in split.validation]
    labels = comments.labels[split.validation]
    found = load_scorer(config.repository).score(texts)
    score = probability(found.logit).astype(np.float64)
    assert (profile.version, profile.comments) == (1, len(texts))
    edges = [0, *SCORE_BOUNDS]
    by_hand = [
        int(((score > low) & (score <= high) | (low == 0) & (score == 0)).sum())
        for low, high in itertools.pairwise(edges)
    ]
    assert list(profile.score_bins) == by_hand
    assert profile.token_bins == counts_upto(found.lengths, TOKEN_BOUNDS)
    counts = profile.words, profile.unknown_words, profile.respelled_words, profile.comments_cut
    assert counts == (found.words, found.unknown_words, found.respelled_words, found.cut)
    assert 0 < profile.unknown_words < profile.words
    assert profile.threshold == DECISION_THRESHOLD
    assert profile.flagged == int((score >= DECISION_THRESHOLD).sum()) > 0
    assert sum(each.comments for each in profile.calibration) == len(texts)
    assert sum(each.positives for each in profile.calibration) == labels.sum()
    sums = [each.comments * (each.mean_score or 0) for each in profile.calibration]
    assert sum(sums) == pytest.approx(score.sum(), rel=1e-9)
    assert profile.groups == ()


def test_a_profile_has_no_text(exported: Exported) -> None:
    config, _ = exported
    written = json.loads((version_folder(config.repository, 1) / PROFILE_FILE).read_text("utf-8"))

    def words(value: object) -> list[str]:
        if isinstance(value, dict):
            return [word for each in value.values() for word in words(each)]
        if isinstance(value, list):
            return [word for each in value for word in words(each)]
        return [value] if isinstance(value, str) else []

    assert words(written) == []
    assert words({"groups": [{"set": "a"}]}) == ["a"]


def test_errors_of_groups_are_counted(exported: Exported, tmp_path: Path) -> None:
    config, _ = exported
    comments, split = comments_of_run(config.checkpoint)
    rows = split.validation[:60]
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "group"])
        for i, row in enumerate(rows):
            group = ("one", "two", "three")[i % 3]
            writer.writerow([comments.texts[row], int(comments.labels[row]), group])
    curated = load_curated([str(tmp_path)])
    scorer, threshold = load_scorer(config.repository), 0.3
    texts = [comments.texts[row] for row in rows]
    labels = comments.labels[rows]
    profile = profile_of(scorer, texts, labels, threshold=threshold, curated=curated)
    decided = probability(scorer.score(texts).logit) >= threshold
    assert [(each.set, each.group) for each in profile.groups] == [
        ("pairs", group) for group in ("one", "two", "three")
    ]
    for i, each in enumerate(profile.groups):
        toxic, flagged = labels[i::3] == 1, decided[i::3]
        assert (each.negatives, each.positives) == ((~toxic).sum(), toxic.sum())
        assert each.false_positives == (flagged & ~toxic).sum()
        assert each.false_negatives == (~flagged & toxic).sum()
    whole = sum(each.false_positives + each.false_negatives for each in profile.groups)
    assert 0 < whole < len(rows)


def test_without_validation_comments_it_says_so(tiny_model: TinyModel) -> None:
    scorer = Scorer(tiny_model.onnx_path, tiny_model.tokenizer)
    profile = profile_of(scorer, [], np.zeros(0), threshold=0.5, curated={})
    assert profile.comments == 0 == sum(profile.score_bins) == sum(profile.token_bins)
    assert profile.flagged == 0


# --- Of a version --------------------------------------------------------------------------------
def _profile(model: TinyModel, comments: list[str]) -> Profile:
    scorer = Scorer(model.onnx_path, model.tokenizer)
    labels = np.arange(len(comments)) % 2
    return profile_of(scorer, comments, labels, threshold=0.5, curated={})


def test_every_change_of_what_serves_keeps_the_file(
    tiny_model: TinyModel, comments: list[str], tmp_path: Path
) -> None:
    profile = _profile(tiny_model, comments)
    for _ in range(2):
        tiny_model.publish(tmp_path, profile=profile)
    tiny_model.publish(tmp_path)
    for version in (1, 2):
        files = verify(tmp_path, version)["files"]
        own = read_profile(version_folder(tmp_path, version), files)
        assert own == dataclasses.replace(profile, version=version)
    assert read_profile(version_folder(tmp_path, 3), verify(tmp_path, 3)["files"]) is None
    assert rollback(tmp_path) == 2
    assert PROFILE_FILE in served_files(tmp_path, 2) and PROFILE_FILE not in served_files(
        tmp_path, 3
    )
    serve_version(tmp_path, 1)
    view.stage(tmp_path, tmp_path / "view")
    staged = tmp_path / "view" / PUBLIC_MODEL / "1" / PROFILE_FILE
    assert staged.read_bytes() == (version_folder(tmp_path, 1) / PROFILE_FILE).read_bytes()
    serve_version(tmp_path, 3)
    view.stage(tmp_path, tmp_path / "view")
    assert not (tmp_path / "view" / PUBLIC_MODEL / "3" / PROFILE_FILE).exists()


def test_an_altered_profile_is_refused(
    tiny_model: TinyModel, comments: list[str], tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path, profile=_profile(tiny_model, comments))
    path = version_folder(tmp_path, 1) / PROFILE_FILE
    written = path.read_text("utf-8")
    path.write_text(written.replace('"flagged": ', '"flagged": 1'), "utf-8")
    with pytest.raises(BadInput, match=f"{PROFILE_FILE} is damaged"):
        verify(tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=f"{PROFILE_FILE} is missing"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("score_bins", [1] * SCORE_BINS, "score_bins has 20 bins of 20 comments"),
        ("token_bins", [7], "token_bins has 1 bins of 7 comments"),
        ("format", 2, "format is 2"),
        ("threshold", 1.5, "threshold"),
        ("words", -1, "words"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_line(
    tiny_model: TinyModel, tmp_path: Path, name: str, value: object, words: str
) -> None:
    document = dataclasses.asdict(_profile(tiny_model, ["you are kind"]))
    (tmp_path / PROFILE_FILE).write_text(json.dumps({**document, name: value}), "utf-8")
    with pytest.raises(BadInput, match=words) as raised:
        read_profile(tmp_path, {PROFILE_FILE: {}})
    assert "\n" not in str(raised.value)


def test_the_artifact_may_list_no_other_file(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path)
    folder = version_folder(tmp_path, 1)
    document = json.loads((folder / ARTIFACT_FILE).read_text("utf-8"))
    document["files"]["more.json"] = document["files"]["tokenizer.json"]
    text = json.dumps(document)
    (folder / ARTIFACT_FILE).write_text(text, "utf-8")
    with pytest.raises(BadInput, match=r"files has more\.json"):
        read_artifact(folder, sha256(text.encode()))
