"""Shared parts, all real: a tiny random encoder, its published repository, a running server.

What is heavy is imported where it is used: with workers, the process that only hands out the tests
reads this file too, before it starts them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from contract import ATTRIBUTES, FP32_LOGIT_ATOL, ONNX_FILE, TOKENIZER_FILE
from storage.files import write_atomically
from storage.locks import locked

if TYPE_CHECKING:
    import torch

    from export.config import ExportConfig
    from serve import triton
    from train.data.tokenizer import Tokenizer
    from train.model import ToxicityEncoder

# The models of these tests are small: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_LONGEST_FIRST = (
    "alerts door canary canary_attributes app app_door page readme score_file bench_encoder attack "
    "core fuzz cascade qat "
    "train generator_agrees load long_text soak serve ladder bench repository "
    "training_options open_loop replicas parity faults cache capacity distill attributes placement "
    "quality migrate recipes torchscript export tokenizer sources labels versions"
)
"""Files whose tests take long, in order: begun first, they end together on all workers."""
_APART = {
    "test_nothing_is_left_when_it_is_told_to_end",
    "test_the_same_sources_give_the_same_bytes",
    "test_two_processes_give_the_result_of_one",
    "test_a_kill_while_a_run_becomes_finished_loses_nothing",
    "test_a_kill_at_any_step_of_publishing_loses_nothing",
    "test_closed_loop_reports_a_stall_once_a_user",
    "test_open_loop_reports_a_stall_for_every_send_in_it",
}
"""Long tests that share nothing with those of their file: another worker may run them."""
_LONG = {
    "test_plans_are_trained_once_and_judged",
    "test_a_plan_is_run_into_out_and_not_again",
    "test_only_what_changed_is_done_again_and_a_stopped_recipe_goes_on",
    "test_what_breaks_calls_the_right_one_and_nobody_else",
    "test_shifted_traffic_is_told",
    "test_a_slow_version_calls_and_a_quick_one_does_not",
    "test_what_the_door_turns_away_calls",
    "test_a_short_soak_holds_every_bar",
    "test_ids_are_stored_in_constant_memory",
    "test_a_bounded_attack_holds_every_bar_that_is_no_time",
    "test_a_start_or_stop_that_was_killed_is_followed_by_one_that_works",
    "test_a_start_waits_for_a_supervisor_that_is_ending",
    "test_a_short_run",
    "test_nothing_is_left_when_it_is_told_to_end",
    "test_a_server_that_does_not_score_is_not_ready",
    "test_small_ladder_from_training_to_document",
    "test_a_rule_ends_what_flips_and_promotes_what_does_not",
    "test_the_same_sources_give_the_same_bytes",
    "test_no_input_of_a_short_run_crashes_a_target",
    "test_both_report_the_same_failures",
    "test_locust_tells_a_closed_connection",
    "test_rate_is_split_over_workers",
    "test_replicas_are_served_and_searched",
    "test_what_the_machine_lacks_is_skipped_with_the_reason",
    "test_sanitized_core_reads_as_the_reference_does",
    "test_every_panel_shows_data_of_what_really_serves",
    "test_whole_run_on_a_tiny_model",
    "test_a_kill_at_any_moment_keeps_the_sample",
    "test_the_bench_writes_what_the_plan_reads",
}
"""Tests that took about half a minute or more each, the whole taking twenty on two cores."""
_SLOW_FIXTURES = {"trained_run", "make_server_config"}
ATTRIBUTE_NAMES = ("insult", "threat", "identity_attack")
_WORDS = "you are a kind awful person and the idea is not so bad , thanks for your work".split()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it runs no test
    import hypothesis
    import torch

    torch.set_num_threads(1)
    # How long an example takes is the machine's affair: a busy one would fail what is right.
    hypothesis.settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; one that is not named here comes last. What trains or serves is slow."""
    order = {f"test_{name}.py": place for place, name in enumerate(_LONGEST_FIRST.split())}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if _SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.name.partition("[")[0] in _LONG:
            item.add_marker(pytest.mark.long)


class _ByFile(LoadScopeScheduling):
    """The tests of a file run on one worker, as they share what it sets up, but those of _APART."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return nodeid if test.partition("[")[0] in _APART else file


@pytest.hookimpl(optionalhook=True)  # without workers there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Instead of `--dist loadfile`."""
    return _ByFile(config, log)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this run of the tests, one for all of its workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, make: Callable[[], object]) -> None:
    """Call `make`, which fills `folder`, unless this or another worker has done so."""
    made = folder.with_name(f"{folder.name}.made")
    with locked(folder.with_name(f"{folder.name}.lock"), str(folder), "wait", wait_s=280):
        if not made.exists():
            make()
            made.touch()


@pytest.fixture(scope="session")
def trained_run(shared: Path) -> Path:
    """Folder of a finished run whose small model really learned, on synthetic comments."""
    import torch

    from train.config import TrainConfig
    from train.loop import train

    out = shared / "trained" / "model"
    shape = {"max_vocab": 3000, "max_len": 64, "d_model": 48, "n_layers": 2}
    config = TrainConfig(
        data="synthetic:3000", out=out, epochs=6, batch_size=32, lr=2e-3, device="cpu", **shape
    )
    once(out.parent, lambda: train(config, torch.device("cpu")))
    return out


@pytest.fixture(scope="session", autouse=True)
def traced_once(shared: Path) -> Iterator[None]:
    """Exports of the same weights share one trace, which takes longer than all of their gates."""
    import export.__main__ as export_main
    from train.model import ToxicityEncoder

    real: Callable[[torch.nn.Module, Path], None] = export_main.trace
    folder = shared / "traced"
    folder.mkdir(exist_ok=True)

    def trace_once(model: torch.nn.Module, path: Path) -> None:
        if type(model) is not ToxicityEncoder:  # it may be more than its weights
            real(model, path)
            return
        digest = hashlib.sha256(f"{model!r} {model.config}".encode())
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode() + tensor.numpy().tobytes())
        known = folder / digest.hexdigest()
        if not known.exists():
            real(model, path)
            write_atomically(known, path.read_bytes())
        write_atomically(path, known.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_main, "trace", trace_once)
        yield


Exported = tuple["ExportConfig", dict[str, Any]]
"""What was asked for, and the report."""


@pytest.fixture(scope="session")
def exported_of(trained_run: Path, shared: Path) -> Callable[[str], Exported]:
    """`trained_run` in a precision, exported once; for tests that leave it as it is."""
    import export.__main__ as export_main
    from export.config import ExportConfig

    @functools.cache
    def exported(precision: str) -> Exported:
        root = shared / f"exported-{precision}"
        config = ExportConfig(
            checkpoint=trained_run,
            repository=root / "repository",
            out=root / "out",
            precision=precision,
            calibration_comments=64,
            instances=1,
        )
        once(root, lambda: export_main.export(config))
        return config, json.loads((config.out / "report.json").read_text("utf-8"))

    return exported


@dataclass(frozen=True)
class TinyModel:
    """Random weights of one seed, large enough that logits spread over several units."""

    model: ToxicityEncoder
    tokenizer: Tokenizer
    onnx_path: Path
    ragged_path: Path
    tokenizer_path: Path

    def logit(self, text: str) -> float:
        """Logit of one comment by PyTorch, alone in its batch."""
        import torch

        ids = torch.tensor([self.tokenizer.encode(text)])
        with torch.no_grad():
            return float(self.model(ids, torch.ones_like(ids)))

    @property
    def artifact(self) -> dict[str, Any]:
        """What an export would say of it; the gate is one that it does pass."""
        gate = {"fp32_shapes": FP32_LOGIT_ATOL}, {"fp32_shapes": 0.0}
        names = self.model.config.attributes
        return {
            **({ATTRIBUTES: list(names)} if names else {}),
            **{"precision": "fp32", "device": "cpu", "max_len": self.tokenizer.max_len},
            **dict(zip(("tolerances", "measured"), gate, strict=True)),
        }

    def publish(self, repository: Path, *, instances: int | None = 1, **options: Any) -> int:
        from export.publish import publish

        return publish(
            repository,
            onnx_path=self.onnx_path,
            ragged_path=self.ragged_path,
            tokenizer_path=self.tokenizer_path,
            instances=instances,
            **{"artifact": self.artifact, **options},
        )


def make_tiny_model(
    folder: Path,
    *,
    seed: int,
    d_model: int = 16,
    n_layers: int = 2,
    max_len: int = 16,
    attributes: tuple[str, ...] = (),
) -> TinyModel:
    """Of random weights; its graphs are in `folder`, which is filled once for all workers."""
    import torch

    import export.__main__ as export_main
    from export.graph.build import build
    from train.data.tokenizer import build_tokenizer
    from train.model import ModelConfig, ToxicityEncoder

    torch.manual_seed(seed)
    tokenizer = build_tokenizer([" ".join(_WORDS)], max_vocab=100, max_len=max_len)
    vocab_size = len(tokenizer.vocabulary)
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": 2, "max_len": max_len}
    model = ToxicityEncoder(ModelConfig(vocab_size, **shape, attributes=attributes)).eval()
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)
        model.head.weight.mul_(5)
        if attributes:
            model.attribute_head.weight.mul_(5)

    def export() -> None:
        folder.mkdir(exist_ok=True)
        groups = (max_len // 2, max_len)
        export_main.trace(model, folder / ONNX_FILE)
        build(model, folder / "serving.onnx", groups, ragged=folder / "ragged.onnx")
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), "utf-8")

    once(folder, export)
    paths = (folder / name for name in (ONNX_FILE, "ragged.onnx", TOKENIZER_FILE))
    return TinyModel(model, tokenizer, *paths)


@pytest.fixture(scope="session")
def tiny_model(shared: Path) -> TinyModel:
    return make_tiny_model(shared / "tiny", seed=0)


@pytest.fixture(scope="session")
def named_model(shared: Path) -> TinyModel:
    """Random weights, with attributes; its encoder has the weights of `tiny_model`."""
    return make_tiny_model(shared / "attributes", seed=0, attributes=ATTRIBUTE_NAMES)


@pytest.fixture(scope="session")
def other_model(shared: Path) -> TinyModel:
    """Same shapes and vocabulary, other weights."""
    return make_tiny_model(shared / "other", seed=1)


def _own_ports() -> Iterator[int]:
    """Ports of this worker alone, each with seven behind it for whoever counts on from there.

    They lie below those that the system gives to connections. Another run of the tests on the same
    machine begins elsewhere.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(10_000, 32_000, 8)[worker::workers]
    first = random.SystemRandom().randrange(len(own))
    return itertools.cycle([*own[first:], *own[:first]])


_ports = _own_ports()


def free_port() -> int:
    """A port that nothing listens on, and that no other caller gets."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")


@pytest.fixture(scope="session")
def make_server_config(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path], triton.ServeConfig]]:
    """Config on free ports and an own run folder; whatever it started is stopped at the end."""
    from serve import triton

    made: list[triton.ServeConfig] = []

    def make(repository: Path) -> triton.ServeConfig:
        made.append(
            triton.ServeConfig(
                action="start",
                repository=repository,
                run_dir=tmp_path_factory.mktemp("serve"),
                http_port=free_port(),
                grpc_port=free_port(),
                metrics_port=free_port(),
            )
        )
        return made[-1]

    yield make
    for config in made:
        triton.stop(config)


@pytest.fixture(scope="session")
def served(
    tiny_model: TinyModel,
    tmp_path_factory: pytest.TempPathFactory,
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> triton.ServeConfig:
    """The real server with version 1 of `tiny_model`; for tests that leave it as it is."""
    from serve import triton

    repository = tmp_path_factory.mktemp("served") / "model_repository"
    tiny_model.publish(repository)
    config = make_server_config(repository)
    triton.start(config)
    return config


@pytest.fixture(scope="session")
def comments() -> list[str]:
    """Comments of every length up to past the cut, some of them hostile."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(_WORDS, k=n % 25)) for n in range(100)]
    texts += ["", " \t\n", "\0", "a" * 5000, "😀" * 40, "e\u0301É\u200b", "ﬁＡ①", "\U0010ffff"]
    scalars = [*range(0x20, 0xD800), *range(0xE000, 0x110000)]
    texts += ["".join(map(chr, rng.choices(scalars, k=rng.randrange(1, 30)))) for _ in range(100)]
    rng.shuffle(texts)
    return texts
