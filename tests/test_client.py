"""The client and `score`: addresses, requests that a server takes, comments as they were given."""

from __future__ import annotations

import io
import itertools
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import (
    HOST,
    MAX_BATCH_SIZE,
    MAX_COMMENT_BYTES,
    MAX_REQUEST_BYTES,
    TEXT,
    BadInput,
    ToxicityError,
)
from serve.client import Protocol, requests_of, score_comments
from serve.score import _lines

ROOT = Path(__file__).parent.parent
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", ":8000", ""),
        *("http://127.0.0.1:8000", "127.0.0.1:8000/", "a b:80", "a..b:80", "ü:80", "a:8\n0"),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_address_that_is_none_is_named(url: str, protocol: Protocol) -> None:
    with pytest.raises(BadInput, match="expected HOST:PORT") as caught:
        score_comments(["a"], protocol=protocol, url=url)
    assert repr(url) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"outputs":[]}',
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
        b"",
    ],
)
def test_another_server_is_not_ours(answer: bytes) -> None:
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"{HOST}:{listener.getsockname()[1]}"
        with pytest.raises(ToxicityError, match=url) as caught:
            score_comments(["a"], url=url)
        thread.join()
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(0, 300_000), max_size=200))
def test_requests_hold_what_a_server_takes(sizes: list[int]) -> None:
    encoded = [bytes(size) for size in sizes]
    batches = list(requests_of(encoded))
    assert [raw for batch in batches for raw in batch] == encoded
    for batch in batches:
        assert 0 < len(batch) <= MAX_BATCH_SIZE
        assert len(batch) == 1 or sum(4 + len(raw) for raw in batch) <= MAX_REQUEST_BYTES // 2
    for one, other in itertools.pairwise(batches):  # as few as they can be
        size = sum(4 + len(raw) for raw in [*one, other[0]])
        assert len(one) == MAX_BATCH_SIZE or size > MAX_REQUEST_BYTES // 2


@pytest.mark.parametrize("sign", ["a", "é", "я", "中", "한", "🙂", '"', "\\"])
def test_the_longest_comment_fits_a_request(sign: str) -> None:
    text = sign * (MAX_COMMENT_BYTES // len(sign.encode()))
    tensor = {"name": TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    assert len(json.dumps({"inputs": [tensor]})) <= MAX_REQUEST_BYTES


def test_lines_are_comments_to_the_last_character() -> None:
    lines = io.BytesIO(b"a\rb\r\r\nc\x85d\x0be\r\n\n \n\xc2\x85\xe2\x80\xa8 end")
    assert list(_lines(lines)) == ["a\rb\r", "c\udc85d\x0be", "", " ", "\x85\u2028 end"]


def test_a_bad_address_is_one_line_and_status_2() -> None:
    command = [sys.executable, "-m", "serve.score", "--url", f"{HOST}:99999", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: the server's address is '{HOST}:99999', expected HOST:P")
    assert done.stderr.count("\n") == 1
