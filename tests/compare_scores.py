"""Every logit of the core against the reference rule and ONNX Runtime's own Python, bit by bit.

    python -m tests.compare_scores --repository model_repository --comments FILE --rows 10000

Each comment goes alone through the plain Python reference of the rule (reference_tokenizer.py) and
the dense graph in an `onnxruntime` session of this process; and through the core with the published
version's served files, alone and in shuffled company. Prints the counts and writes them as JSON;
exit status 1 when an INT8 logit has another bit, or an FP32 one moves by more than its bound.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from bench.traffic.comments import load_pool
from contract import (
    ATTENTION_MASK,
    ENCODER_MODEL,
    FP32_INVARIANCE_ATOL,
    INPUT_IDS,
    LOGIT,
    ONNX_FILE,
    TOKENIZER_FILE,
)
from export.repository import load_scorer, verify, version_folder
from export.session import open_session
from tests.reference_tokenizer import ReferenceTokenizer
from train.artifacts import write_json


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compare_scores", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--comments", required=True, help="a labelled file, or 'synthetic'")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench/out/score_agreement.json"))
    arguments = parser.parse_args()
    artifact, folder = verify(arguments.repository), version_folder(arguments.repository)
    texts = load_pool(arguments.comments, size=arguments.rows).texts
    tokenizer = ReferenceTokenizer.from_json((folder / TOKENIZER_FILE).read_text("utf-8"))
    session = open_session(arguments.repository / ENCODER_MODEL / folder.name / ONNX_FILE)
    expected = np.empty(len(texts), np.float32)
    for row, text in enumerate(tqdm(texts, disable=None)):
        ids = np.array([tokenizer.encode(text)], np.int64)
        feeds = {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids)}
        expected[row] = session.run([LOGIT], feeds)[0][0]
    scorer = load_scorer(arguments.repository)
    alone = np.concatenate([scorer.score([text]).logit for text in texts])
    rng, company = np.random.default_rng(arguments.seed), np.empty_like(alone)
    order = rng.permutation(len(texts))
    for rows in np.array_split(order, max(1, len(texts) // 37)):
        company[rows] = scorer.score([texts[row] for row in rows]).logit
    found = {"alone": alone, "company": company}
    document = {
        "comments": len(texts),
        "precision": artifact["precision"],
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
        "seed": arguments.seed,
        "versions": {"onnxruntime": ort.__version__, "python": platform.python_version()},
        "other_bits": {name: int((logits != expected).sum()) for name, logits in found.items()},
        "largest_difference": {
            name: float(np.abs(logits - expected).max()) for name, logits in found.items()
        },
    }
    write_json(arguments.out, document)
    print(document)
    bound = 0.0 if artifact["precision"] == "int8" else FP32_INVARIANCE_ATOL
    return int(max(document["largest_difference"].values()) > bound)


if __name__ == "__main__":
    sys.exit(main())
