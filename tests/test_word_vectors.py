"""Word vectors of other texts: what is read of them, and where token embeddings then start."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from contract import BadInput
from train.methods.embeddings import ROOT_MEAN_SQUARE, alike_words
from train.methods.word_vectors import beside, read_word_vectors

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "liar", "hypocrite", "the", "liars", "the liar", "zq")
LINES = ["liar 1 0 0.5", "hypocrite 0.9 0.1 0.5", "the 0 1 -1e-1", "elsewhere 5 5 5"]


def written(folder: Path, lines: list[str], name: str = "vectors.txt") -> Path:
    path = folder / name
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz"])
@pytest.mark.parametrize("header", [[], ["4 3"]])
def test_each_form_gives_the_same_vectors(tmp_path: Path, name: str, header: list[str]) -> None:
    vectors, known = read_word_vectors(written(tmp_path, header + LINES, name), VOCABULARY)
    assert known.tolist() == [False] * 3 + [True] * 3 + [False, True, False]
    np.testing.assert_allclose(vectors[3:6], [[1, 0, 0.5], [0.9, 0.1, 0.5], [0, 1, -0.1]])
    np.testing.assert_allclose(vectors[7], [0.5, 0.5, 0.2], atol=1e-7)  # of both its words
    assert not vectors[~known].any()


def test_a_line_of_another_length_and_a_second_one_of_a_word_are_passed_over(
    tmp_path: Path,
) -> None:
    """As files of GloVe have them, whose words may hold a space."""
    lines = ["liar 1 0 0.5", "the . 4 4 4", "the 0 1 nan", "the 0 1 -0.1", "liar 7 7 7"]
    vectors, known = read_word_vectors(written(tmp_path, lines), VOCABULARY)
    np.testing.assert_allclose(vectors[[3, 5]], [[1, 0, 0.5], [0, 1, -0.1]])
    assert known.sum() == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"liar\n", "line 1 has 0 numbers, expected lines of a word and its numbers"),
        (b"4 3\nliar 1\n", "line 2 has 1 numbers"),
        (b"elsewhere 1 2 3\n", "has a vector for none of the 9 tokens"),
        (b"", "has a vector for none of the 9 tokens"),
        (b"\xff\xfe\x00binary", "cannot be read as text"),
        (gzip.compress(b"liar 1 2 3\n" * 999)[:-9], "cannot be read as text"),
        (None, "cannot be read as text.*No such file"),
    ],
)
def test_what_is_no_file_of_vectors_is_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        read_word_vectors(path, VOCABULARY)
    assert "\n" not in str(error.value)


def test_words_near_each_other_elsewhere_start_near_each_other(tmp_path: Path) -> None:
    """Which the comments alone do not say; and what they do say is not lost."""
    rng = np.random.default_rng(0)
    start = np.zeros((len(VOCABULARY), 8), np.float32)
    start[3:8] = rng.normal(size=(5, 8))
    start[5] = start[3] + 0.1 * rng.normal(size=8)  # by the comments "the" is near "liar"
    vectors, known = read_word_vectors(written(tmp_path, LINES), VOCABULARY)
    mixed, has = beside(start, vectors, known, alike_words(VOCABULARY), seed=0)
    assert mixed.dtype == np.float32 and mixed.shape == start.shape
    assert has.tolist() == [False] * 3 + [True] * 5 + [False]
    np.testing.assert_allclose(
        np.linalg.norm(mixed[has], axis=1), ROOT_MEAN_SQUARE * np.sqrt(8), rtol=1e-5
    )
    assert not mixed[~has].any()

    def alike(table: np.ndarray, one: int, other: int) -> float:
        a, b = table[one], table[other]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    assert alike(mixed, 3, 4) > alike(start, 3, 4) + 0.3
    elsewhere = vectors - vectors[known].mean(axis=0)
    assert alike(elsewhere, 3, 5) + 0.3 < alike(mixed, 3, 5) < alike(start, 3, 5)
    assert alike(mixed, 3, 6) > alike(start, 3, 6) + 0.1  # "liars" has that of "liar"
    again, _ = beside(start, vectors, known, alike_words(VOCABULARY), seed=0)
    assert np.array_equal(again, mixed)


def test_a_vocabulary_smaller_than_the_width_is_filled_up(tmp_path: Path) -> None:
    vectors, known = read_word_vectors(written(tmp_path, LINES), VOCABULARY)
    mixed, _ = beside(
        np.zeros((9, 32), np.float32), vectors, known, alike_words(VOCABULARY), seed=0
    )
    assert mixed.shape == (9, 32) and np.isfinite(mixed).all() and mixed[3].any()
