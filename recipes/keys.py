"""What the result of a stage depends on, as one key: the same key, the same result.

It is made of the stage's flags, the bytes of the files that they name, the bytes of what earlier
stages made, the code, and the versions of the packages that compute.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report.machine import versions
from recipes.recipe import Stage
from storage.files import sha256_of

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "onnx", "onnxruntime", "onnxruntime-gpu")
_BUILT = "lib"
_DATA = (".cpp", ".h", ".inc", ".txt", ".json", ".yaml", ".jinja")
"""Files beside the Python code that decide something: the core's sources, tables, templates."""


def key_of(stage: Stage, arguments: Sequence[str], made: Mapping[str, str]) -> str:
    """SHA-256, in hexadecimal digits, of all that decides what this command line gives.

    `made` has the digest of what each stage made that this one needs.
    """
    parts = {
        "module": stage.command.module,
        "arguments": list(arguments),
        "threads": stage.threads,
        "files": {a: sha256_of(Path(a)) for a in arguments if _is_file(a)},
        "needs": {name: made[name] for name in stage.needs},
        "code": {package: _code(package) for package in ("contract.py", *stage.command.sources)},
        "packages": versions(*_PACKAGES),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except OSError:  # longer than a name may be
        return False


@functools.cache
def _code(package: str) -> str:
    """Digest of a package's code; comments and docstrings decide nothing."""
    path = _ROOT / package
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.suffix == ".py":
            digest.update(f"{file.relative_to(_ROOT)}\n{_without_words(file)}\n".encode())
        elif file.suffix in _DATA and file.is_file() and file.parent.name != _BUILT:
            digest.update(f"{file.relative_to(_ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _without_words(file: Path) -> str:
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
