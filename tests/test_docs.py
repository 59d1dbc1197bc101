"""The pages: links and commands in them exist, their tables are what the result files say."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report import figures, page_tables, sitting
from contract import BadInput

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(
            ROOT / folder / "README.md"
            for folder in ("deploy", "model_repository", "bench/results")
        ),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", text)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as forges and the site make them."""
    heads = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def broken_links(text: str, page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name
        there = not name or file.is_file()
        if there and anchor:
            there = anchor in anchors(file.read_text("utf-8") if name else text)
        if not there:
            broken.append(target)
    return broken


def commands(text: str) -> list[str]:
    """Command lines of the fenced blocks, without the prompt."""
    lines = []
    for kind, block in _FENCED.findall(text):
        if kind in ("bash", "console"):
            lines += [line.removeprefix("$ ") for line in block.splitlines()]
    return lines


def unknown_commands(text: str) -> list[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    unknown = []
    for line in commands(text):
        if found := re.match(r"make ([a-z -]*)", line):
            unknown += [name for name in found[1].split() if name not in targets]
        for module in re.findall(r"python -m ([\w.]+)", line):
            if importlib.util.find_spec(module) is None:
                unknown.append(module)
    return unknown


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_exist(name: str) -> None:
    page = ROOT / name
    assert not broken_links(page.read_text("utf-8"), page)


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    assert not unknown_commands((ROOT / name).read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_variables_of_make_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in re.findall(r"\bmake [a-z][^`\n]*", (ROOT / name).read_text("utf-8")):
        for variable in re.findall(r"(?<![\w\"])([A-Z][A-Z_]+)=", line):
            assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), line


def test_what_is_missing_is_found() -> None:
    text = "# One\n[a](no.md) [b](README.md#no) [c](#one)\n```console\n$ make trian\n```\n"
    assert broken_links(text, ROOT / "page.md") == ["no.md", "README.md#no"]
    assert unknown_commands(text) == ["trian"]
    assert unknown_commands("```bash\npython -m bench.no_such\n```\n") == ["bench.no_such"]


def test_commands_of_toxicity_exist() -> None:
    if importlib.util.find_spec("toxicity") is None:
        pytest.skip("no package toxicity in this checkout")
    known = subprocess.run(
        [sys.executable, "-m", "toxicity", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for page in PAGES:
        for command in re.findall(r"`toxicity ([a-z]+)[` ]", page.read_text("utf-8")):
            assert re.search(rf"\b{command}\b", known), f"{page}: {command}"


def test_what_the_architecture_page_says_to_search_is_found() -> None:
    found = re.findall(r"`(grep [^`]+)`", (ROOT / "docs/architecture.md").read_text("utf-8"))
    assert len(found) >= 8
    for line in found:
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout and done.returncode == 0, line


def test_every_page_is_in_the_navigation_and_the_index() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    index = (ROOT / "docs/index.md").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert re.search(rf"- {re.escape(page.name)}$", navigation, re.MULTILINE), page.name
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed; `make docs` does it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "files/core/src/tokenizer.h.txt").is_file()


# --- Tables --------------------------------------------------------------------------------
@pytest.mark.parametrize("page", figures.pages(), ids=lambda page: page.name)
def test_tables_are_what_the_result_files_say(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text == figures.rewritten(text, page), "run `make figures`"


def test_a_figure_typed_by_hand_is_found() -> None:
    page = ROOT / "docs/load.md"
    text = page.read_text("utf-8")
    typed = re.sub(r"(?<=-->\n\n)\| server \|(.*\n.*\n.*)\d", r"| server |\g<1>x", text, count=1)
    assert typed != text
    assert figures.rewritten(typed, page) == text


def test_a_table_of_no_result_file_is_refused() -> None:
    text = "<!-- figures: guesses -->\n<!-- /figures -->\n"
    with pytest.raises(BadInput, match="'guesses', expected one of"):
        figures.rewritten(text, ROOT / "docs/load.md")


def test_every_table_stands_on_a_page() -> None:
    """But for targets, which may be left to the result file."""
    text = "".join(page.read_text("utf-8") for page in figures.pages())
    for name in figures.blocks_of(ROOT):
        assert name.endswith("-targets") or f"<!-- figures: {name} -->" in text, name


def test_every_result_file_is_listed() -> None:
    listed = {source.path for source in figures.SOURCES}
    results = ROOT / "bench/results"
    assert {str(path.relative_to(results)) for path in results.rglob("*.json")} == listed


def test_what_a_document_lacks_is_said() -> None:
    artifact = {"onnx_sha256": "0123456789abcdef", "precision": "int8"}
    hardware = {"cpu": "AMD EPYC", "cores": 2, "isa": ["avx2"], "memory_gib": 24}
    tokens = {"mean": 84.4, "median": 44.0, "p99": 782.1, "mean_cut_at_256": 70.0}
    line = figures.provenance(
        {
            "hardware": hardware,
            "comments": {"name": "some.csv", "tokens": tokens},
            "artifact": artifact,
        }
    )
    assert line == (
        "Artifact `0123456789ab`; INT8; AMD EPYC, 2 cores (avx2), 24 GiB; "
        "some.csv, mean 84 tokens, median 44, p99 782, mean 70 once cut; not stated: versions."
    )


def test_a_missed_target_is_told() -> None:
    bars = {"gain": {"value": 1.25, "bar": 4, "holds": False, "wanted": "at least"}}
    assert page_tables.targets({"bars": bars})[1] == ["`gain`", "1.25", "at least 4", "**no**"]


def test_a_sitting_keeps_the_road_that_plans_are_made_of() -> None:
    step = next(one for one in sitting.STEPS if one.name == "road")
    document = json.loads((ROOT / "bench/results/road/road.json").read_text("utf-8"))
    assert sitting.kept_as(step, document) == "road/road.json"
    for visit in document["servers"]["door"]:
        for run in visit["open"]:
            run["check"]["invalid"] = ["the generator was late"]
    isa = document["hardware"]["isa"][-1]
    assert sitting.kept_as(step, document) == f"road/{isa}.json"
    other = next(one for one in sitting.STEPS if one.name == "peers")
    assert sitting.kept_as(other, document) == "peers/peers.json"


def test_a_sitting_that_would_skip_a_peer_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table without it would take the place of one with it, hours later."""
    there = {"uvicorn", "fastapi", "tokenizers"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there)
    with pytest.raises(BadInput, match="peers compares with litserve, expected it to be install"):
        sitting.chosen(sitting.Sitting())
    chosen = sitting.chosen(sitting.Sitting(steps=("app", "tokenizer")))
    assert [step.name for step in chosen] == ["app", "tokenizer"]
    with pytest.raises(BadInput, match="there is no step 'pears'"):
        sitting.chosen(sitting.Sitting(steps=("pears",)))


def test_steps_of_a_sitting_have_modules_documents_and_flags() -> None:
    names = "repository checkpoint traced comments tuned run_dir"
    words = {name: f"some-{name}" for name in names.split()}
    sources = {source.path for source in figures.SOURCES}
    chosen = sitting.Sitting(vocabulary="words.csv", quality_data=("test", "more.csv"))
    for step in sitting.STEPS:
        module = importlib.import_module(step.module)
        assert step.document in sources
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{step.module}.config")
        configs = [
            found
            for found in vars(module).values()
            if dataclasses.is_dataclass(found) and found.__module__ == module.__name__
        ]
        flags = {field.name for config in configs for field in dataclasses.fields(config)}
        given = sitting.arguments(step, words, chosen)
        assert "{" not in "".join(given)
        assert "--curated" not in given  # none were given
        for argument in given:
            if argument.startswith("--"):
                assert argument.partition("=")[0][2:].replace("-", "_") in flags, step.module
        assert words["tuned"] not in sitting.shown(step, words, chosen)


@pytest.mark.parametrize("missed", ["", "raise SystemExit('a target was missed')"])
def test_a_step_gives_its_document(
    missed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import sys\nfrom pathlib import Path\n"
        "out = Path(sys.argv[-1].removeprefix('--out='))\nout.mkdir()\n"
        "(out / 'length.json').write_text('{\"bench\": \"written\"}')\n"
    )
    (tmp_path / "bench_of_nothing.py").write_text(source + missed, "utf-8")
    monkeypatch.chdir(tmp_path)
    step = sitting.Step("bench_of_nothing", (), "length/length.json")
    assert sitting._run(step, [], tmp_path / "out") == {"bench": "written"}


def test_a_step_without_a_document_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench_of_nothing.py").write_text("raise SystemExit(3)", "utf-8")
    monkeypatch.chdir(tmp_path)
    step = sitting.Step("bench_of_nothing", (), "length/length.json")
    with pytest.raises(BadInput, match="ended with status 3 and without a document"):
        sitting._run(step, [], tmp_path / "out")


def test_a_page_that_differs_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- figures: peers -->\n| 1 |\n<!-- /figures -->\n", "utf-8")
    monkeypatch.setattr(figures, "pages", lambda: [page])
    monkeypatch.setattr(sys, "argv", ["figures", "--check"])
    with pytest.raises(BadInput, match=r"run `make figures`"):
        figures.main()
    assert "| 1 |" in page.read_text("utf-8")
    monkeypatch.setattr(sys, "argv", ["figures"])
    figures.main()
    assert "requests/s" in page.read_text("utf-8")
    assert "1 pages rewritten" in capsys.readouterr().out
