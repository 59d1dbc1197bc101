"""The end of a training: the best weights calibrated and measured, and the finished folder."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from contract import ATTRIBUTES, THRESHOLDS_FILE, TOKENIZER_FILE
from storage.files import remove
from train import artifacts, by_source
from train.config import TrainConfig
from train.corpus import Corpus
from train.curves import plot_curves
from train.data.batches import TokenizedOnTheFly
from train.data.split import essence
from train.distributed import Processes
from train.examples import Examples
from train.methods import attributes, calibration, distill, qat
from train.operating.choice import Labelled
from train.operating.document import Thresholds, thresholds_of
from train.operating.words import told
from train.resume import Work
from train.start import Network
from train.throughput import flops_per_token, matmul_peak
from train.validation import classification_metrics, logits_of, probability_of


@dataclass(frozen=True)
class Finished:
    """A training after its last epoch."""

    config: TrainConfig
    processes: Processes
    corpus: Corpus
    data: Examples
    network: Network
    work: Work
    progress: dict[str, Any]
    pretraining: dict[str, Any] | None

    @property
    def best(self) -> dict[str, Any]:
        """The epoch whose weights are kept."""
        return max(self.progress["history"], key=lambda entry: entry["auroc"])


def finish(run: Finished, began: float, say: Callable[[str], None]) -> None:
    """Write `config.out` and say what it is; `began` is the training's start, monotonic seconds."""
    encoder, out = run.network.encoder, run.config.out
    weights = run.work.folder / artifacts.BEST_FOLDER / artifacts.WEIGHTS_FILE
    encoder.load_state_dict(artifacts.load_tensors(weights, "start over with --restart"))
    validation = run.corpus.split.validation
    labels = run.corpus.comments.labels[validation]
    logits = logits_of(run.network.trained, run.data.ids, validation)
    # Of --soft-labels the scale is learned: the classes would sharpen it.
    soft = run.config.soft_labels
    chosen = calibration.AS_TRAINED if soft else calibration.choose(labels, logits)
    calibration.fold_in(encoder, chosen.fit)
    results = _results(run, labels, logits, chosen.fit)
    results["calibration_chosen"] = {"name": chosen.name, "held_out": chosen.held_out}
    thresholds = _thresholds(run, labels, chosen.fit(logits))
    if run.config.attributes:
        results[ATTRIBUTES] = _attributes(run)

    folder = run.work.folder / artifacts.FINISHED_FOLDER
    if folder.exists():
        remove(folder)
    artifacts.save_weights(folder, encoder)
    artifacts.write_atomically(folder / TOKENIZER_FILE, run.corpus.tokenizer.to_json())
    artifacts.write_json(folder / artifacts.CONFIG_FILE, _record(run, results, chosen.fit))
    artifacts.write_json(folder / artifacts.SPLIT_FILE, run.corpus.split.to_json())
    artifacts.write_json(folder / artifacts.METRICS_FILE, results)
    artifacts.write_atomically(folder / THRESHOLDS_FILE, thresholds.to_text())
    plot_curves(results["history"], folder / artifacts.CURVES_FILE)
    artifacts.finish(run.work.folder, out)

    for line in _lines(results, None if soft else chosen, len(labels)):
        say(line)
    for line in told(thresholds):
        say(line)
    say(
        f"{out}: best epoch {results['best_epoch']}, "
        f"{results['real_tokens_per_second']:,} real tokens/s, "
        f"{100 * results['matmul_peak_share']:.0f} % of the matmul peak, "
        f"{time.monotonic() - began:.0f} s in all"
    )


def _thresholds(run: Finished, labels: np.ndarray, logits: np.ndarray) -> Thresholds:
    """Of the validation split, whose calibrated `logits` [n] these are."""
    texts = run.corpus.comments.texts
    groups = [essence(texts[row]) for row in run.corpus.split.validation]
    labelled = Labelled.of(labels, probability_of(logits), groups)
    return thresholds_of(labelled, source="validation split", scores="PyTorch")


def _attributes(run: Finished) -> dict[str, dict[str, Any]]:
    """Calibrate each attribute's head; what metrics.json says of them, by name."""
    corpus, data, heads = run.corpus, run.data, run.network.heads
    parts = {"validation": corpus.split.validation, "test": corpus.split.test}
    logits = {part: logits_of(heads, data.ids, rows)[:, 1:] for part, rows in parts.items()}
    shares = {part: data.attributes[rows] for part, rows in parts.items()}
    if corpus.test_file:
        comments = corpus.test_file.comments
        ids = TokenizedOnTheFly(comments.texts, corpus.tokenizer)
        logits["test_file"] = logits_of(heads, ids, np.arange(len(ids)))[:, 1:]
        shares["test_file"] = attributes.targets(run.config.attributes, comments, len(ids))
    found: dict[str, dict[str, Any]] = {}
    for column, name in enumerate(run.config.attributes):
        own = shares["validation"][:, column], logits["validation"][:, column]
        chosen = calibration.AS_TRAINED if run.config.soft_labels else attributes.choose(*own)
        calibration.fold_in_row(run.network.transformer.attribute_head, column, chosen.fit)
        found[name] = {
            **{
                p: attributes.auroc(shares[p][:, column], of[:, column]) for p, of in logits.items()
            },
            "calibration": dataclasses.asdict(chosen.fit),
            "calibration_chosen": {"name": chosen.name, "held_out": chosen.held_out},
        }
    return found


def _results(
    run: Finished, labels: np.ndarray, logits: np.ndarray, platt: calibration.Platt
) -> dict[str, Any]:
    """metrics.json; `labels` and `logits` [n] are the validation split's, not yet calibrated."""
    corpus, data, trained = run.corpus, run.data, run.network.trained
    test, history = corpus.split.test, run.progress["history"]
    results: dict[str, Any] = {
        "synthetic_data": bool(corpus.comments.source["synthetic"]),
        "best_epoch": run.best["epoch"],
        "stopped_early": len(history) < run.config.epochs,
        "validation": classification_metrics(labels, platt(logits)),
        "test": classification_metrics(
            corpus.comments.labels[test], logits_of(trained, data.ids, test)
        ),
        "history": history,
        "calibration": calibration.comparison(labels, logits),
        # As the loss had it, a float32.
        "pos_weight": torch.tensor(data.pos_weight).item(),
        "out_of_vocabulary": data.unknown,
        "comments_cut_at_max_len": data.ids.count_cut(len(corpus.comments.texts)),
        "training_seconds": round(run.progress["seconds"], 1),
        **_speed(run),
        **by_source.figures_by_source(corpus, data, trained, labels, platt(logits)),
        "pretraining": run.pretraining,
    }
    if corpus.test_file:
        comments = corpus.test_file.comments
        ids = TokenizedOnTheFly(comments.texts, corpus.tokenizer)  # each is read once
        results["test_file"] = {
            "source": comments.source,
            "in_data": dataclasses.asdict(corpus.test_file.in_data),
            **classification_metrics(comments.labels, logits_of(trained, ids, np.arange(len(ids)))),
        }
    if corpus.earlier.tuned and run.network.ranges:
        compared = run.network.transformer, data.ids, corpus.split.validation, labels
        start = corpus.earlier.tuned.folder
        results["quantization"] = qat.compare(start, run.network.ranges, *compared)
    return results


def _speed(run: Finished) -> dict[str, float]:
    """The peak is that of one device, measured now."""
    progress, processes = run.progress, run.processes
    per_second = progress["tokens"] / max(progress["seconds"], 1e-9)
    dtype = processes.autocast_dtype or torch.float32
    peak = processes.world * matmul_peak(processes.device, dtype)
    flops = flops_per_token(run.network.encoder.config)
    return {
        "real_tokens_per_second": round(per_second),
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "matmul_peak_share": round(flops * per_second / peak, 4),
    }


def _record(run: Finished, results: dict[str, Any], platt: calibration.Platt) -> dict[str, Any]:
    """config.json."""
    corpus, device, earlier = run.corpus, run.processes.device, run.corpus.earlier
    quantization = distillation = None
    if earlier.tuned:
        quantization = {
            "start_sha256": artifacts.sha256_of(earlier.tuned.folder / artifacts.WEIGHTS_FILE),
            "start_validation_auroc": results["quantization"]["float"]["auroc"],
            "activation_ranges": run.network.ranges,
        }
    if earlier.teachers:
        distillation = distill.record(run.config, earlier.teachers, corpus.extra)
    vectors = run.config.word_vectors
    record = {
        "model": run.network.encoder.config.to_json(),
        "train": run.config.to_json(),
        "data": corpus.comments.source,
        "sources": [source.to_json() for source in corpus.sources] or None,
        "word_vectors": vectors and {"name": vectors.name, "sha256": artifacts.sha256_of(vectors)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "unicode": corpus.tokenizer.rule.unicode_version,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": run.processes.world,
        "quantization": quantization,
        "calibration": dataclasses.asdict(platt),
        "distillation": distillation,
    }
    if run.config.attributes:
        fits = {name: of["calibration"] for name, of in results[ATTRIBUTES].items()}
        record["attribute_calibration"] = fits
    return record


def _lines(
    results: dict[str, Any], chosen: calibration.Chosen | None, validation_comments: int
) -> list[str]:
    """What a person is told of metrics.json; `chosen` is None where nothing is calibrated."""
    lines = [calibration.summary(results["calibration"], chosen)] if chosen else []
    for name in ("validation", "test", "test_file"):
        if metrics := results.get(name):
            shown = ("accuracy", "precision", "recall", "f1", "auroc")
            values = "  ".join(f"{key} {metrics[key]:.4f}" for key in shown)
            lines.append(f"{name:<10} {values}")
    lines += by_source.table_lines(results)
    lines += attributes.lines(results.get(ATTRIBUTES, {}))
    if table := results.get("quantization"):
        lines += qat.table_lines(table, validation_comments)
    return lines
