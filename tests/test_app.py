"""The application's endpoints behind the real haproxy, before the real server."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from app_door import MODERATIONS, PERSPECTIVE, SUGGEST, ask, make_config, served, serving
from conftest import TinyModel

from contract import HOST, MAX_COMMENT_BYTES
from serve import door, haproxy
from serve.app import markup, moderation
from serve.app.labels import LabelFile
from serve.app.refusals import Refusal
from serve.app.sentences import MOST, sentences

pytestmark = pytest.mark.slow
THRESHOLD = 0.09
ROOT = Path(__file__).parent.parent
real_write = os.write


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels") / "labels.csv"


@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory, labels: Path
) -> Iterator[door.DoorConfig]:
    """A version with a threshold and languages of its own."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("app")
    stated = {"thresholds": {"toxicity": THRESHOLD}, "languages": ["en", "de"]}
    tiny_model.publish(folder / "repository", artifact={**tiny_model.artifact, **stated})
    config = make_config(folder / "run", folder / "repository", labels=labels, get_score=True)
    with serving(config):
        yield config


def analyze(text: str, **more: Any) -> dict[str, Any]:
    return {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}, **more}


# --- Scores are the server's ---------------------------------------------------------------
def test_scores_are_the_servers_bit_for_bit_however_they_arrive(
    opened: door.DoorConfig, comments: list[str]
) -> None:
    texts = [text for text in comments if text.strip()]
    expected = [
        value for at in range(0, len(texts), 64) for value in served(opened, *texts[at : at + 64])
    ]

    def each(text: str) -> tuple[float, float, float]:
        _, typed, _ = ask(opened, "/score", {"text": text})
        _, moderated, _ = ask(opened, MODERATIONS, {"input": text})
        _, analyzed, _ = ask(opened, PERSPECTIVE, analyze(text))
        scores = analyzed["attributeScores"]["TOXICITY"]
        return (
            typed["probability"],
            moderated["results"][0]["category_scores"]["toxicity"],
            scores["summaryScore"]["value"],
        )

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(each, texts)) == [(value,) * 3 for value in expected]
    _, together, _ = ask(opened, "/score", texts)
    assert together == {"probability": expected, "model_version": "1"}


# --- /score --------------------------------------------------------------------------------
@pytest.mark.parametrize("body", [{"text": "you are kind"}, "you are kind", ["you are kind"]])
def test_what_a_person_types_is_scored(opened: door.DoorConfig, body: Any) -> None:
    (expected,) = served(opened, "you are kind")
    status, answer, headers = ask(opened, "/score", body)
    wanted = [expected] if isinstance(body, list) else expected
    assert (status, answer) == (200, {"probability": wanted, "model_version": "1"})
    assert headers["content-type"] == "application/json"


def test_get_score_is_answered_where_it_is_on(opened: door.DoorConfig) -> None:
    text = "so bad, thanks? ü&=😀"
    status, answer, _ = ask(opened, f"/score?text={quote(text)}")
    assert (status, answer["probability"]) == (200, served(opened, text)[0])
    for query in ("", "?text=a&text=b", "?text=%FF", "?txt=a"):
        status, answer, _ = ask(opened, f"/score{query}")
        assert (status, list(answer)) == (400, ["error"]), query


def test_health_really_scores(opened: door.DoorConfig) -> None:
    assert ask(opened, "/app/health")[:2] == (200, {"status": "scores", "model_version": "1"})


def test_the_request_id_of_the_client_comes_back_if_it_is_sane(opened: door.DoorConfig) -> None:
    for path, body in (("/score", "x"), ("/app/health", None), ("/openapi.json", None)):
        _, _, headers = ask(opened, path, body, {"X-Request-Id": "abc-123"})
        assert headers["x-request-id"] == "abc-123"
        _, _, headers = ask(opened, path, body, {"X-Request-Id": "a b" + "c" * 300})
        assert len(headers["x-request-id"]) == 32
    ids = {ask(opened, "/score", "x")[2]["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_openapi_document_has_every_endpoint(opened: door.DoorConfig) -> None:
    status, document, _ = ask(opened, "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    asked = {(path, method) for path, item in document["paths"].items() for method in item}
    assert asked == {
        *(("/score", "get"), ("/score", "post"), (MODERATIONS, "post"), (PERSPECTIVE, "post")),
        *((SUGGEST, "post"), ("/app/health", "get")),
    }
    text = json.dumps(document)
    for name in ("Request", "AnalyzeRequest", "SuggestRequest"):
        assert name in document["components"]["schemas"] and f"#/components/schemas/{name}" in text


# --- Moderations -----------------------------------------------------------------------------
def test_moderation_flags_by_the_versions_threshold(
    opened: door.DoorConfig, comments: list[str]
) -> None:
    texts = comments[:120]
    _, answer, headers = ask(opened, MODERATIONS, {"input": texts, "model": "some-model"})
    assert answer["id"] == f"modr-{headers['x-request-id']}" and answer["model"] == "toxicity-1"
    for value, result in zip(served(opened, *texts), answer["results"], strict=True):
        assert result["category_scores"]["toxicity"] == value
        assert result["flagged"] == result["categories"]["toxicity"] == (value >= THRESHOLD)
        for name in moderation.CATEGORIES:
            assert result["categories"][name] is False
            assert result["category_scores"][name] == 0
            assert result["category_applied_input_types"][name] == []
    flagged = {result["flagged"] for result in answer["results"]}
    assert flagged == {True, False}, "the texts are on one side of the threshold"


def test_parts_of_an_input_are_one_input_as_toxic_as_the_worst(opened: door.DoorConfig) -> None:
    texts = ["you are kind", "an awful person", "thanks"]
    parts = [{"type": "text", "text": text} for text in texts]
    _, answer, _ = ask(opened, MODERATIONS, {"input": parts})
    (result,) = answer["results"]
    assert result["category_scores"]["toxicity"] == max(served(opened, *texts))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"input": None}, None),
        ({"input": []}, None),
        ({"input": 3}, None),
        ({"input": [3]}, None),
        ({"input": ["x"] * 257}, None),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://x"}}]}, None),
        ({"input": "x" * (MAX_COMMENT_BYTES + 1)}, "comment_too_long"),
        (["x"], None),
    ],
)
def test_moderation_errors_have_that_apis_shape(
    opened: door.DoorConfig, body: Any, code: str | None
) -> None:
    status, answer, _ = ask(opened, MODERATIONS, body)
    assert status == 400
    error = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


# --- Perspective -----------------------------------------------------------------------------
def test_an_analysis_has_that_apis_shape(opened: door.DoorConfig) -> None:
    text = "you are kind"
    (value,) = served(opened, text)
    score = {"value": value, "type": "PROBABILITY"}
    body = analyze(
        text,
        languages=["en"],
        doNotStore=True,
        clientToken="token",
        sessionId="session",
        communityId="site",
        context={"entries": [{"text": "before", "type": "PLAIN_TEXT"}]},
    )
    status, answer, _ = ask(opened, f"{PERSPECTIVE}?key=none&alt=json", body)
    spans = [{"begin": 0, "end": len(text), "score": score}]
    assert (status, answer) == (
        200,
        {
            "attributeScores": {"TOXICITY": {"spanScores": spans, "summaryScore": score}},
            "languages": ["en"],
            "detectedLanguages": [],
            "clientToken": "token",
        },
    )


def test_spans_are_sentences_in_utf16_units(opened: door.DoorConfig) -> None:
    text = "  😀 You are kind 3.5! Not so bad?? 😀\nAn awful person"
    _, answer, _ = ask(opened, PERSPECTIVE, analyze(text, spanAnnotations=True))
    found = answer["attributeScores"]["TOXICITY"]
    units = text.encode("utf-16-le")
    parts = [
        units[2 * span["begin"] : 2 * span["end"]].decode("utf-16-le")
        for span in found["spanScores"]
    ]
    assert parts == ["😀 You are kind 3.5!", "Not so bad??", "😀", "An awful person"]
    expected = served(opened, text, *parts)
    assert found["summaryScore"]["value"] == expected[0]
    assert [span["score"]["value"] for span in found["spanScores"]] == expected[1:]


def test_scores_below_the_threshold_are_left_out(opened: door.DoorConfig) -> None:
    text = "you are kind. an awful person."
    values = served(opened, text, "you are kind.", "an awful person.")
    asked = {"TOXICITY": {"scoreThreshold": sorted(values)[1]}}
    body = analyze(text, spanAnnotations=True) | {"requestedAttributes": asked}
    _, answer, _ = ask(opened, PERSPECTIVE, body)
    scores = answer["attributeScores"]["TOXICITY"]
    kept = [span["score"]["value"] for span in scores.get("spanScores", [])]
    kept += [scores["summaryScore"]["value"]] if "summaryScore" in scores else []
    assert sorted(kept) == sorted(values)[1:]
    asked["TOXICITY"]["scoreThreshold"] = 1.0
    _, answer, _ = ask(opened, PERSPECTIVE, body)
    assert answer == {"languages": ["en", "de"], "detectedLanguages": []}


def test_names_in_snake_case_and_html_are_read(opened: door.DoorConfig) -> None:
    sent = "<p>you <b>are</b> kind &amp; so on.</p><!-- awful --><script>bad</script>thanks 😀"
    seen = "\nyou are kind & so on.\nthanks 😀"
    body = {
        "comment": {"text": sent, "type": "HTML"},
        "requested_attributes": {"TOXICITY": {"score_type": "PROBABILITY", "score_threshold": 0}},
        "span_annotations": True,
        "client_token": "t_1",
    }
    _, answer, _ = ask(opened, PERSPECTIVE, body)
    scores = answer["attributeScores"]["TOXICITY"]
    assert answer["clientToken"] == "t_1"
    assert scores["summaryScore"]["value"] == served(opened, seen)[0]
    assert markup.visible(sent).text == seen
    places = [(span["begin"], span["end"]) for span in scores["spanScores"]]
    assert places == [(3, sent.index("</p>")), (sent.index("thanks"), len(sent) + 1)]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"comment": {"text": " \n"}}, "INVALID_ARGUMENT", "COMMENT_EMPTY"),
        ({"comment": None}, "INVALID_ARGUMENT", "COMMENT_EMPTY"),
        (
            {"comment": {"text": "x" * (MAX_COMMENT_BYTES + 1)}},
            "INVALID_ARGUMENT",
            "COMMENT_TOO_LONG",
        ),
        ({"languages": ["is"]}, "INVALID_ARGUMENT", "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"),
        ({"requestedAttributes": {}}, "INVALID_ARGUMENT", None),
        ({"requestedAttributes": {"TOXICITY": {}, "INSULT": {}}}, "INVALID_ARGUMENT", None),
        ({"requestedAttributes": {"TOXICITY": {"scoreType": "RAW"}}}, "INVALID_ARGUMENT", None),
        (
            {"requestedAttributes": {"TOXICITY": {"scoreThreshold": "0.5"}}},
            "INVALID_ARGUMENT",
            None,
        ),
        ({"comment": {"text": "x", "type": "PDF"}}, "INVALID_ARGUMENT", None),
        ({"comment": {"text": 3}}, "INVALID_ARGUMENT", None),
        ({"clientToken": "x" * 2000}, "INVALID_ARGUMENT", None),
    ],
)
def test_perspective_errors_have_that_apis_shape(
    opened: door.DoorConfig, change: dict[str, Any], status: str, kind: str | None
) -> None:
    code, answer, _ = ask(opened, PERSPECTIVE, analyze("you are kind") | change)
    error = answer["error"]
    assert (code, error["code"], error["status"]) == (400, 400, status)
    assert error["message"] and "\n" not in error["message"]
    if kind is None:
        assert "details" not in error
        return
    (detail,) = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"
    assert detail["errorType"] == kind
    if kind.startswith("LANGUAGE"):
        words = {"detectedLanguages": ["is"], "attribute": "TOXICITY"}
        assert detail["languageNotSupportedByAttributeError"] == words


def test_a_suggested_score_goes_to_the_file_of_labels(
    opened: door.DoorConfig, labels: Path
) -> None:
    texts = ["you are, kind", 'an "awful"\nperson', "ü 😀"]
    for value, text in enumerate(texts):
        body = {
            "comment": {"text": text},
            "attributeScores": {"TOXICITY": {"summaryScore": {"value": value / 2}}},
            "clientToken": "t",
        }
        assert ask(opened, SUGGEST, body)[:2] == (
            200,
            {"detectedLanguages": [], "clientToken": "t"},
        )
    bad = {
        "comment": {"text": "x"},
        "attributeScores": {"TOXICITY": {"summaryScore": {"value": 2}}},
    }
    assert ask(opened, SUGGEST, bad)[0] == 400
    with labels.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["text", "label"], *([text, f"{n / 2:g}"] for n, text in enumerate(texts))]
    assert stat.S_IMODE(labels.stat().st_mode) == 0o600


# --- Hostile bodies ----------------------------------------------------------------------------
_DEEP = b"[" * 100_000 + b"]" * 100_000
HOSTILE = {
    "cut": b'{"text": "x',
    "deep": _DEEP,
    "deep member": b'{"text": "x", "comment": {"text": "x"}, "input": "x", "y": ' + _DEEP + b"}",
    "deep context": b'{"comment": {"text": "x"}, "text": ' + b'{"input":' * 50_000,
    "bad UTF-8": b'{"text": "\xff", "input": "\xff", "comment": {"text": "\xff"}}',
    "lone surrogate": rb'{"text": "\ud800", "input": "\ud800", "comment": {"text": "\ud800"}}',
    "number": b'{"text": 1e999, "input": 1e999, "comment": {"text": 1e999}}',
    "null": b"null",
    "NaN": b"NaN",
    "binary": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("path", ["/score", MODERATIONS, PERSPECTIVE, SUGGEST])
def test_a_hostile_body_is_refused_in_one_line(
    opened: door.DoorConfig, path: str, case: str
) -> None:
    status, answer, _ = ask(opened, path, HOSTILE[case])
    if case == "deep member" and status == 200:
        return  # what nobody asked for is skipped
    assert status == 400, answer
    error = answer["error"]
    words = error if isinstance(error, str) else error["message"]
    assert words and "\n" not in words and len(words) < 300


def test_odd_bodies_are_read_as_json_says(opened: door.DoorConfig) -> None:
    (nul,) = served(opened, "a\0b")
    assert ask(opened, "/score", rb'{"text": "a\u0000b"}')[1]["probability"] == nul
    (last,) = served(opened, "you are kind")
    assert ask(opened, "/score", b'{"text": "x", "text": "you are kind"}')[1]["probability"] == last
    raw = '{"text": "you are kind", "more": [1e400, "ü"]}'.encode()
    assert ask(opened, "/score", raw)[1]["probability"] == last


def test_markup_and_sentences_of_a_hostile_comment_take_one_pass(opened: door.DoorConfig) -> None:
    """A quadratic one takes minutes for each of these."""
    for piece in ("<", "<a", "<!--", "<script>", "&a", ". ", ".", "\n", "a.", "</", "<a b='"):
        text = piece * (200_000 // len(piece))
        body = analyze(text, spanAnnotations=True)
        body["comment"]["type"] = "HTML"
        status, answer, _ = ask(opened, PERSPECTIVE, body)
        assert status in (200, 400), answer
        body["comment"]["type"] = "PLAIN_TEXT"
        status, answer, _ = ask(opened, PERSPECTIVE, body)
        assert status in (200, 400), answer
    assert ask(opened, "/app/health")[0] == 200


def test_sentences_are_few_and_cover_what_is_no_white_space() -> None:
    text = "A b. C! 「d」。E 1.5 f.g\n\n" * 200
    spans = sentences(text)
    assert len(spans) == MOST
    left = list(text)
    for begin, end in spans:
        left[begin:end] = [" "] * (end - begin)
    assert not "".join(left).strip()
    assert [text[begin:end] for begin, end in spans[:3]] == ["A b.", "C!", "「d」。"]


def test_no_log_has_a_comment(opened: door.DoorConfig) -> None:
    secret = "verysecretword"
    for path in ("/score", MODERATIONS, PERSPECTIVE, SUGGEST):
        for body in (
            secret,
            {"text": secret, "input": secret},
            analyze(secret),
            [secret],
            {secret: 1},
        ):
            with contextlib.suppress(ValueError):
                ask(opened, path, body)
    ask(opened, f"/score?text={secret}")
    for file in opened.run_dir.rglob("*"):
        if file.is_file() and "models" not in file.parts:
            assert secret.encode() not in file.read_bytes(), file


# --- The page -----------------------------------------------------------------------------
def _page() -> list[tuple[str, str]]:
    """Each command of the page with the answer below it."""
    text = (ROOT / "docs/compatible.md").read_text("utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [(a[2:], b) for a, b in itertools.pairwise(lines) if a.startswith("$ ")]


def _shape(document: Any) -> Any:
    """The same without what a score is."""
    if isinstance(document, float):
        return 0.0
    if isinstance(document, list):
        return [_shape(one) for one in document]
    if isinstance(document, dict):
        return {name: _shape(one) for name, one in document.items()}
    return document


def test_the_pages_commands_answer_as_it_says(opened: door.DoorConfig) -> None:
    page = _page()
    assert len(page) >= 5
    for command, answer in page:
        own = command.replace("127.0.0.1:8000", f"{HOST}:{opened.http_port}")
        done = subprocess.run(["bash", "-c", own], capture_output=True, text=True, check=True)
        assert _shape(json.loads(done.stdout)) == _shape(json.loads(answer)), command


# --- The file of labels -----------------------------------------------------------------
def test_the_file_of_labels_is_bounded_whole_and_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.csv"
    file = LabelFile(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: file.append(f'a "{n}"\nb, c', n % 2), range(200)))
    rows = read_rows(path)
    assert sorted(rows) == sorted([f'a "{n}"\nb, c', str(n % 2)] for n in range(200))
    before = path.read_bytes()
    with (
        monkeypatch.context() as patch,
        pytest.raises(Refusal, match="cannot be written: no space"),
    ):
        patch.setattr(os, "write", lambda fd, data: real_write(fd, data[:5]))
        file.append("cut in the middle", 1)
    assert path.read_bytes() == before
    monkeypatch.setattr("serve.app.labels.MAX_BYTES", len(before) + 5)
    with pytest.raises(Refusal, match="move it away"):
        file.append("one too many", 1)
    assert path.read_bytes() == before
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with pytest.raises(Refusal, match="cannot be written"):
        LabelFile(link).append("x", 1)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "label"]
    return rows
