"""What `toxicity` can do: each command's name, its module and its config. Imports none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contract import BadInput


@dataclass(frozen=True)
class Entry:
    """One command, run by `main()` of `module`."""

    module: str
    config: str
    """Class with its flags, as module:name."""
    summary: str
    positional: str | None = None
    """Field that is given without a flag."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields that are no flags here."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of fields that differ from the config's own."""
    flags: tuple[str, ...] = ()
    """Fields that are flags; empty for all of them."""
    instead: Mapping[str, Entry] = field(default_factory=dict)
    """Flags that run another command, whose positional field is their value."""

    def chosen(self, argv: Sequence[str]) -> tuple[Entry, list[str]]:
        """The command that this command line is for, and its own command line.

        Raises BadInput for two flags that each run another.
        """
        flags = [word.partition("=")[0] for word in argv]
        if len(both := [flag for flag in self.instead if flag in flags]) > 1:
            raise BadInput(f"{' and '.join(both)} are given, expected one; leave the other out")
        for place, word in enumerate(argv):
            flag, equals, value = word.partition("=")
            if flag in self.instead:
                rest = argv[place + 1 :] if equals else argv[place + 2 :]
                named = [value] if equals else argv[place + 1 : place + 2]
                return self.instead[flag], [*argv[:place], *named, *rest]
        return self, list(argv)


_VERSIONS = ("export.versions", "export.versions:VersionsConfig")
_CANARY = ("serve.canary", "serve.canary:CanaryConfig")
_DOOR = ("serve.door", "serve.settings:DoorConfig")
_SIGNED = ("repository", "require_signature")
_RECIPE = Entry(
    *("recipes.__main__", "recipes.__main__:RecipeConfig"),
    "train, export and evaluate by a recipe, stage by stage; --list shows them",
    positional="recipe",
)
_BUDGET = Entry(
    *("recipes.budget", "recipes.budget:BudgetConfig"),
    "train the largest plan that fits into a time, by the measured speed of this machine",
    positional="minutes",
)

COMMANDS: dict[str, dict[str, Entry]] = {
    "From comments to a model": {
        "train": Entry(
            *("train.__main__", "train.config:TrainConfig"),
            "train on labelled comments, into runs/model; --recipe best for the best classifier, "
            "--minutes 10 for what fits into that time",
            instead={"--recipe": _RECIPE, "--minutes": _BUDGET},
        ),
        "recipe": _RECIPE,
        "export": Entry(
            *("export.__main__", "export.config:ExportConfig"),
            "trace, quantize, pass the gates, publish into model_repository/",
        ),
        "versions": Entry(
            *_VERSIONS,
            "list the published versions, each verified",
            fixed={"action": "list"},
            flags=_SIGNED,
        ),
        "publish": Entry(
            *_VERSIONS,
            "let a published version serve, the newest by default",
            fixed={"action": "publish"},
            flags=(*_SIGNED, "version", "sign_key"),
        ),
        "rollback": Entry(
            *_CANARY,
            "end the canary; without one, let the version serve that did before the current one",
            fixed={"action": "rollback"},
            flags=(*_SIGNED, "run_dir", "ready_timeout_s"),
        ),
        "thresholds": Entry(
            *("export.thresholds", "export.thresholds:ThresholdsConfig"),
            "where a version decides, and what that does; new thresholds from your own labels",
        ),
        "fetch": Entry(
            *("export.fetch", "export.fetch:FetchConfig"),
            "bring a published version from an object store, verified, whole or not at all",
            positional="source",
        ),
        "keygen": Entry(
            *_VERSIONS,
            "make the pair of keys that signs versions",
            fixed={"action": "keygen"},
            flags=("private_key", "public_key"),
        ),
    },
    "Serve": {
        "serve": Entry(
            *_DOOR,
            "start the servers behind haproxy, or load the current version into them",
            fixed={"action": "start"},
        ),
        "ui": Entry(
            *("serve.ui", "serve.ui:UiConfig"),
            "the page for people: its address, once the server runs",
            fixed={"action": "start"},
        ),
        "status": Entry(
            *_DOOR,
            "what runs: processes, versions, addresses",
            fixed={"action": "status"},
            flags=("run_dir", "repository"),
        ),
        "stop": Entry(
            *_DOOR,
            "end all of it, finishing what is in flight",
            fixed={"action": "stop"},
            flags=("run_dir", "stop_timeout_s"),
        ),
        "canary": Entry(
            *_CANARY,
            "serve a second version to a share of the requests, or to copies, and compare",
            fixed={"action": "run"},
            flags=(
                *("version", "share", "shadow", "end", "json", "for_minutes", "most_flips"),
                *("p99_ms", "most_shift", "most_failures", "least_comments", "run_dir"),
                "ready_timeout_s",
            ),
        ),
        "promote": Entry(
            *_CANARY,
            "let the canary's version be the current one, in every server",
            fixed={"action": "promote"},
            flags=("run_dir", "ready_timeout_s"),
        ),
        "keys": Entry(
            *("serve.keys", "serve.keys:KeysConfig"),
            "add, remove or list the API keys of clients",
            positional="action",
        ),
        "monitor": Entry(
            *("monitor.__main__", "monitor.config:MonitorConfig"),
            "watch what serves: drift, calibration, groups, latency; --once for cron",
        ),
        "score": Entry(
            *("serve.score", "serve.score:ScoreConfig"),
            "score comments with the running server, or a file without one",
            positional="texts",
        ),
    },
    "Measure": {
        "eval": Entry(
            *("quality.__main__", "quality.config:QualityConfig"),
            "quality, fairness and calibration of several models, into runs/eval",
        ),
        "card": Entry(
            *("quality.card.__main__", "quality.card.__main__:CardConfig"),
            "write the model card of the version that serves, from its evaluation",
        ),
        "baseline": Entry(
            *("quality.__main__", "quality.config:QualityConfig"),
            "the same of TF-IDF and logistic regression, into runs/baseline",
            defaults={"models": ("baseline", "baseline-words"), "out": "runs/baseline"},
        ),
        "migrate": Entry(
            *("migrate.__main__", "migrate.config:MigrateConfig"),
            "from another service's scores to this server: what to change, what will differ",
            positional="source",
        ),
        "capacity": Entry(
            *("bench.serving.capacity", "bench.serving.capacity:CapacityConfig"),
            "search the highest rate that meets the objective",
        ),
        "explain-latency": Entry(
            *("serve.latency", "serve.latency:LatencyConfig"),
            "where the time of the running server's requests goes, stage by stage",
        ),
        "tune": Entry(
            *("bench.serving.tune", "bench.serving.tune:TuneConfig"),
            "choose instances, window and largest batch by measurement",
        ),
        "plan": Entry(
            *("fleet.__main__", "fleet.config:PlanConfig"),
            "what a load needs, from measured figures: machines, memory, money, what breaks first",
        ),
        "ladder": Entry(
            *("experiments.ladder", "experiments.ladder:LadderConfig"),
            "distil students, export them, plot AUROC against speed",
        ),
        "minutes": Entry(
            *("experiments.minutes", "experiments.minutes:MinutesConfig"),
            "train the plans of --minutes, plot AUROC against the minutes that they take",
        ),
        "ablation": Entry(
            *("experiments.ablation", "experiments.ablation:AblationConfig"),
            "one training a change from the default: what lifts AUROC",
        ),
        "leave-one-out": Entry(
            *("experiments.leave_one_out", "experiments.leave_one_out:LeaveOneOutConfig"),
            "one training a source of comments, that one held out, beside TF-IDF",
        ),
        "recipe-seeds": Entry(
            *("experiments.recipe_seeds", "experiments.recipe_seeds:RecipeSeedsConfig"),
            "a recipe with several seeds: means and intervals of what it gives",
        ),
        "long-text": Entry(
            *("experiments.long_text", "experiments.long_text:LongTextBenchConfig"),
            "quality of windows over comments beyond the encoder's length",
        ),
    },
    "This machine": {
        "doctor": Entry(
            *("toxicity.doctor", "toxicity.doctor:DoctorConfig"),
            "what this machine can do, and what is missing",
        ),
        "build": Entry(
            *("core.build", "core.options:BuildConfig"),
            "build the native core",
        ),
    },
}
"""By heading of the help."""

BENCH: dict[str, dict[str, Entry]] = {
    "The running server": {
        "load": Entry(
            *("bench.run", "bench.run:BenchConfig"), "load it with Locust, HTTP then gRPC"
        ),
        "overload": Entry(
            *("bench.serving.overload", "bench.serving.overload:OverloadConfig"),
            "load it at three times its capacity",
        ),
        "parity": Entry(
            *("bench.model.parity", "bench.model.parity:ParityConfig"),
            "compare it with PyTorch on 1,000 comments",
        ),
    },
    "Servers of its own": {
        "road": Entry(
            *("bench.serving.road", "bench.serving.road:RoadConfig"),
            "the native server beside a Python backend and one that does nothing",
        ),
        "cache": Entry(
            *("bench.serving.cache", "bench.serving.cache:CacheBenchConfig"),
            "what the cache of repeated comments costs and saves",
        ),
        "histograms": Entry(
            *("bench.serving.histograms", "bench.serving.histograms:HistogramBenchConfig"),
            "what the histograms on the metrics port cost",
        ),
        "simulation": Entry(
            *("bench.serving.simulation", "bench.serving.simulation:SimulationConfig"),
            "the simulation of `toxicity plan` beside two real replicas",
        ),
        "peers": Entry(
            *("bench.serving.peers", "bench.serving.peers:PeersConfig"),
            "ours beside FastAPI, LitServe and the plain graph on Triton",
        ),
        "app": Entry(
            *("bench.serving.app", "bench.serving.app:AppBenchConfig"),
            "the application's moderations beside the native road and FastAPI",
        ),
        "attack": Entry(
            *("bench.hostile.attack", "bench.hostile.attack:AttackConfig"),
            "hostile requests, honest clients beside",
        ),
        "soak": Entry(
            *("bench.hostile.soak", "bench.hostile.soak:SoakConfig"),
            "an hour of mixed load with publishes, rollbacks and kills",
        ),
    },
    "Without a server": {
        "offline": Entry(
            *("bench.serving.offline", "bench.serving.offline:OfflineBenchConfig"),
            "the scoring of a file beside the core alone",
        ),
        "encoder": Entry(
            *("bench.model.encoder", "bench.model.encoder:EncoderBenchConfig"),
            "the serving graph beside other runtimes",
        ),
        "length": Entry(
            *("bench.model.length", "bench.model.length:LengthBenchConfig"),
            "cost of a comment up to 4,096 tokens",
        ),
        "rows": Entry(
            *("bench.model.rows", "bench.model.rows:RowsBenchConfig"),
            "a training's memory by the rows of its file",
        ),
        "monitor": Entry(
            *("bench.monitor.run", "bench.monitor.run:MonitorBenchConfig"),
            "false alarms and time to detect of the monitor's rules, beside river's detectors",
        ),
        "tokenizer": Entry(
            *("bench.model.tokenizer", "bench.model.tokenizer:TokenizerBenchConfig"),
            "text to ids beside Hugging Face's tokenizers",
        ),
        "faults": Entry(
            *("bench.faults.run", "bench.faults.run:FaultsConfig"),
            "kill, starve and damage the commands at random moments",
        ),
    },
}
"""`toxicity bench`: the same."""
