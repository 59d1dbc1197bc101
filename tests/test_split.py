"""The split: every row once, no text in two parts, both classes in proportion, always the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from contract import BadInput
from train.data.split import Split, overlap, split_comments
from train.data.synthetic import generate

FRACTIONS = [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33), (0.1, 0.2, 0.7)]


def parts(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return split.train, split.validation, split.test


def straddling(texts: list[str], rows_of_parts: tuple[np.ndarray, ...]) -> set[str]:
    """Texts that are in more than one part."""
    seen = [{texts[row] for row in rows} for rows in rows_of_parts]
    return {text for i, part in enumerate(seen) for other in seen[:i] for text in part & other}


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str], np.ndarray]:
    """Texts of both classes with many copies, some under the other label, in random order."""
    n = draw(st.integers(40, 120))
    copies = draw(st.lists(st.integers(0, n - 1), max_size=60))
    flipped = draw(st.lists(st.booleans(), min_size=len(copies), max_size=len(copies)))
    suffix = draw(st.sampled_from(["", "\0", "\0\0", " ", "é"]))
    toxic = [i % draw(st.integers(2, 3)) == 0 for i in range(n)]
    rows = [(f"{i}{suffix if i % 2 else ''}", toxic[i]) for i in range(n)]
    rows += [(rows[i][0], toxic[i] ^ flip) for i, flip in zip(copies, flipped, strict=True)]
    rows = draw(st.permutations(rows))
    return [text for text, _ in rows], np.array([label for _, label in rows], np.float32)


@settings(max_examples=50)
@given(data=labelled(), fractions=st.sampled_from(FRACTIONS), seed=st.integers(0, 1000))
def test_every_row_once_and_no_text_in_two_parts(
    data: tuple[list[str], np.ndarray], fractions: tuple[float, float, float], seed: int
) -> None:
    texts, labels = data
    split = split_comments(texts, labels, fractions=fractions, seed=seed)
    assert sorted(np.concatenate(parts(split)).tolist()) == list(range(len(texts)))
    assert straddling(texts, parts(split)) == set()
    for rows in parts(split):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert set(labels[rows]) == {0.0, 1.0}
    again = split_comments(texts, labels, fractions=fractions, seed=seed)
    assert again.fingerprint == split.fingerprint
    for rows, rows_again in zip(parts(split), parts(again), strict=True):
        np.testing.assert_array_equal(rows, rows_again)


def test_a_split_by_rows_would_be_caught() -> None:
    """The check above goes red on the plain random split that it guards against."""
    texts = [f"text {i % 150}" for i in range(300)]
    order = np.random.default_rng(0).permutation(300)
    assert straddling(texts, (order[:240], order[240:270], order[270:]))
    labels = np.float32([i % 3 == 0 for i in range(300)])
    assert not straddling(texts, parts(split_comments(texts, labels)))


@settings(max_examples=50)
@given(
    negative=st.integers(40, 400),
    positive=st.integers(40, 400),
    fractions=st.sampled_from(FRACTIONS),
    seed=st.integers(0, 1000),
)
def test_each_part_has_its_share_of_each_class(
    negative: int, positive: int, fractions: tuple[float, float, float], seed: int
) -> None:
    labels = np.repeat(np.float32([0, 1]), [negative, positive])
    split = split_comments(
        [str(i) for i in range(len(labels))], labels, fractions=fractions, seed=seed
    )
    for rows, fraction in zip(parts(split), fractions, strict=True):
        for label, total in enumerate((negative, positive)):
            # Two roundings, one for each cut; both go to whole comments.
            assert abs((labels[rows] == label).sum() - fraction * total) <= 2


@settings(max_examples=50)
@given(copies=st.integers(1, 5), seed=st.integers(0, 1000))
def test_copies_count_as_one_text(copies: int, seed: int) -> None:
    """With every text there equally often, a class misses its share by two texts at most."""
    texts = [f"text {i // copies}" for i in range(200 * copies)]
    labels = np.float32([i // copies % 4 == 0 for i in range(200 * copies)])
    split = split_comments(texts, labels, seed=seed)
    for rows, fraction in zip(parts(split), split.fractions, strict=True):
        assert len(rows) % copies == 0
        assert abs(labels[rows].sum() - fraction * 50 * copies) <= 2 * copies


def test_the_default_data_splits_80_10_10() -> None:
    texts, shares = generate(4000)
    labels = (shares >= 0.5).astype(np.float32)
    split = split_comments(texts, labels)
    assert straddling(texts, parts(split)) == set()
    for rows, fraction in zip(parts(split), (0.8, 0.1, 0.1), strict=True):
        assert len(rows) / 4000 == pytest.approx(fraction, abs=0.01)
        assert labels[rows].mean() == pytest.approx(labels.mean(), abs=0.01)
    assert split.to_json() == {
        "fingerprint": split.fingerprint,
        "seed": 0,
        "fractions": (0.8, 0.1, 0.1),
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
    }


def test_the_fingerprint_changes_with_the_data_and_the_split() -> None:
    texts = [f"text {i}" for i in range(200)]
    labels = np.float32([i % 4 == 0 for i in range(200)])
    swapped = [texts[1], texts[0], *texts[2:]]
    fingerprints = [
        split_comments(texts, labels).fingerprint,
        split_comments(texts, labels, seed=1).fingerprint,
        split_comments(texts, labels, fractions=(0.7, 0.2, 0.1)).fingerprint,
        split_comments(["text 0!", *texts[1:]], labels).fingerprint,
        split_comments(texts[:-1], labels[:-1]).fingerprint,
        split_comments(swapped, labels).fingerprint,
        split_comments(texts, np.roll(labels, 1)).fingerprint,
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(f) == 64 for f in fingerprints)


@pytest.mark.parametrize(
    "fractions",
    [
        (0.8, 0.1, 0.2),
        (0.9, 0.1, 0.0),
        (1.0, 0.1, -0.1),
        (float("nan"), 0.1, 0.1),
        (0.8, float("nan"), 0.2),
        (float("inf"), 0.1, 0.1),
    ],
)
def test_fractions_that_cannot_be(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(BadInput) as caught:
        split_comments(["a", "b"] * 50, np.float32([0, 1] * 50), fractions=fractions)
    assert str(caught.value) == (
        f"--fractions is {list(fractions)}, expected three positive numbers that sum to 1; "
        "0.8 0.1 0.1 is the default"
    )


@given(positive=st.integers(0, 2), negative=st.integers(0, 50))
def test_too_few_of_a_class(positive: int, negative: int) -> None:
    """Three parts need three different toxic comments at least."""
    assume(positive + negative > 0)
    labels = np.repeat(np.float32([0, 1]), [negative, positive])
    with pytest.raises(BadInput) as caught:
        split_comments([str(i) for i in range(len(labels))], labels)
    assert str(caught.value).endswith("give more comments")
    assert str(positive) in str(caught.value)


def test_copies_do_not_make_up_for_few_texts() -> None:
    texts = ["a", "b"] * 500
    with pytest.raises(BadInput) as caught:
        split_comments(texts, np.float32([0, 1] * 500))
    assert str(caught.value) == (
        "2 different comments, 1 of them toxic, are too few for a stratified split into "
        "[0.8, 0.1, 0.1]; give more comments"
    )


def test_comments_that_stand_elsewhere_too_are_counted() -> None:
    known = ["You are kind!", "the same", "I love 🙂", "???", "naïve"]
    texts = ["the same", "you  are, KIND", "THE SAME.", "i love 🙁", "I love 🙂 !", "!!!", "? ??"]
    found = overlap(texts, known)
    assert (found.comments, found.same, found.alike) == (7, 1, 4)
    assert found.words() == "1 of 7 comments, and 4 but for case, punctuation and spaces"
    assert overlap(["new"], known).words() == "0 of 1 comments"
