"""The architecture is the layout: imports point one way and never in a circle, parts stay small.

And `make help` is true.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import contract

ROOT = Path(__file__).parent.parent
STAGES = (
    "contract storage console core train export serve quality monitor migrate fleet bench "
    "recipes experiments toxicity"
).split()
"""Each may import itself and what stands before it."""
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_COMPLEXITY = 400, 60, 15
STILL_LONG: dict[str, int] = {}
"""Files and functions that are above the bound, with as many lines as they may have until then.

An entry goes as soon as what it names is within the bound; none is added.
"""
STILL_CYCLES: set[tuple[str, ...]] = set()
"""Modules that import each other, in order; the same holds for these."""


def sources() -> list[Path]:
    """Every module of the product."""
    return [
        ROOT / "contract.py",
        *(f for s in STAGES[1:] for f in sorted((ROOT / s).rglob("*.py"))),
    ]


def imports_of(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def back_edges(stage: str, source: str) -> set[str]:
    later = STAGES[STAGES.index(stage) + 1 :]
    return imports_of(source) & set(later)


@pytest.mark.parametrize("stage", STAGES)
def test_imports_point_one_way(stage: str) -> None:
    files = [ROOT / "contract.py"] if stage == "contract" else list((ROOT / stage).rglob("*.py"))
    assert files
    for file in files:
        assert not back_edges(stage, file.read_text("utf-8")), file


def test_a_back_edge_is_found() -> None:
    assert back_edges("train", "def f():\n    from export.graph.trace import trace\n") == {"export"}
    assert back_edges("core", "import train.data.tokenizer\nimport contract\n") == {"train"}


# --- Cycles ------------------------------------------------------------------------------
def modules(root: Path, files: list[Path]) -> dict[str, Path]:
    """Files by the name that an import gives them."""
    parts = {file: file.relative_to(root).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """What each of these modules imports of them, at whatever depth: by name -> source."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = found & sources.keys() - {name}
    return graph


def cycles_of(graph: Mapping[str, set[str]]) -> set[tuple[str, ...]]:
    """Modules that reach each other, sorted: the graph's strongly connected parts."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        new = [start]
        while new:
            for name in graph[new.pop()] - seen:
                seen.add(name)
                new.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    circular = (name for name in graph if name in reach[name])
    return {tuple(sorted(n for n in reach[name] if name in reach[n])) for name in circular}


def test_no_modules_import_each_other() -> None:
    files = modules(ROOT, sources())
    graph = import_graph({name: file.read_text("utf-8") for name, file in files.items()})
    assert graph["export.graph.trace"] >= {"contract", "storage.files"}
    assert cycles_of(graph) == STILL_CYCLES


def test_a_cycle_is_found() -> None:
    texts = {"a": "import b", "b": "def f():\n    from c.d import x", "c.d": "from a import y"}
    graph = import_graph({**texts, "c": "", "e": "from a import b"})
    assert cycles_of(graph) == {("a", "b", "c.d")}
    assert cycles_of(import_graph({**texts, "c.d": "import os"} | {"c": ""})) == set()
    under = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a"
    assert cycles_of(import_graph({"a": "import b", "b": under})) == {("a", "b")}


# --- Size --------------------------------------------------------------------------------
def sizes(name: str, source: str) -> Iterator[tuple[str, int, int]]:
    """The file and each of its functions: name, lines, and the most that it may have."""
    yield name, len(source.splitlines()), MOST_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            lines = node.end_lineno - node.lineno + 1
            yield f"{name}:{node.name}", lines, MOST_FUNCTION_LINES


def too_long(found: Iterator[tuple[str, int, int]]) -> dict[str, int]:
    return {name: lines for name, lines, most in found if lines > most}


def test_files_and_functions_are_short() -> None:
    long: dict[str, int] = {}
    for file in sources():
        long |= too_long(sizes(file.relative_to(ROOT).as_posix(), file.read_text("utf-8")))
    new = {name: lines for name, lines in long.items() if lines > STILL_LONG.get(name, 0)}
    assert not new, "above the bound: split them"
    assert not STILL_LONG.keys() - long.keys(), "within the bound: remove their entries"


def test_a_long_function_is_found() -> None:
    body = "    x = 1\n" * MOST_FUNCTION_LINES
    long = f"class A:\n  def f(self):\n{body}"
    assert too_long(sizes("a.py", long)) == {"a.py:f": MOST_FUNCTION_LINES + 1}
    assert not too_long(sizes("a.py", long.replace("    x = 1\n", "", 1)))
    assert too_long(sizes("a.py", "x = 1\n" * 401)) == {"a.py": 401}


def test_functions_are_simple() -> None:
    """`ruff check` bounds them, all but the files that pyproject.toml still excuses."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "C901" in lint["select"] and lint["mccabe"]["max-complexity"] == MOST_COMPLEXITY
    excused = {name for name, rules in lint.get("per-file-ignores", {}).items() if "C901" in rules}
    bound = f"lint.mccabe.max-complexity={MOST_COMPLEXITY}"
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901"]
    command += ["--config", bound, "--output-format", "concise", "--no-cache"]
    files = [file.relative_to(ROOT).as_posix() for file in sources()]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    found = {line.partition(":")[0] for line in done.stdout.splitlines() if " C901 " in line}
    assert done.returncode == bool(found), done.stderr
    assert found == excused, "too complex, or excused without need"


# --- Names -------------------------------------------------------------------------------
SAME_NAMES: dict[str, int] = {}
"""Names that several classes have, and how many: none is added."""


def names_of_several(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Names that more than one class has, each with its modules: by module -> source."""
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)
    return {name: where for name, where in found.items() if len(where) > 1}


def test_no_two_classes_have_one_name() -> None:
    files = modules(ROOT, sources())
    assert "toxicity.doctor" in files
    found = names_of_several({name: file.read_text("utf-8") for name, file in files.items()})
    assert {name: len(where) for name, where in found.items()} == SAME_NAMES, found


def test_a_name_of_two_classes_is_found() -> None:
    inner = "def f():\n    class A:\n        pass"
    assert names_of_several({"a": "class A: ...", "b": inner}) == {"A": ["a", "b"]}
    assert names_of_several({"a": "class A: ...", "b": "class B(A): ..."}) == {}


def test_one_place_has_the_interval_of_a_share() -> None:
    """Wilson's, as SciPy has it: every other part imports `train.operating.intervals.Share`."""
    having = [file for file in sources() if "proportion_ci" in file.read_text("utf-8")]
    assert having == [ROOT / "train" / "operating" / "intervals.py"]


# --- What the texts say ------------------------------------------------------------------
def test_make_help_lists_exactly_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)) == set(phony[1].split())


def test_variables_in_make_help_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in re.findall(r"^[a-z-]+:.*## .*\|(.*)$", makefile, re.MULTILINE):
        for name in re.findall(r"\b[A-Z][A-Z_]+\b", line):
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), name


def test_no_file_names_a_tensor_as_a_string() -> None:
    """Tensor names come from contract.py; a second spelling would drift."""
    for stage in STAGES[1:]:
        for file in (ROOT / stage).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            strings = {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not strings & {"input_ids", "attention_mask"}, file


def test_no_source_of_the_core_spells_what_the_contract_says() -> None:
    """core/build.py writes these into the header that the core includes."""
    names = ("INPUT_IDS", "ATTENTION_MASK", "ACCUMULATED_COUNTS", "LOGIT", "TEXT", "PROBABILITY")
    names += ("MODEL_VERSION", "CACHE_BYTES", "MAX_BATCH", "ONNX_FILE", "TOKENIZER_FILE")
    names += ("ARTIFACT_FILE", "ORT_FILE", "ATTRIBUTES")
    spelled = {f'"{getattr(contract, name)}"' for name in names}
    sources = [*ROOT.glob("core/*/*.cpp"), *ROOT.glob("core/*/*.h")]
    assert sources
    for file in sources:
        literals = set(re.findall(r'"[^"\n]*"', file.read_text("utf-8")))
        assert not spelled & literals, file
