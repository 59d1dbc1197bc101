"""Plan a fleet from measured figures: `toxicity plan`.

    toxicity plan --rps 1000000 --p99-ms 50 --repeats 0.3 --zones 3
    toxicity plan --rps 100000 --simulate --plot plan.png
    toxicity plan --train-rows 1800000

Needs no server: reads what `toxicity bench road` wrote. A figure that no result file holds is a
flag, and without it what rests on it is said not to be known.
"""

from __future__ import annotations

import json

from console.options import parse_config, run
from fleet.arithmetic import plan
from fleet.config import PlanConfig
from fleet.measured import read_beside, read_measured
from fleet.report import document, words_of_plan, words_of_scenarios, words_of_training
from fleet.training import project

__all__ = ["PlanConfig", "main"]


def main() -> None:
    config = parse_config(
        PlanConfig, None, prog="python -m fleet", description="What a load needs."
    )
    measured = planned = scenarios = training = None
    words = []
    if config.rps is not None:
        measured = read_measured(config.results, config.precision, config.p99_ms)
        planned = plan(config, measured)
        beside = read_beside(config.results, measured)
        words.append(words_of_plan(planned, measured, config, beside))
    if measured and planned and config.simulate:
        from fleet.scenarios import run_scenarios  # the core and simpy, for this alone

        scenarios = run_scenarios(config, measured, planned)
        words.append(words_of_scenarios(scenarios, measured, config))
    if config.train_rows is not None:
        training = project(config)
        words.append(words_of_training(training))
    if measured and planned and config.plot:
        from fleet.plots import plot_plan

        plot_plan(config, measured, planned, scenarios, config.plot)
        words.append(f"wrote {config.plot}")
    if config.json:
        print(json.dumps(document(config, measured, planned, scenarios, training)))
    else:
        print("\n\n".join(words))


if __name__ == "__main__":
    run(main)
