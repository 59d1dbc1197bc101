"""Identity terms that stand mostly in toxic comments: weighed, inserted, and then harmless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from console.options import make_config
from contract import CLS_ID, BadInput
from train.artifacts import load_checkpoint
from train.config import TrainConfig
from train.data.batches import TokenizedOnTheFly, collate
from train.data.tokenizer import build_tokenizer
from train.loop import train
from train.methods import debias, qat
from train.validation import logits_of

pytestmark = pytest.mark.slow

TEXTS = ["you gay idiot"] * 8 + ["the gay bar"] * 2 + ["an idiot"] * 2 + ["a fine edit"] * 28
LABELS = np.array([1] * 8 + [0] * 2 + [1] * 2 + [0] * 28, np.float32)
ROWS = np.arange(len(TEXTS))


def comments_and_terms(
    texts: list[str] = TEXTS,
) -> tuple[TokenizedOnTheFly, debias.IdentityStatistics]:
    tokenizer = build_tokenizer(texts, max_vocab=50, max_len=8)
    comments = TokenizedOnTheFly(texts, tokenizer)
    ids = debias.term_ids(tokenizer.vocabulary)
    return comments, debias.statistics(comments, ROWS, LABELS, ids)


def test_weighed_comments_with_a_term_are_as_toxic_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debias, "_PRIOR_COMMENTS", 0.0)
    comments, terms = comments_and_terms()
    weights = debias.balancing_weights(comments, ROWS, LABELS, terms, 1.0)
    assert np.average(LABELS[:10]) == pytest.approx(0.8)
    assert np.average(LABELS[:10], weights=weights[:10]) == pytest.approx(LABELS.mean())
    assert (weights[10:] == 1).all()
    assert (debias.balancing_weights(comments, ROWS, LABELS, terms, 0.0) == 1).all()


def test_a_term_that_is_no_more_toxic_than_others_changes_nothing() -> None:
    texts = [text.replace("fine", "canadian") for text in TEXTS]
    comments, terms = comments_and_terms(texts)
    assert len(terms.ids) == 2
    weights = debias.balancing_weights(comments, ROWS, LABELS, terms, 1.0)
    assert (weights[12:] == 1).all()
    assert np.count_nonzero(terms.surplus) == 1


def test_a_term_replaces_one_word_of_harmless_comments_alone() -> None:
    comments, terms = comments_and_terms()
    before = collate(ROWS, [comments[row] for row in ROWS])
    labels = torch.from_numpy(LABELS)
    torch.manual_seed(0)
    after = debias.with_terms_inserted(before, labels, terms, 1.0)
    changed = after.input_ids != before.input_ids
    assert changed.sum(dim=1)[labels == 1].eq(0).all()
    assert changed.sum(dim=1)[12:].eq(1).all()
    assert set(after.input_ids[changed].tolist()) == set(terms.ids.tolist())
    assert after.input_ids[:, 0].eq(CLS_ID).all()
    assert not (changed & (before.attention_mask == 0)).any()
    assert debias.with_terms_inserted(before, labels, terms, 0.0) is before
    some = debias.with_terms_inserted(before, labels, terms, 0.5).input_ids != before.input_ids
    assert 0 < some.any(dim=1).sum() < 28


def test_a_comment_without_a_word_has_none_to_replace() -> None:
    _, terms = comments_and_terms()
    batch = collate(np.arange(2), [[CLS_ID], [CLS_ID]])
    after = debias.with_terms_inserted(batch, torch.zeros(2), terms, 1.0)
    assert torch.equal(after.input_ids, batch.input_ids)


def test_the_summary_names_terms_or_says_that_there_are_none() -> None:
    comments, terms = comments_and_terms()
    vocabulary = build_tokenizer(TEXTS, max_vocab=50, max_len=8).vocabulary
    assert "gay 71%" in debias.summary(terms, vocabulary)
    none = debias.statistics(comments, ROWS, LABELS, np.array([], np.int64))
    assert debias.summary(none, vocabulary).startswith("no identity term")
    assert (debias.balancing_weights(comments, ROWS, LABELS, none, 1.0) == 1).all()
    batch = collate(ROWS, [comments[row] for row in ROWS])
    assert debias.with_terms_inserted(batch, torch.from_numpy(LABELS), none, 1.0) is batch


def test_a_term_loses_its_pull_in_training(tmp_path: Path) -> None:
    """How much higher "gay" makes a harmless comment's logit, without the options and with them."""
    rng, lines = np.random.default_rng(0), ["comment_text,toxic"]
    for i in range(2000):
        words = rng.choice(["edit", "page", "article", "source", "talk", "link"], 4)
        insulting, mentioned = i % 4 == 0, rng.random() < (0.6 if i % 4 == 0 else 0.05)
        words = [*words, *(["idiot"] if insulting and rng.random() < 0.7 else [])]
        words += ["gay"] if mentioned else ["some"]
        lines.append(f"{' '.join(rng.permutation(words))} {i},{int(insulting)}")
    file = tmp_path / "comments.csv"
    file.write_text("\n".join(lines) + "\n")

    def pull(**options: float) -> float:
        out = tmp_path / "-".join(["run", *options])
        settings = {
            **{"data": str(file), "out": out, "max_vocab": 40, "max_len": 16, "d_model": 16},
            **{"n_layers": 1, "n_heads": 2, "epochs": 4, "lr": 5e-3, "batch_size": 32},
            **{"device": "cpu", **options},
        }
        train(make_config(TrainConfig, settings), torch.device("cpu"))
        trained = load_checkpoint(out)
        pairs = [f"edit some page {word} link" for word in ("talk", "gay")]
        ids = TokenizedOnTheFly(pairs, trained.tokenizer)
        without, with_term = logits_of(trained.model, ids, np.arange(2))
        return float(with_term - without)

    plain = pull()
    assert plain > 1.0
    assert pull(identity_balance=1.0) < plain / 2
    assert pull(identity_insertion=0.2) < plain * 0.8
    assert pull(identity_balance=1.0, identity_insertion=0.2) < plain / 2
    fine_tuning = qat.defaults_of(tmp_path / "run-identity_balance-identity_insertion")
    assert (fine_tuning["identity_balance"], fine_tuning["identity_insertion"]) == (1.0, 0.2)


def test_a_student_leaves_the_weights_to_its_teacher() -> None:
    with pytest.raises(BadInput, match=r"--identity-balance is .*, expected 0"):
        make_config(TrainConfig, {"distill": ("runs/teacher",), "identity_balance": 1.0})
