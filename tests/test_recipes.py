"""Recipes: the file is checked before anything runs, and only what changed is done again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from contract import BadInput
from recipes import keys, recipe
from recipes.__main__ import main as recipes_main
from toxicity.commands import COMMANDS
from train.config import TrainConfig
from train.model import ModelConfig

ROOT = Path(__file__).parent.parent
SETTINGS = {
    **{"data": "synthetic:600", "test-data": "", "word-vectors": ""},
    "repository": "model_repository",
}
_SMALL = "d-model = 16\nn-layers = 1\nn-heads = 2\nepochs = 1\n"
TINY = f"""
about = "two teachers of one student"

[first]
command = "train"
data = "{{data}}"
max-len = 32
{_SMALL}
[second]
command = "train"
data = "{{data}}"
max-len = 32
{_SMALL}
[student]
command = "train"
distill = ["@first", "@second"]
ngram-teacher = 0
test-data = "{{test-data}}"
{_SMALL}
[version]
command = "export"
checkpoint = "@student"
precision = "fp32"
repository = "{{repository}}"
"""


# --- The file ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", recipe.names())
def test_recipes_of_this_repository_are_right(name: str) -> None:
    found = recipe.load(name, SETTINGS)
    seen: set[str] = set()
    for stage in found.stages:
        assert seen.issuperset(stage.needs)
        seen.add(stage.name)
    assert found.about
    assert {stage.command.module for stage in found.stages} >= {"train", "export"}


def test_a_plain_training_is_of_the_served_students_size() -> None:
    """So `make train export serve` ends with the model that the recipes serve."""
    default = TrainConfig()
    for name in ("quick", "best", "vectors"):
        (student,) = (s for s in recipe.load(name, SETTINGS).stages if s.name == "student")
        for flag in ("d-model", "n-layers", "epochs", "lr", "batch-size"):
            assert getattr(default, flag.replace("-", "_")) == float(student.flags[flag]), flag
    assert (default.embeddings, default.max_len) == ("spelling", 256)
    shape = ModelConfig(vocab_size=9)
    assert (shape.d_model, shape.n_layers) == (default.d_model, default.n_layers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = [", "is no TOML"),
        ("", "has no stage"),
        ("epochs = 1\n[a]\ncommand = 'train'", "has epochs outside of a stage"),
        ("[a]\ncommand = 'rm'", "its command is 'rm', expected one of train, export, eval"),
        ("[a]\nepochs = 1", "its command is None"),
        ("[a]\ncommand = 'train'\nepoch = 1", "epoch is no flag .* perhaps epochs"),
        ("[a]\ncommand = 'train'\nout = 'x'", "out is no flag that a recipe may give"),
        ("[a]\ncommand = 'train'\ndata = {x = 1}", "expected text, numbers, or a list"),
        ("[a]\ncommand = 'train'\ndistill = ['@b']", "there is no stage 'b'"),
        ("[a]\ncommand = 'train'\nafter = 'a'", "wait for each other"),
        ("[a]\ncommand = 'train'\ndata = '{date}'", "there is no setting {date}"),
        ("[a]\ncommand = 'train'\nthreads = 0", "threads is 0, expected 1 to"),
        ("['../a']\ncommand = 'train'", "its name is no folder's"),
        ("base = 1\n[a]\ncommand = 'train'", "has base outside of a stage"),
        ("base = 'bset'", "no recipe 'bset', expected one of alone, best"),
        ("base = 'own.toml'", "each is based on the next, expected an end"),
        ("base = 'best'\n[student]\nepoch = 1", "stage student .* epoch is no flag"),
    ],
)
def test_a_wrong_recipe_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(BadInput, match=words) as refused:
        recipe.load(str(file), SETTINGS)
    assert "\n" not in str(refused.value)


def test_a_recipe_may_change_another(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text("base = 'quick'\n[teacher]\nd-model = 192\n", "utf-8")
    own = tmp_path / "own.toml"
    own.write_text("about = 'mine'\nbase = 'wide.toml'\n[student]\naugment = 1\n", "utf-8")

    found, quick = recipe.load(str(own), SETTINGS), recipe.load("quick", SETTINGS)

    assert (found.name, found.about) == ("own", "mine")
    assert recipe.load(str(tmp_path / "wide.toml"), SETTINGS).about == quick.about
    changed = {"teacher": {"d-model": 192}, "student": {"augment": 1}}
    assert {stage.name: stage.flags for stage in found.stages} == {
        stage.name: {**stage.flags, **changed.get(stage.name, {})} for stage in quick.stages
    }
    assert [text.partition("\n")[0] for text in found.texts[:2]] == [
        "about = 'mine'",
        "base = 'quick'",
    ]
    assert found.texts[2:] == quick.texts


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(
        BadInput, match="no recipe 'bset', expected one of alone, best, quick, vectors"
    ):
        recipe.load("bset", SETTINGS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vectors", "vectors starts from word vectors, expected --word-vectors"),
        ("vectors --word-vectors gone.txt", "there is no file gone.txt, expected word vectors"),
        ("best --word-vectors pyproject.toml", "expected none with best, which names no {word-v"),
    ],
)
def test_word_vectors_and_the_recipe_fit_together(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes", *words.split(), "--list"])
    with pytest.raises(BadInput, match=re.escape(message)):
        recipes_main()


def test_values_become_words_and_an_empty_setting_goes() -> None:
    stages = {stage.name: stage for stage in recipe.load("best", SETTINGS).stages}
    made = {name: f"out/{name}" for name in stages}
    words = stages["student"].arguments(SETTINGS, made)
    assert words[:4] == ["--distill", "out/plain", "out/pretrained", "out/phrases"]
    assert "--test-data" not in words
    given = stages["student"].arguments({**SETTINGS, "test-data": "a b.csv"}, made)
    assert given[given.index("--test-data") + 1] == "a b.csv"
    evaluated = stages["evaluation"].arguments(SETTINGS, made)
    assert evaluated[evaluated.index("--data") + 1 :] == ["test", "--misspell", "--checklist"]
    (place,) = (n for n, word in enumerate(stages["card"].arguments(SETTINGS, made)) if "/" in word)
    assert stages["card"].arguments(SETTINGS, made)[place] == "out/evaluation/evaluation.json"


@pytest.mark.parametrize("argv", [["--recipe", "best", "--list"], ["--list", "--recipe=best"]])
def test_train_with_a_recipe_is_the_recipe_command(argv: Sequence[str]) -> None:
    train = COMMANDS["From comments to a model"]["train"]
    chosen, words = train.chosen(argv)
    assert chosen.module == "recipes.__main__"
    assert sorted(words) == ["--list", "best"]
    assert train.chosen(["--data", "x.csv"]) == (train, ["--data", "x.csv"])


# --- What a result depends on ----------------------------------------------------------------
def test_a_key_changes_with_what_decides_the_result(tmp_path: Path) -> None:
    (stage, *_) = recipe.load("quick", SETTINGS).stages
    data = tmp_path / "data.csv"
    data.write_text("text,label\n", "utf-8")
    key = keys.key_of(stage, ["--data", str(data)], {})
    assert key == keys.key_of(stage, ["--data", str(data)], {})
    assert key != keys.key_of(stage, ["--data", str(data), "--epochs", "3"], {})
    data.write_text("text,label\nhello,0\n", "utf-8")
    assert key != keys.key_of(stage, ["--data", str(data)], {})


@pytest.mark.parametrize(
    ("file", "decides"),
    [("a.py", True), ("table.json", True), ("src/letters.inc", True), ("lib/build.json", False)],
)
def test_tables_and_sources_beside_the_code_decide(
    file: str, decides: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look-alikes decide a vocabulary, and the core what a text is; what is built is no source."""
    monkeypatch.setattr(keys, "_ROOT", tmp_path)
    path = tmp_path / "package" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    digests = []
    for number in ("1", "2"):
        path.write_text(f"x = {number}", "utf-8")
        digests.append(keys._code.__wrapped__("package"))
    assert (digests[0] != digests[1]) == decides


def test_comments_and_docstrings_decide_nothing(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    digests = []
    for text in ('"""One."""\nx = 1\n', '"""Two."""\n\nx = 1  # more\n', '"""Two."""\nx = 2\n'):
        file.write_text(text, "utf-8")
        digests.append(keys._without_words(file))
    assert digests[0] == digests[1] != digests[2]


# --- Running -------------------------------------------------------------------------------
def command(folder: Path, *more: str) -> list[str]:
    paths = ["--out", str(folder / "out"), "--repository", str(folder / "repository")]
    own = [str(folder / "tiny.toml"), "--data", "synthetic:600", *paths, *more]
    return [sys.executable, "-m", "recipes", *own]


def ran(folder: Path, *more: str) -> str:
    done = subprocess.run(
        command(folder, *more), cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_only_what_changed_is_done_again_and_a_stopped_recipe_goes_on(tmp_path: Path) -> None:
    file, out = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(TINY, "utf-8")

    # Stopped while the teachers train.
    with subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout
        for line in one.stdout:
            if "begins" in line:
                break
        time.sleep(1.0)
        one.send_signal(signal.SIGINT)
        one.stdout.read()
    assert one.returncode == 130

    first = ran(tmp_path)
    assert "published " in first
    made = json.loads((out / "recipe.json").read_text("utf-8"))["stages"]
    assert list(made) == ["first", "second", "student", "version"]
    # The same flags, side by side or not: the same weights.
    assert made["first"]["digest"] == made["second"]["digest"]

    again = ran(tmp_path)
    assert again.count("unchanged") == 4

    # A flag of the student, and a result that is gone: that is made again, to the same bytes.
    (out / "second/model.safetensors").unlink()
    file.write_text(TINY.replace("ngram-teacher = 0", "ngram-teacher = 0\nlr = 1e-3"), "utf-8")
    changed = ran(tmp_path)
    assert changed.count("unchanged") == 1
    now = json.loads((out / "recipe.json").read_text("utf-8"))["stages"]
    assert now["first"] == made["first"]
    assert now["second"]["digest"] == made["second"]["digest"]
    assert now["student"]["digest"] != made["student"]["digest"]
    assert now["version"]["digest"] != made["version"]["digest"]


@pytest.mark.slow
def test_a_failing_stage_is_named_with_its_status(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY, "utf-8")
    bad = command(tmp_path)
    bad[bad.index("synthetic:600")] = str(tmp_path / "nowhere.csv")
    done = subprocess.run(bad, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: stage ")
    assert "nowhere.csv" in line
    assert "Traceback" not in done.stdout + done.stderr
