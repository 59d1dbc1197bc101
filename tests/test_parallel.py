"""What lets the tests run in two processes at once, on a machine that may be busy."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from pathlib import Path

import hypothesis
import pytest

from tests.conftest import _own_ports, free_port, once


def test_workers_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    given = []
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        given.append({*itertools.islice(_own_ports(), 3000)})
    assert not given[0] & given[1]
    ports = sorted({*given[0], *given[1]})
    assert min(b - a for a, b in itertools.pairwise(ports)) == 8


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
