"""Public clients of both APIs, as the package indexes have them, against the real server.

Only the address is theirs to change. What is not installed here is skipped, and says so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_door import PERSPECTIVE, SUGGEST, make_config, served, serving
from conftest import TinyModel

from contract import HOST
from serve import door, haproxy
from serve.app.moderation import CATEGORIES

pytestmark = pytest.mark.slow
CLIENTS = Path(__file__).parent / "clients"
TEXTS = ["you are kind", "an awful person 😀"]


@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("clients")
    tiny_model.publish(folder / "repository")
    labels = folder / "labels.csv"
    with serving(make_config(folder / "run", folder / "repository", labels=labels)) as config:
        yield config


# --- Python ----------------------------------------------------------------------------------
def test_the_official_moderation_client(opened: door.DoorConfig) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    url = f"http://{HOST}:{opened.http_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = client.moderations.create(model="omni-moderation-latest", input=TEXTS)
        values = served(opened, *TEXTS)
        for value, result in zip(values, answer.results, strict=True):
            assert result.category_scores.toxicity == value
            assert result.flagged == (value >= 0.5)
            # As strictly as its own types say, which its answers are not checked against.
            type(result).model_validate(result.model_dump(by_alias=True), strict=True)
            written = result.categories.model_dump(by_alias=True)
            assert [name for name in CATEGORIES if written[name] is not False] == []
        (one,) = client.moderations.create(input=TEXTS[0]).results
        assert one.category_scores.toxicity == values[0]
        parts = [{"type": "text", "text": text} for text in TEXTS]
        (one,) = client.moderations.create(input=parts).results
        assert one.category_scores.toxicity == max(values)
        with pytest.raises(openai.BadRequestError) as caught:
            client.moderations.create(input=[])
        assert caught.value.type == "invalid_request_error" and caught.value.body
        with pytest.raises(openai.APIStatusError) as large:
            client.moderations.create(input="x" * (2 << 20))
        assert large.value.status_code == 413


def _discovery(root: str) -> dict[str, Any]:
    """What a static discovery document says, as far as the client needs it."""

    def method(name: str, path: str) -> dict[str, Any]:
        return {
            "id": f"commentanalyzer.comments.{name}",
            "path": path.lstrip("/"),
            "httpMethod": "POST",
            "parameters": {},
            "request": {"$ref": "Any"},
            "response": {"$ref": "Any"},
        }

    methods = {"analyze": PERSPECTIVE, "suggestscore": SUGGEST}
    return {
        "kind": "discovery#restDescription",
        "name": "commentanalyzer",
        "version": "v1alpha1",
        "rootUrl": root,
        "servicePath": "",
        "baseUrl": root,
        "parameters": {"key": {"type": "string", "location": "query"}},
        "schemas": {"Any": {"id": "Any", "type": "object"}},
        "resources": {"comments": {"methods": {n: method(n, p) for n, p in methods.items()}}},
    }


def test_the_google_client_of_perspective(opened: door.DoorConfig) -> None:
    discovery = pytest.importorskip(
        "googleapiclient.discovery", reason="google-api-python-client is not installed"
    )
    import httplib2
    from googleapiclient.errors import HttpError

    document = _discovery(f"http://{HOST}:{opened.http_port}/")
    http = httplib2.Http()
    with discovery.build_from_document(document, http=http, developerKey="none") as service:
        comments = service.comments()
        body = {
            "comment": {"text": TEXTS[1]},
            "requestedAttributes": {"TOXICITY": {}},
            "languages": ["en"],
        }
        answer = comments.analyze(body=body).execute()
        scores = answer["attributeScores"]["TOXICITY"]
        assert scores["summaryScore"]["value"] == served(opened, TEXTS[1])[0]
        assert scores["spanScores"][0]["end"] == len(TEXTS[1]) + 1  # in UTF-16 units
        suggested = {"TOXICITY": {"summaryScore": {"value": 1}}}
        said = comments.suggestscore(
            body={"comment": {"text": TEXTS[1]}, "attributeScores": suggested, "clientToken": "x"}
        ).execute()
        assert said["clientToken"] == "x"
        with pytest.raises(HttpError, match="Comment must be non-empty") as caught:
            comments.analyze(body=body | {"comment": {"text": ""}}).execute()
        assert caught.value.status_code == 400
        assert caught.value.error_details[0]["errorType"] == "COMMENT_EMPTY"


# --- JavaScript --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the clients of tests/clients/package.json, installed."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed: no client in JavaScript was tried")
    folder = tmp_path_factory.mktemp("node")
    for file in CLIENTS.iterdir():
        shutil.copy(file, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip("npm cannot install the clients here: no client in JavaScript was tried")
    return folder


def _run(node: Path, script: str, *arguments: str) -> dict[str, Any]:
    command = ["node", script, *arguments]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_official_moderation_client_in_javascript(opened: door.DoorConfig, node: Path) -> None:
    found = _run(node, "moderate.mjs", f"http://{HOST}:{opened.http_port}", *TEXTS)
    scores = [result["category_scores"]["toxicity"] for result in found["answer"]["results"]]
    assert scores == served(opened, *TEXTS)
    assert found["refused"] == {
        "name": "BadRequestError",
        "status": 400,
        "type": "invalid_request_error",
    }


def test_a_client_of_perspective_in_javascript(opened: door.DoorConfig, node: Path) -> None:
    found = _run(node, "analyze.cjs", f"http://{HOST}:{opened.http_port}", TEXTS[0])
    scores = found["answer"]["attributeScores"]["TOXICITY"]
    assert scores["summaryScore"]["value"] == served(opened, TEXTS[0])[0]
    assert found["refused"]["status"] == 400
    assert found["refused"]["message"].startswith("Unknown requested attribute: INSULT")
