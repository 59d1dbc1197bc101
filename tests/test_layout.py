"""The architecture is the layout: imports point one way, and `make help` is true."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

import contract

ROOT = Path(__file__).parent.parent
STAGES = (
    "contract storage console core train export serve quality bench experiments toxicity".split()
)
"""Each may import itself and what stands before it."""


def imports_of(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def back_edges(stage: str, source: str) -> set[str]:
    later = STAGES[STAGES.index(stage) + 1 :]
    return imports_of(source) & set(later)


@pytest.mark.parametrize("stage", STAGES)
def test_imports_point_one_way(stage: str) -> None:
    files = [ROOT / "contract.py"] if stage == "contract" else list((ROOT / stage).rglob("*.py"))
    assert files
    for file in files:
        assert not back_edges(stage, file.read_text("utf-8")), file


def test_a_back_edge_is_found() -> None:
    assert back_edges("train", "def f():\n    from export.graph.trace import trace\n") == {"export"}
    assert back_edges("core", "import train.data.tokenizer\nimport contract\n") == {"train"}


def test_make_help_lists_exactly_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)) == set(phony[1].split())


def test_variables_in_make_help_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in re.findall(r"^[a-z-]+:.*## .*\|(.*)$", makefile, re.MULTILINE):
        for name in re.findall(r"\b[A-Z][A-Z_]+\b", line):
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), name


def test_no_file_names_a_tensor_as_a_string() -> None:
    """Tensor names come from contract.py; a second spelling would drift."""
    for stage in STAGES[1:]:
        for file in (ROOT / stage).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            strings = {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not strings & {"input_ids", "attention_mask"}, file


def test_no_source_of_the_core_spells_what_the_contract_says() -> None:
    """core/build.py writes these into the header that the core includes."""
    names = ("INPUT_IDS", "ATTENTION_MASK", "ACCUMULATED_COUNTS", "LOGIT", "TEXT", "PROBABILITY")
    names += ("MODEL_VERSION", "CACHE_BYTES", "MAX_BATCH", "ONNX_FILE", "TOKENIZER_FILE")
    names += ("ARTIFACT_FILE", "ORT_FILE")
    spelled = {f'"{getattr(contract, name)}"' for name in names}
    sources = [*ROOT.glob("core/*/*.cpp"), *ROOT.glob("core/*/*.h")]
    assert sources
    for file in sources:
        literals = set(re.findall(r'"[^"\n]*"', file.read_text("utf-8")))
        assert not spelled & literals, file
