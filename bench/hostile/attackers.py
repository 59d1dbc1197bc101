"""The processes of `bench.hostile.attack` that send what is hostile; each judges its own answers.

They are children of that command, end with it, and are not meant to be run alone.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.hostile.children import Signals, begin
from bench.hostile.draws import Draw
from bench.hostile.legality import ServedVersions
from bench.hostile.tally import Tally
from contract import HOST, LOGIT, PUBLIC_MODEL, TEXT
from serve.probe import INFER_PATH

_NICE = 10
"""Attackers would have machines of their own; here they take what the servers leave."""
_VERSIONS = 10_000
_GRPC_DEADLINES_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 5.0)
_GRPC_PAUSE_S = 0.01


@dataclass(frozen=True)
class Plan:
    """What an attacking process is told."""

    port: int
    grpc_port: int
    repository: Path
    version: int | None
    """That serves; None where that changes meanwhile."""
    texts: Path
    """JSON list of comments."""
    seed: int
    count: int
    """Requests, or examples of hypothesis."""
    connections: int = 32
    slow: int = 32
    """Connections of the slow families beside those."""
    sources: tuple[str, ...] = (HOST,)
    leave_idle: bool = True
    """Whether connections that are idle at the end are left to the door to close."""
    pause_s: float = 0.0
    """Of each connection after an exchange."""

    def served(self) -> ServedVersions:
        """What is served, for the judge."""
        origins = {f"http://{host}:{self.port}" for host in (HOST, "localhost")}
        versions = {self.version} if self.version else set(range(1, _VERSIONS))
        return ServedVersions(frozenset(origins), frozenset(versions))

    def tally(self) -> Tally:
        """A judge of this plan's answers."""
        from bench.traffic.answers import Oracle  # loads ONNX Runtime

        return Tally(Oracle(self.repository, self.version), self.served())

    def read_texts(self) -> list[str]:
        """The comments."""
        texts: list[str] = json.loads(self.texts.read_text("utf-8"))
        return texts


# --- Raw sockets ---------------------------------------------------------------------------
def attack(plan: Plan, signals: Signals) -> None:
    """Send `plan.count` requests of all families and report; then hold on to what is left open."""
    begin(_NICE)
    import gevent

    from bench.hostile.exchange import Caller
    from bench.hostile.families import draw_all

    tally, texts = plan.tally(), plan.read_texts()
    caller = Caller(plan.port, list(plan.sources))
    finish, progress = signals.finish, signals.progress
    fast = draw_all(plan.seed, plan.port, texts)
    slow = draw_all(plan.seed, plan.port, texts, slow=True)

    def work(exchanges: Iterator[Any]) -> None:
        while progress.value < plan.count and not finish.is_set():
            exchange = next(exchanges)
            outcome = caller.perform(exchange)
            progress.value += exchange.requests
            tally.count(exchange, outcome)
            gevent.sleep(plan.pause_s)

    signals.wait_to_begin()
    dawdlers = [gevent.spawn(work, slow) for _ in range(plan.slow)]
    gevent.joinall([gevent.spawn(work, fast) for _ in range(plan.connections)], raise_error=True)
    gevent.killall(dawdlers)  # their connections stay open
    if not plan.leave_idle:
        caller.close_idle()
    signals.reports.put((tally.families, len(caller.idle) + len(caller.busy)))
    while not finish.wait(0.1):
        pass
    caller.close()


# --- Hypothesis ----------------------------------------------------------------------------
def explore(plan: Plan, signals: Signals) -> None:
    """Send `plan.count` JSON-like bodies that hypothesis makes; it shrinks one that fails."""
    begin(_NICE)
    import hypothesis
    from hypothesis import strategies as st

    from bench.hostile.draws import GENERATE_PATH, single
    from bench.hostile.exchange import Caller
    from bench.hostile.families import HYPOTHESIS

    tally, caller = plan.tally(), Caller(plan.port, list(plan.sources))
    draw = Draw(random.Random(plan.seed), plan.port, ())

    @hypothesis.seed(plan.seed)
    @hypothesis.settings(
        max_examples=plan.count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    @hypothesis.given(_bodies(), st.booleans())
    def answered_rightly(body: bytes, generate: bool) -> None:
        path = GENERATE_PATH if generate else INFER_PATH
        exchange = single(HYPOTHESIS, draw.post(body, path=path))
        outcome = caller.perform(exchange)
        signals.progress.value += 1
        assert not tally.count(exchange, outcome)
        assert outcome.ending != "hung"

    signals.wait_to_begin()
    with contextlib.suppress(AssertionError, hypothesis.errors.FlakyFailure):
        answered_rightly()  # what is wrong is in the tally
    caller.close()
    signals.reports.put((tally.families, 0))


def _bodies() -> Any:
    """Any JSON, and documents that are nearly requests; some of them cut or with a byte changed."""
    import json

    from hypothesis import strategies as st

    text = st.text(st.characters(exclude_categories=()), max_size=20)
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | text
    anything = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )

    def nearly(*right: Any) -> Any:
        return st.one_of(*[st.sampled_from(right)] * 4, anything)

    tensor = st.fixed_dictionaries(
        {
            "name": nearly(TEXT),
            "datatype": nearly("BYTES"),
            "shape": st.one_of(nearly([1, 1], [2, 1]), st.lists(st.integers(), max_size=3)),
            "data": st.one_of(*[st.lists(text, max_size=3)] * 4, anything),
        },
        optional={"parameters": anything},
    )
    near = st.fixed_dictionaries(
        {"inputs": st.one_of(*[st.lists(tensor, min_size=1, max_size=1)] * 6, anything)},
        optional={
            "outputs": st.lists(st.fixed_dictionaries({"name": nearly(LOGIT)}), max_size=3),
            "id": nearly("1"),
            "parameters": anything,
        },
    )
    flat = st.fixed_dictionaries(
        {TEXT: st.one_of(text, anything)}, optional={"parameters": anything}
    )

    def dumped(document: Any, ascii_: bool) -> bytes:
        return json.dumps(document, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")

    whole = st.builds(dumped, st.one_of(near, near, flat, anything), st.booleans())

    def changed(body: bytes, at: int, insert: bytes, drop: int) -> bytes:
        at %= len(body) + 1
        return body[:at] + insert + body[at + drop :]

    edits = st.builds(
        changed, whole, st.integers(0, 10**4), st.binary(max_size=3), st.integers(0, 5)
    )
    return st.one_of(whole, whole, edits)


# --- gRPC ----------------------------------------------------------------------------------
def give_up(plan: Plan, signals: Signals) -> None:
    """Call with short deadlines and cancel until the end; complete answers are compared."""
    begin(_NICE)
    import grpc

    from bench.hostile.families import GRPC

    tally, texts = plan.tally(), plan.read_texts()
    lock = threading.Lock()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        with grpc.insecure_channel(f"{HOST}:{plan.grpc_port}") as channel:
            while not signals.finish.is_set():
                code, found = _call(channel, rng, rng.choice(texts))
                with lock:
                    family = tally.of(GRPC)
                    family.sent += 1
                    signals.progress.value += 1
                    family.answers[code] += 1
                    family.left += code in ("CANCELLED", "DEADLINE_EXCEEDED")
                    family.closed += code == "UNAVAILABLE"
                    if found and (fault := _fault(tally, *found)):
                        family.wrong += 1
                        family.blame(fault, found[0].encode())
                time.sleep(_GRPC_PAUSE_S * (10 if code == "UNAVAILABLE" else 1))

    threads = [
        threading.Thread(target=client, args=(plan.seed + n,)) for n in range(plan.connections)
    ]
    signals.wait_to_begin()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    signals.reports.put((tally.families, 0))


def _call(channel: Any, rng: random.Random, text: str) -> tuple[str, tuple[str, Any] | None]:
    """Code of one call, and its comment and answer when it has one."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from bench.traffic.bodies import packed

    request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
    request.inputs.add(name=TEXT, shape=[1, 1], datatype="BYTES")
    request.raw_input_contents.append(packed([text.encode()]))
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    call = stub.ModelInfer.future(request, timeout=rng.choice(_GRPC_DEADLINES_S))
    if rng.random() < 1 / 3:
        time.sleep(rng.random() * 0.005)
        call.cancel()
    try:
        return "OK", (text, call.result())
    except grpc.RpcError as error:
        return error.code().name, None
    except grpc.FutureCancelledError:
        return "CANCELLED", None


def _fault(tally: Tally, text: str, answer: Any) -> str:
    import numpy as np

    from bench.hostile.legality import Reading
    from bench.traffic.answers import AnswerScores

    raw = dict(zip([o.name for o in answer.outputs], answer.raw_output_contents, strict=True))
    scores = AnswerScores(logit=np.frombuffer(raw[LOGIT], "<f4").tolist())
    return tally.oracle.fault(scores, Reading(((text,),)))
