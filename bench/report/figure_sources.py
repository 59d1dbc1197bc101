"""Which JSON documents the tables of the pages are of, and the command that makes each."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report import operation_tables, page_tables, plan_tables, quality_tables
from bench.report.page_tables import Render


@dataclass(frozen=True)
class FigureSource:
    """One JSON document, and the command that makes it."""

    path: str
    """Relative to bench/results."""
    command: str
    renders: dict[str, Render]
    """Tables by name. One named "NAME-targets" is added where the document judges itself."""


_WIKI = "COMMENTS=../shared/data/jigsaw_wiki_test.csv.gz"
_STUDENT = "--repository runs/student_repository"
_TRACED = "--traced runs/best/version/traced.onnx"
_TEST_SETS = "../shared/data/jigsaw_wiki_test.csv.gz ../shared/data/civil_comments_gender.csv.gz"
_LEAVE_ONE_OUT = "python -m experiments.leave_one_out --sources runs/sources.yaml --seeds 0 1 2"

SOURCES = (
    FigureSource(
        "peers/peers.json",
        f"python -m bench.serving.peers {_STUDENT} {_TRACED} --checkpoint runs/best/student",
        {"peers": page_tables.peers},
    ),
    FigureSource(
        "peers/avx512.json",
        f"python -m bench.serving.peers {_STUDENT} {_TRACED} --checkpoint runs/best/student",
        {"peers-avx512": page_tables.peers},
    ),
    FigureSource(
        "capacity/capacity.json",
        f"python -m bench.serving.capacity {_STUDENT} {_TRACED}",
        {"capacity": page_tables.capacity},
    ),
    FigureSource(
        "road/road.json",
        f"make bench-road REPOSITORY=runs/student_repository {_WIKI}",
        {
            "road": page_tables.road,
            "road-open": page_tables.road_open,
            "plan": plan_tables.plans,
            "plan-limits": plan_tables.limits,
            "plan-drivers": plan_tables.drivers,
        },
    ),
    FigureSource(
        "road/avx512.json",
        f"make bench-road REPOSITORY=runs/student_repository {_WIKI}",
        {"road-avx512": page_tables.road},
    ),
    FigureSource(
        "app/app.json",
        f"make bench-app REPOSITORY=runs/student_repository {_WIKI} "
        'BENCH_ARGS="--checkpoint runs/best/student"',
        {"app": page_tables.app},
    ),
    FigureSource(
        "cache/cache.json", "make bench-cache COMMENTS=synthetic", {"cache": page_tables.cache}
    ),
    FigureSource(
        "histograms/histograms.json",
        f"toxicity bench histograms --comments {_WIKI.removeprefix('COMMENTS=')}",
        {"histograms": operation_tables.histograms},
    ),
    FigureSource(
        "overload/overload.json",
        f"make overload {_WIKI}",
        {"overload": operation_tables.overload},
    ),
    FigureSource(
        "tune/tune.json",
        f'make tune {_WIKI} CAPACITY_ARGS="--seconds 4 --skip-s 1 --steps 3 --window-ms 0 4 16"',
        {"tune": page_tables.tune},
    ),
    FigureSource("load/bench.json", f"make bench {_WIKI}", {"load": page_tables.load}),
    FigureSource("parity/parity.json", f"make parity {_WIKI}", {"parity": quality_tables.parity}),
    FigureSource(
        "encoder/encoder.json",
        f'make bench-encoder {_WIKI} ENCODER_ARGS="--checkpoint runs/best/student"',
        {
            "encoder": page_tables.encoder,
            "encoder-batches": page_tables.encoder_batches,
            "encoder-operators": page_tables.encoder_operators,
        },
    ),
    FigureSource(
        "encoder/192x4.json",
        f'make bench-encoder {_WIKI} ENCODER_ARGS="--checkpoint runs/model"',
        {"encoder-192x4": page_tables.encoder},
    ),
    FigureSource(
        "length/length.json",
        'make bench-length LENGTH_ARGS="--rounds 3"',
        {"length": page_tables.length},
    ),
    FigureSource(
        "tokenizer/tokenizer.json",
        f"make bench-tokenizer {_WIKI} "
        'BENCH_ARGS="--vocabulary ../shared/data/jigsaw_wiki_train.csv.gz"',
        {"tokenizer": page_tables.tokenizer},
    ),
    FigureSource(
        "offline/offline.json",
        f"make bench-offline REPOSITORY=runs/student_repository {_WIKI}",
        {"offline": page_tables.offline},
    ),
    FigureSource(
        "offline/default.json",
        'make bench-offline COMMENTS=synthetic:200000 BENCH_ARGS="--rounds 2"',
        {"offline-default": page_tables.offline},
    ),
    FigureSource(
        "offline/ten-million.json",
        "make bench-offline COMMENTS=synthetic:10000000",
        {"offline-ten-million": page_tables.offline},
    ),
    FigureSource(
        "simulation/simulation.json",
        f"toxicity bench simulation --replicas 2 --comments {_WIKI.removeprefix('COMMENTS=')}",
        {"simulation": plan_tables.simulation},
    ),
    FigureSource(
        "core/tokenizer_agreement.json",
        "python -m tests.compare_tokenizers",
        {"agreement": page_tables.agreement},
    ),
    FigureSource(
        "core/fuzz.json", 'make fuzz FUZZ_ARGS="--runs 10000000"', {"fuzz": page_tables.fuzz}
    ),
    FigureSource("attack/attack.json", f"make attack {_WIKI}", {"attack": operation_tables.attack}),
    FigureSource("soak/soak.json", "make soak", {"soak": operation_tables.soak}),
    FigureSource("faults/faults.json", "make faults", {"faults": operation_tables.faults}),
    FigureSource(
        "eval/evaluation.json",
        f'make eval DATA="test {_TEST_SETS}" CURATED=../shared/data '
        'MODELS="runs/best/student runs/student_repository baseline baseline-words" '
        'EVAL_ARGS="--misspell --checklist"',
        {
            "quality": quality_tables.quality,
            "models": quality_tables.models,
            "quality-gain": quality_tables.quality_gain,
            "decisions": quality_tables.decisions,
            "fairness": quality_tables.fairness,
            "identities": quality_tables.identities,
            "calibration": quality_tables.calibration,
            "misspelled": quality_tables.misspelled,
            "checklist": quality_tables.checklist,
        },
    ),
    FigureSource(
        "eval/vectors.json",
        "python -m quality --run runs/vectors/student --models runs/vectors/student "
        f"runs/vectors_repository baseline baseline-words --checklist --data test {_TEST_SETS} "
        "--curated ../shared/data",
        {
            "vectors": quality_tables.quality,
            "vectors-gain": quality_tables.quality_gain,
            "vectors-fairness": quality_tables.fairness,
        },
    ),
    FigureSource(
        "ablation/ablation.json",
        "python -m experiments.ablation --data ../shared/data/jigsaw_wiki_train.csv.gz --test-data "
        "../shared/data/jigsaw_wiki_test.csv.gz --out-of-domain "
        "../shared/data/civil_comments_gender.csv.gz --harmless "
        "../shared/data/eval_nontoxic_identity_vs_random.csv.gz --word-vectors runs/glove.txt.gz "
        "--seeds 0 1 2",
        {"ablation": quality_tables.ablation, "plan-training": plan_tables.training},
    ),
    FigureSource(
        "minutes/minutes.json",
        "make minutes DATA=../shared/data/jigsaw_wiki_train.csv.gz",
        {"minutes": quality_tables.minutes},
    ),
    FigureSource(
        "leave-one-out/leave_one_out.json",
        _LEAVE_ONE_OUT,
        {"leave-one-out": quality_tables.leave_one_out},
    ),
    FigureSource(
        "leave-one-out/vectors.json",
        f"{_LEAVE_ONE_OUT} --word-vectors runs/glove.txt.gz",
        {"leave-one-out-vectors": quality_tables.leave_one_out},
    ),
    FigureSource(
        "monitor/monitor.json", f"make bench-monitor {_WIKI}", {"drift": operation_tables.drift}
    ),
    FigureSource(
        "monitor/healthy.json",
        "python -m bench.monitor.healthy",
        {"healthy": operation_tables.healthy},
    ),
    FigureSource(
        "rows/rows.json",
        "toxicity bench rows --rows 1250000 2500000",
        {"training-rows": operation_tables.training_rows},
    ),
    FigureSource("ladder/ladder.json", "make ladder", {"ladder": quality_tables.ladder}),
)
