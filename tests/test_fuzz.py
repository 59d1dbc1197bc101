"""The fuzz targets under their sanitizers, for a few seconds each; `make fuzz` runs them long."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core import build
from core.binding import LIBRARY_VARIABLE
from tests.compare_tokenizers import generated
from tests.fuzz.run import SANITIZERS, SHARES, fuzz
from tests.reference_tokenizer import ReferenceTokenizer
from train.data.synthetic import generate
from train.data.tokenizer import Respelling, build_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("clang++") is None, reason="clang++ is not on PATH: nothing was fuzzed"
    ),
]


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """Folder of the targets and the library, which take half a minute and more to build."""
    return build.build_sanitized(build.CORE / "sanitized", SANITIZERS)


@pytest.mark.timeout(900)
def test_no_input_of_a_short_run_crashes_a_target(sanitized: Path) -> None:
    document = fuzz(1_000_000, 4, 1, comments="synthetic", programs=sanitized)
    assert document["targets"].keys() == SHARES.keys()
    for name, target in document["targets"].items():
        assert target["crash"] is None, name
        assert target["inputs"] > 100, name
        assert target["edges"] > 40, name


# Reads texts with the library that the environment names, and prints what it made of them.
_READ = """
import json, sys
from core.binding import NativeTokenizer
from contract import BadInput
given = json.load(sys.stdin)
native = NativeTokenizer(given["tokenizer"])
for at in range(0, len(given["tokenizer"]), 997):
    try:
        NativeTokenizer(given["tokenizer"][:at])
    except BadInput:
        pass
native.time_encoding(given["texts"], 8)
print(json.dumps([native.encode(text, 32) for text in given["texts"]]))
"""


@pytest.mark.timeout(900)
def test_sanitized_core_reads_as_the_reference_does(sanitized: Path) -> None:
    """The library that Python binds to, whole, under the sanitizers."""
    comments, _ = generate(300, 0)
    tokenizer = build_tokenizer(
        comments, max_vocab=500, max_len=32, respelling=Respelling(), phrases=50
    )
    words = [token for token in tokenizer.vocabulary[3:] if " " not in token]
    texts = [*comments, *generated(random.Random(2), words, 2_000)]
    reference = ReferenceTokenizer.from_json(tokenizer.to_json())
    expected = [list(reference.encode_and_cut(text)) for text in texts]
    library = sanitized / build.LIBRARY
    # The sanitizer must be there before anything else of the process.
    name = f"libclang_rt.asan-{os.uname().machine}.so"
    clang = ["clang++", f"-print-file-name={name}"]
    runtime = subprocess.run(clang, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip(f"clang has no {name}: the library was not run under the sanitizers")
    done = subprocess.run(
        [sys.executable, "-c", _READ],
        input=json.dumps({"tokenizer": tokenizer.to_json(), "texts": texts}),
        env={
            **os.environ,
            LIBRARY_VARIABLE: str(library),
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        },
        cwd=build.CORE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == expected
