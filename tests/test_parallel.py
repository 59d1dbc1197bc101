"""What lets the tests run in two processes at once, on a machine that may be busy."""

from __future__ import annotations

import ast
import itertools
import multiprocessing
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import hypothesis
import pytest

from tests.conftest import _APART, _LONGEST_FIRST, _ByFile, _own_ports, free_port, once

TESTS = Path(__file__).parent


def test_workers_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    given = []
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        given.append({*itertools.islice(_own_ports(), 3000)})
    assert not given[0] & given[1]
    ports = sorted({*given[0], *given[1]})
    assert min(b - a for a, b in itertools.pairwise(ports)) == 8


def test_what_is_begun_early_or_runs_apart_is_there() -> None:
    assert not [name for name in _LONGEST_FIRST.split() if not (TESTS / f"test_{name}.py").exists()]
    across = re.findall(r"tests/test_\w+\.py", (TESTS.parent / ".ci" / "run").read_text("utf-8"))
    assert across and not [name for name in across if not (TESTS.parent / name).exists()]
    defined = {
        node.name
        for file in TESTS.glob("test_*.py")
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert defined >= _APART


def test_a_file_stays_on_one_worker_but_what_runs_apart() -> None:
    scope = partial(_ByFile._split_scope, None)
    assert scope("tests/test_a.py::test_x[1::2]") == scope("tests/test_a.py::test_y")
    one = f"tests/test_a.py::{min(_APART)}[1]"
    assert scope(one) == one


def test_who_only_hands_out_the_tests_imports_nothing_heavy() -> None:
    code = "import sys, tests.conftest; print({'torch', 'onnx', 'hypothesis'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "set()\n", done.stderr


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len({*ports}) == 50


def _make(folder: Path) -> None:
    def make() -> None:
        time.sleep(0.1)
        with (folder.parent / "made-by").open("a") as file:
            file.write("one\n")

    once(folder, make)


def test_what_is_shared_is_made_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make, args=(tmp_path / "it",)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "made-by").read_text() == "one\n"


def test_no_example_fails_for_its_time() -> None:
    assert hypothesis.settings.default.deadline is None
