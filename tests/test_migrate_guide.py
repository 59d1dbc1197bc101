"""The guide's code blocks run as they stand against the real server, but for port and threshold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from conftest import TinyModel, free_port

from migrate.changes import changes
from serve import door, haproxy

GUIDE = Path(__file__).parent.parent / "docs" / "migrating.md"
ROOT = "http://127.0.0.1:8000"
THRESHOLD = "0.437"
pytestmark = pytest.mark.slow


def block(kind: str) -> str:
    """The guide's only block of that language."""
    found = re.findall(
        rf"^```{kind}\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, kind
    return str(found[0])


def settings() -> dict[str, str]:
    return dict(line.split("=", 1) for line in block("ini").splitlines())


@pytest.fixture(scope="module")
def root(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a door with the application behind it."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed, and the application stands behind it")
    folder = tmp_path_factory.mktemp("guide")
    tiny_model.publish(folder / "repository")
    config = door.DoorConfig(
        action="start",
        repository=folder / "repository",
        run_dir=folder / "run",
        **{f"{name}_port": free_port() for name in ("http", "grpc", "metrics")},
    )
    try:
        door.start(config)
        yield f"http://127.0.0.1:{config.http_port}"
    finally:
        door.stop(config)


TEXTS = ("you are a kind person", "the idea is awful", "thanks for your work", "you are so bad")


@pytest.fixture(scope="module")
def scores(root: str) -> dict[str, float]:
    """The served probability of each text, by the endpoint for what a person types."""
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{root}/score", json.dumps(TEXTS).encode(), headers)) as answer:
        return dict(zip(TEXTS, json.load(answer)["probability"], strict=True))


@pytest.fixture(scope="module")
def threshold(scores: dict[str, float]) -> float:
    """Some are flagged, some are not."""
    low, high = sorted(scores.values())[1:3]
    assert low < high
    return (low + high) / 2


def adapted(code: str, root: str, threshold: float | None = None) -> str:
    """For the port of a test, and a threshold of its model; nothing else may change."""
    assert ROOT in code
    code = code.replace(ROOT, root)
    if threshold is not None:
        assert code.count(THRESHOLD) == 1
        code = code.replace(THRESHOLD, repr(threshold))
    return code


def test_the_guide_has_the_lines_that_the_command_prints() -> None:
    printed = {
        line for change in changes(ROOT, float(THRESHOLD), "TOXICITY") for line in change.lines
    }
    for name, value in settings().items():
        assert name == "TALK_PERSPECTIVE_API_KEY" or f"{name}={value}" in printed


def test_a_comment_system_as_its_sources_ask(
    root: str, scores: dict[str, float], threshold: float
) -> None:
    """The request of Talk and Coral: the path behind the address, the key as a parameter."""
    environment = settings() | {"TALK_TOXICITY_THRESHOLD": repr(threshold)}
    endpoint = adapted(environment["TALK_PERSPECTIVE_API_ENDPOINT"], root)
    model = environment["TALK_PERSPECTIVE_MODEL"]
    for text, expected in scores.items():
        body = {
            "comment": {"text": text},
            "languages": ["en"],
            "doNotStore": True,
            "requestedAttributes": {model: {}},
        }
        address = f"{endpoint}/comments:analyze?key={environment['TALK_PERSPECTIVE_API_KEY']}"
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(address, json.dumps(body).encode(), headers)) as answer:
            score = json.load(answer)["attributeScores"][model]["summaryScore"]["value"]
        assert score == expected
        held_back = score > float(environment["TALK_TOXICITY_THRESHOLD"])
        assert held_back == (expected >= threshold)


def test_the_request_by_hand(root: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed, so the guide's request by hand is NOT tried")
    done = run(["bash", "-c", adapted(block("bash"), root)])
    assert 0 < json.loads(done)["attributeScores"]["TOXICITY"]["summaryScore"]["value"] < 1


def test_the_python_script(
    root: str, scores: dict[str, float], threshold: float, tmp_path: Path
) -> None:
    script = tmp_path / "moderate.py"
    script.write_text(adapted(block("python"), root, threshold), "utf-8")
    lines = run([sys.executable, str(script)], "\n".join((*TEXTS, ""))).splitlines()
    expected = [
        f"{score:.4f} {'look at it' if score >= threshold else 'fine'}" for score in scores.values()
    ]
    assert lines == expected and len({line.split(" ", 1)[1] for line in lines}) == 2


BOT = """
import { onMessage } from "./moderation.mjs";
const texts = JSON.parse(process.argv[2]);
const deleted = [];
const messages = texts.map((text) => [text, false]);
messages.push([texts[0], true], [" ", false]);
for (const [content, bot] of messages) {
  await onMessage({ content, author: { bot }, delete: async () => deleted.push(content) });
}
console.log(JSON.stringify(deleted));
"""
"""Messages as a Discord library hands them over, without its network."""


def test_the_bot(root: str, scores: dict[str, float], threshold: float, tmp_path: Path) -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed, so the guide's bot is NOT tried")
    code = adapted(block("javascript"), root, threshold)
    (tmp_path / "moderation.mjs").write_text(code, "utf-8")
    (tmp_path / "bot.mjs").write_text(BOT, "utf-8")
    deleted = json.loads(run([node, str(tmp_path / "bot.mjs"), json.dumps(TEXTS)]))
    assert deleted == [text for text, score in scores.items() if score >= threshold]
    assert 0 < len(deleted) < len(TEXTS)


def test_the_bot_says_what_is_refused(root: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed, so the guide's bot is NOT tried")
    code = adapted(block("javascript"), root).replace("TOXICITY: {}", "INSULT: {}")
    code += '\nawait toxicity("some text").catch((error) => console.log(error.message));\n'
    (tmp_path / "moderation.mjs").write_text(code, "utf-8")
    said = run([node, str(tmp_path / "moderation.mjs")])
    assert said.startswith("400 ") and "Unknown requested attribute" in said


def run(command: list[str], text: str = "") -> str:
    """What a command prints; it must succeed."""
    done: Any = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)
