# Raw labelled comments to a measured Triton deployment. `make help` lists the targets.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash
# What a target prints is the same under another make, from make 4.4 on.
MAKEFLAGS += --no-print-directory

# --- Variables, each settable on the command line or in the environment ------------------
DATA ?=
SOURCES ?=
TEST_DATA ?=
TRAIN_ARGS ?=
RECIPE ?= best
RECIPE_ARGS ?=
PRECISION ?= int8
EXPORT_ARGS ?=
REPOSITORY ?= model_repository
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
REPLICAS ?=
GRPC ?=
SERVE_ARGS ?=
UI_ARGS ?=
MONITOR_ARGS ?=
VERSION ?=
SIGN_KEY ?=
TEXT ?= you are a wonderful person
USERS ?= 16
SECONDS_EACH ?= 20
COMMENTS ?=
BENCH_ARGS ?=
RATE ?= 0
CAPACITY ?=
CAPACITY_ARGS ?=
ENCODER_ARGS ?=
LADDER_ARGS ?=
LENGTH_ARGS ?=
MINUTES_ARGS ?=
ABLATION_ARGS ?=
LEAVE_ONE_OUT_ARGS ?=
TEST_ARGS ?=
FUZZ_ARGS ?=
FAULTS_ARGS ?=
ATTACK_ARGS ?=
MINUTES ?=
SOAK_ARGS ?=
FILE ?=
SCORE_ARGS ?=
SANITIZE ?=
TARGET ?=
MODELS ?=
CURATED ?=
EVAL_ARGS ?=
FIGURES_ARGS ?=
PYTHON ?=
DOCTOR_ARGS ?=
FORCE ?=

# They reach a command by the environment, letter by letter: neither make nor a shell expands what
# is in them. Those that end in _ARGS are a piece of a command line, quotes and all.
LITERAL := DATA SOURCES TEST_DATA RECIPE PRECISION REPOSITORY HTTP_PORT GRPC_PORT METRICS_PORT REPLICAS TEXT USERS SECONDS_EACH COMMENTS MINUTES RATE CAPACITY FILE SANITIZE TARGET MODELS CURATED PYTHON FORCE
FLAGS := TRAIN_ARGS RECIPE_ARGS EXPORT_ARGS BENCH_ARGS CAPACITY_ARGS ENCODER_ARGS LADDER_ARGS LENGTH_ARGS MINUTES_ARGS ABLATION_ARGS LEAVE_ONE_OUT_ARGS TEST_ARGS FUZZ_ARGS ATTACK_ARGS SOAK_ARGS SCORE_ARGS UI_ARGS MONITOR_ARGS EVAL_ARGS FIGURES_ARGS DOCTOR_ARGS
define newline


endef
$(foreach name,$(LITERAL),$(eval override $(name) := $$(value $(name))))
$(foreach name,$(FLAGS),$(eval override $(name) := $$(subst $$(newline), ,$$(value $(name)))))
# An empty one is not given: a program may read the same name.
export $(foreach name,$(LITERAL),$(if $($(name)),$(name)))

VENV ?= .venv
RUN := $(VENV)/bin/python
TOOL := $(VENV)/bin/toxicity
READY := $(VENV)/.ready
# GPU wheels where there is an NVIDIA driver, CPU wheels otherwise.
RUNTIME := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)
# One process more than the two cores that the tests are made for: much of their time they wait for
# a server. Each runs whole files (tests/conftest.py). They start hundreds of processes, each of
# which would compile every module anew where PYTHONDONTWRITEBYTECODE is set.
PYTEST := PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest -n 3 --no-loadscope-reorder
PORTS := --http-port="$$HTTP_PORT" --grpc-port="$$GRPC_PORT" --metrics-port="$$METRICS_PORT"
IN_REPOSITORY := --repository="$$REPOSITORY"
OF_COMMENTS := $(if $(COMMENTS),--comments="$$COMMENTS")
# An array of the words in a variable, or of the one file that it names, spaces and all.
array = read -rd '' -a $(2) <<< "$$$(1)"; [[ ! -e $$$(1) ]] || $(2)=("$$$(1)");
EVALUATE = $(call array,DATA,data) $(call array,CURATED,curated) $(TOOL) $@ $(if $(DATA),--data "$${data[@]}") $(if $(CURATED),--curated "$${curated[@]}")
define ASK_BEFORE_MODELS
model=$$(find runs -name model.safetensors -print -quit 2>/dev/null); \
if [[ -n $$model && -z $$FORCE ]]; then \
	[[ -t 0 ]] || { echo "error: $$model is a trained model, expected FORCE=1 to delete it without a terminal to ask; run \`make clean FORCE=1\`" >&2; exit 2; }; \
	read -rp "$$model is a trained model, and runs/ goes with it; delete? [y/N] " answer; \
	[[ $$answer == [yY]* ]] || { echo 'error: clean is stopped, expected y; nothing was deleted' >&2; exit 2; }; \
fi
endef
# The oldest, which most of the tests have run on; .ci/run tests the newest beside it.
FOUND_PYTHON = $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(shell $(p) -c 'import sys; (3, 11) <= sys.version_info < (3, 15) and print("$(p)")' 2>/dev/null)))

.PHONY: help install native train best export versions publish rollback serve ui status stop monitor score eval baseline doctor test test-all test-fast lint coverage check fuzz faults bench bench-app bench-road bench-offline bench-cache bench-encoder bench-length bench-peers bench-tokenizer bench-monitor capacity tune overload parity attack soak ladder minutes ablation leave-one-out figures fleet-tools fleet docs clean

help: ## list the targets and their variables
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  %-13s %s\n", $$1, $$2; if ($$3) printf "  %-13s   %s\n", "", $$3}'

install: $(READY) ## make the virtual environment from the pinned constraints|PYTHON=python3.13 VENV=folder

$(READY): pyproject.toml constraints.txt
	@test -n "$${PYTHON:-$(FOUND_PYTHON)}" || { echo "error: no Python 3.11 to 3.14 found, expected one on PATH; install it or give PYTHON=/path/to/python3.11" >&2; exit 2; }
	@# Where .venv is a link, the environment is what it leads to.
	"$${PYTHON:-$(FOUND_PYTHON)}" -m venv "$$(readlink -f $(VENV))"
	$(RUN) -m pip install -q -c constraints.txt pip setuptools ziglang cmake ninja
	@# The core, which is of no Python's release, is compiled while the packages come. Of pytriton
	@# only its tritonserver is used; its own requirements would hold back the others.
	$(RUN) -c 'from core.build import library; print(library())' & core=$$!; \
	$(RUN) -m pip install -q -c constraints.txt torch && \
	$(RUN) -m pip install -q -c constraints.txt --no-build-isolation -e '.[$(RUNTIME),serve,s3,bench,test]' && \
	$(RUN) -m pip install -q -c constraints.txt --no-deps nvidia-pytriton && \
	wait $$core || { kill $$core 2>/dev/null; wait; exit 1; }
	@touch $@

native: $(READY) ## build the core; SANITIZE builds it for tests with the machine's compiler|SANITIZE=address,undefined TARGET=aarch64
	$(TOOL) build $(if $(SANITIZE),--sanitize="$$SANITIZE") $(if $(TARGET),--target="$$TARGET")

train: $(READY) ## train on labelled comments, into runs/model|DATA=file SOURCES=sources.yaml (instead) TEST_DATA=file TRAIN_ARGS="--epochs 2 ...", or MINUTES=10 for what fits
	$(TOOL) train $(if $(MINUTES),--minutes="$$MINUTES") $(if $(DATA),--data="$$DATA") $(if $(SOURCES),--sources="$$SOURCES") $(if $(TEST_DATA),--test-data="$$TEST_DATA") $(TRAIN_ARGS)

best: $(READY) ## train teachers and their small student by a recipe, export and evaluate; goes on where it stopped|RECIPE=best (quick, vectors, or a file) DATA=file TEST_DATA=file REPOSITORY=folder RECIPE_ARGS="--list ..."
	$(TOOL) recipe "$$RECIPE" $(if $(DATA),--data="$$DATA") $(if $(TEST_DATA),--test-data="$$TEST_DATA") $(IN_REPOSITORY) $(RECIPE_ARGS)

export: $(READY) ## trace, quantize, check and publish into model_repository/|PRECISION=int8 (fp32, fp16, auto: the fastest here that passes) REPOSITORY=folder EXPORT_ARGS="..."
	$(TOOL) export --precision="$$PRECISION" $(IN_REPOSITORY) $(EXPORT_ARGS)

versions: $(READY) ## list the published versions, each verified: which serves, which is damaged|REPOSITORY
	@$(TOOL) versions $(IN_REPOSITORY)

publish: $(READY) ## let a published version serve, the newest by default, and sign it on the way|VERSION=N SIGN_KEY=file REPOSITORY
	@$(TOOL) publish $(IN_REPOSITORY) $(if $(VERSION),--version="$$VERSION") $(if $(SIGN_KEY),--sign-key="$$SIGN_KEY")

rollback: $(READY) ## let the version serve that did before the current one|REPOSITORY
	@$(TOOL) rollback $(IN_REPOSITORY)

serve: $(READY) ## start the real tritonserver behind haproxy, or load the current version into it|REPLICAS=2 GRPC=1 HTTP_PORT GRPC_PORT METRICS_PORT REPOSITORY SERVE_ARGS="--tls-certificate site.pem --keys keys.json --address 0.0.0.0"
	$(TOOL) serve $(IN_REPOSITORY) $(PORTS) $(if $(REPLICAS),--replicas="$$REPLICAS") $(if $(GRPC),--grpc) $(SERVE_ARGS)

ui: $(READY) ## the page for people: print its address, start the server when none runs|UI_ARGS="--open" HTTP_PORT GRPC_PORT METRICS_PORT REPOSITORY
	@$(TOOL) ui $(IN_REPOSITORY) $(PORTS) $(UI_ARGS)

status: $(READY) ## what runs: processes, versions, addresses
	@$(TOOL) status

stop: $(READY) ## end all of it, finishing what is in flight
	$(TOOL) stop

monitor: $(READY) ## watch what serves: drift, labels, groups, latency; --once for cron|MONITOR_ARGS="--once --curated folder --labels file ..."
	@$(TOOL) monitor $(MONITOR_ARGS)

score: $(READY) ## score one comment against the running server, or a file without one|TEXT="..." HTTP_PORT, or FILE=comments.csv.gz SCORE_ARGS="--out scored.parquet ..."
	@$(TOOL) score $(if $(FILE),--file="$$FILE" $(IN_REPOSITORY),--url="127.0.0.1:$$HTTP_PORT") $(SCORE_ARGS) $(if $(FILE),,-- "$$TEXT")

bench-offline: $(READY) ## time the scoring of a file beside the core alone|REPOSITORY COMMENTS=file BENCH_ARGS="--rounds 3 ..."
	$(TOOL) bench offline $(IN_REPOSITORY) $(OF_COMMENTS) $(BENCH_ARGS)

eval: $(READY) ## quality, fairness and calibration of several models, into runs/eval|DATA="file ..." (else the run's test split) MODELS="runs/model http://127.0.0.1:8000 ..." CURATED=folder EVAL_ARGS="--misspell ..."
	@$(call array,MODELS,models) $(EVALUATE) $(if $(MODELS),--models "$${models[@]}") $(EVAL_ARGS)

baseline: $(READY) ## the same of TF-IDF and logistic regression, on the run's training split|DATA="file ..." CURATED=folder EVAL_ARGS="..."
	@$(EVALUATE) $(EVAL_ARGS)

doctor: $(READY) ## what this machine can do, and what is missing, with the remedy|DOCTOR_ARGS="--check --json" HTTP_PORT GRPC_PORT METRICS_PORT REPOSITORY
	@$(TOOL) doctor $(IN_REPOSITORY) $(PORTS) $(DOCTOR_ARGS)

test: $(READY) ## run the tests on two cores, but for the longest|TEST_ARGS="-k tokenizer" (then just these, the longest, too)
	$(PYTEST) $(or $(TEST_ARGS),-m "not long")

test-all: $(READY) ## run every test|TEST_ARGS
	$(PYTEST) $(TEST_ARGS)

test-fast: $(READY) ## run the quick ones: no training, few servers|TEST_ARGS, and VENV=folder PYTHON=python3.13 for another Python
	$(PYTEST) -m "not slow" $(TEST_ARGS)

coverage: $(READY) ## run every test, and fail where they cover less of the code than they did before|TEST_ARGS
	$(PYTEST) --cov --cov-report=term $(TEST_ARGS)

fuzz: $(READY) ## fuzz the core under its sanitizers (needs clang)|FUZZ_ARGS="--runs 10000000"
	$(RUN) -m tests.fuzz.run $(FUZZ_ARGS)

faults: $(READY) ## kill, starve and damage the commands at random moments, check what is left|FAULTS_ARGS="--count 100 ..."
	$(TOOL) bench faults $(FAULTS_ARGS)

check: $(READY) ## formatting, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

lint: check ## the same as check

bench: $(READY) ## load the running server with Locust, HTTP then gRPC|USERS, or RATE=requests/s for an open loop, SECONDS_EACH COMMENTS=file BENCH_ARGS="..."
	$(TOOL) bench load --users="$$USERS" --rate="$$RATE" --seconds="$$SECONDS_EACH" $(OF_COMMENTS) $(BENCH_ARGS)

bench-road: $(READY) ## the native server beside a Python backend and one that does nothing, in turns|REPOSITORY COMMENTS=file BENCH_ARGS="--rounds 4 ..."
	$(TOOL) bench road $(IN_REPOSITORY) $(OF_COMMENTS) $(BENCH_ARGS)

bench-app: $(READY) ## the application's moderations beside the native road and a FastAPI app, in turns|REPOSITORY COMMENTS=file BENCH_ARGS="--checkpoint runs/model --rounds 4 ..."
	@$(RUN) -m pip install -q -c constraints.txt fastapi uvicorn || echo 'FastAPI cannot be installed: skipped' >&2
	$(TOOL) bench app $(IN_REPOSITORY) $(OF_COMMENTS) $(BENCH_ARGS)

bench-cache: $(READY) ## what the cache of repeated comments costs and saves|REPOSITORY COMMENTS=file BENCH_ARGS="..."
	$(TOOL) bench cache $(IN_REPOSITORY) $(OF_COMMENTS) $(BENCH_ARGS)

bench-encoder: $(READY) ## compare the serving graph with other runtimes, on one thread and on all cores|COMMENTS=file ENCODER_ARGS="--checkpoint runs/model ..."
	@$(RUN) -c 'import openvino' 2>/dev/null || $(RUN) -m pip install -q -c constraints.txt openvino || echo 'OpenVINO cannot be installed: skipped' >&2
	$(TOOL) bench encoder $(OF_COMMENTS) $(ENCODER_ARGS)

bench-length: $(READY) ## cost of a comment up to 4,096 tokens, softmax beside linear attention|LENGTH_ARGS="--rounds 5 ..."
	$(TOOL) bench length $(LENGTH_ARGS)

bench-peers: $(READY) ## ours beside FastAPI, LitServe and the plain graph on Triton, at one objective|COMMENTS=file CAPACITY_ARGS="--p99-ms 50 ..."
	@$(RUN) -m pip install -q -c constraints.txt fastapi litserve uvicorn || echo 'FastAPI and LitServe cannot be installed: skipped' >&2
	$(TOOL) bench peers $(IN_REPOSITORY) $(OF_COMMENTS) $(CAPACITY_ARGS)

bench-tokenizer: $(READY) ## time text -> ids beside Hugging Face's tokenizers|COMMENTS=file BENCH_ARGS="--vocabulary file"
	@$(RUN) -m pip install -q -c constraints.txt tokenizers || echo 'tokenizers cannot be installed: skipped' >&2
	$(TOOL) bench tokenizer $(OF_COMMENTS) $(BENCH_ARGS)

bench-monitor: $(READY) ## false alarms and time to detect of the monitor's rules beside river's detectors|REPOSITORY COMMENTS=file BENCH_ARGS="--windows 200 ..."
	@$(RUN) -m pip install -q -c constraints.txt river || echo 'river cannot be installed: skipped' >&2
	$(TOOL) bench monitor $(IN_REPOSITORY) $(OF_COMMENTS) $(BENCH_ARGS)

capacity: $(READY) ## search the highest rate that meets the objective, rung by rung|COMMENTS=file CAPACITY_ARGS="--p99-ms 50 ..."
	$(TOOL) capacity $(IN_REPOSITORY) $(OF_COMMENTS) $(CAPACITY_ARGS)

tune: $(READY) ## choose instances, window and largest batch by measurement, for the next start|REPOSITORY COMMENTS=file CAPACITY_ARGS="..."
	$(TOOL) tune $(IN_REPOSITORY) $(OF_COMMENTS) $(CAPACITY_ARGS)

overload: $(READY) ## load the running server at three times its capacity for a minute|CAPACITY=requests/s COMMENTS=file
	$(TOOL) bench overload --capacity="$$CAPACITY" $(OF_COMMENTS)

parity: $(READY) ## compare the running server with PyTorch on 1,000 comments|COMMENTS=file
	$(TOOL) bench parity $(OF_COMMENTS)

attack: $(READY) ## a million hostile requests at a door of its own, honest clients beside|REPOSITORY COMMENTS=file ATTACK_ARGS="--requests 100000 --seed 2 ..."
	$(TOOL) bench attack --check $(IN_REPOSITORY) $(OF_COMMENTS) $(ATTACK_ARGS)

soak: $(READY) ## mixed load on a door of its own with publishes, rollbacks and kills|MINUTES=60 REPOSITORY COMMENTS=file SOAK_ARGS="--kills 8 ..."
	$(TOOL) bench soak --check $(if $(MINUTES),--minutes="$$MINUTES") $(IN_REPOSITORY) $(OF_COMMENTS) $(SOAK_ARGS)

ladder: $(READY) ## distil students, export them and their cascades, plot AUROC against speed|LADDER_ARGS="--students 96x2 64x1 ..."
	$(TOOL) ladder $(LADDER_ARGS)

minutes: $(READY) ## train the plans of MINUTES, plot AUROC against the minutes that they take|DATA=file TEST_DATA=file MINUTES_ARGS="--plans alone quick ..."
	$(TOOL) minutes $(if $(DATA),--data="$$DATA") $(if $(TEST_DATA),--test-data="$$TEST_DATA") $(MINUTES_ARGS)

ablation: $(READY) ## one training a change from the default: what lifts AUROC|ABLATION_ARGS="--data train.csv.gz --test-data test.csv.gz --out-of-domain other.csv --harmless harmless.csv --rows pretrain-1 ..."
	$(TOOL) ablation $(ABLATION_ARGS)

leave-one-out: $(READY) ## one training a source of comments, that one held out, beside TF-IDF|SOURCES=sources.yaml LEAVE_ONE_OUT_ARGS="--only tweets ..."
	$(TOOL) $@ $(if $(SOURCES),--sources="$$SOURCES") $(LEAVE_ONE_OUT_ARGS)

figures: $(READY) ## write the tables of the pages from the result files; --measure runs the benches first|FIGURES_ARGS="--measure ..."
	$(RUN) -m bench.report.figures $(FIGURES_ARGS)

fleet-tools: build/fleet/.ready ## the tools that check deploy/, apart from the virtual environment

build/fleet/.ready: deploy/tools.txt
	"$${PYTHON:-$(FOUND_PYTHON)}" -m venv build/fleet
	build/fleet/bin/python -m pip install -q -r deploy/tools.txt
	@touch $@

fleet: build/fleet/.ready ## write the Kubernetes files again from the Helm chart
	build/fleet/bin/python deploy/helm/render.py deploy/kubernetes/base
	build/fleet/bin/python deploy/helm/render.py deploy/kubernetes/kserve --values deploy/helm/kserve.json

docs: $(READY) ## the pages as a site in build/site, every link checked
	@$(RUN) -c 'import material' 2>/dev/null || $(RUN) -m pip install -q -c constraints.txt mkdocs mkdocs-material
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean: ## remove the virtual environment, runs and caches, not model_repository/; asks before a trained model goes|FORCE=1 (does not ask)
	@$(ASK_BEFORE_MODELS)
	-@test ! -x $(TOOL) || $(TOOL) stop >/dev/null 2>&1
	rm -rf $(VENV) runs bench/out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
