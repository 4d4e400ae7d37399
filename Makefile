# Everything a checkout needs: `make help` lists it. The first target that needs Python packages installs them into .venv.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
ARGS ?=

.PHONY: help setup demo demo-hard bench-demo bench-decode bench-extract bench-adapt bench-adapt-job bench-modes bench-predict bench-aus bench-personalize bench-validity bench-sweep bench-window bench-sweep-conclusions bench-serve serve-picture gpu-check test test-slow lint format types wheel clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="…" is passed on, for instance: make demo ARGS="seed=3 difficulty=standard"'

setup: $(STAMP) ## Create .venv with the tested versions; nothing to do when it is up to date

$(STAMP): pyproject.toml constraints.txt
	@.ci/setup $(VENV)

demo: $(STAMP) ## Generate videos, train, personalize, report: the whole path, a few minutes
	$(BIN)/clipautt demo $(ARGS)

demo-hard: $(STAMP) ## Three seeds at difficulty=hard size=full and their joint report: the figures and the picture of the README, 45 minutes
	for seed in 0 1 2; do $(BIN)/clipautt demo difficulty=hard size=full seed=$$seed out=runs/hard/$$seed $(ARGS) || exit 1; done
	$(BIN)/clipautt report "run=[runs/hard/0/adapt/demo,runs/hard/1/adapt/demo,runs/hard/2/adapt/demo]" out=runs/hard/report
	cp runs/hard/report/figures/methods.png .github/report.png

bench-demo: $(STAMP) ## Seconds per stage of the demo, compared with the bare work on this machine
	$(BIN)/python -m tests.benchmarks.bench_demo $(ARGS)

bench-decode: $(STAMP) ## Memory and speed of reading ten minutes of 1080p video, compared with decoding alone
	$(BIN)/python -m tests.benchmarks.bench_decode $(ARGS)

bench-extract: $(STAMP) ## Extraction compared with the bare encoder and the bare decoder, and its memory at 100 and 1,000 clips
	$(BIN)/python -m tests.benchmarks.bench_extract $(ARGS)

bench-adapt: $(STAMP) ## Prompt tuning compared with the naive loop and the machine's matrix rate; window entropies with a loop
	$(BIN)/python -m tests.benchmarks.bench_adapt $(ARGS)

bench-adapt-job: $(STAMP) ## The adaptation job at 1,000 and 10,000 subjects, compared with the bare adaptation; ten minutes
	$(BIN)/python -m tests.benchmarks.bench_adapt_job $(ARGS)

bench-modes: $(STAMP) ## Accuracy of the cheap modes of prompt tuning compared with the exact one, five seeds; half an hour
	$(BIN)/python -m tests.benchmarks.bench_modes $(ARGS)

bench-predict: $(STAMP) ## One prediction by stage; a folder of videos compared with their extraction and with one command per video; memory
	$(BIN)/python -m tests.benchmarks.bench_predict
	$(BIN)/python -m tests.benchmarks.bench_predict_many $(ARGS)

bench-aus: $(STAMP) ## What AU similarities are worth on the demo's faces, whose true intensities are known; one minute
	$(BIN)/python -m tests.benchmarks.bench_aus $(ARGS)

bench-personalize: $(STAMP) ## How many frames of a person personalization needs, on the demo's faces
	$(BIN)/python -m tests.benchmarks.bench_personalize $(ARGS)

bench-validity: $(STAMP) ## How short and how dark a video may be before the answer suffers, on the demo's faces
	$(BIN)/python -m tests.benchmarks.bench_validity $(ARGS)

bench-sweep: $(STAMP) ## 100 trials of a sweep compared with one extraction pass of ViT-B-32 and with trials that share nothing
	$(BIN)/python -m tests.benchmarks.bench_sweep $(ARGS)

bench-window: $(STAMP) ## The window-length curve on synthetic people, and what its choice is worth on target subjects; half an hour
	$(BIN)/python -m tests.benchmarks.bench_window $(ARGS)

bench-sweep-conclusions: $(STAMP) ## From how many trials on importances and curves can be trusted; a few minutes
	$(BIN)/python -m tests.benchmarks.bench_sweep_conclusions $(ARGS)

bench-serve: $(STAMP) ## Latency, throughput, memory, overload and kills of the server, compared with the bare predictor; twenty minutes
	$(BIN)/python -m tests.benchmarks.bench_serve $(ARGS)

serve-picture: $(STAMP) ## The picture of the server's page in its README, taken by Chromium
	$(BIN)/python -m tests.benchmarks.serve_picture $(ARGS)

gpu-check: $(STAMP) ## Check the method on one GPU: a table and gpu_check.json, under eight minutes; without a GPU, one line
	$(BIN)/python -m tests.benchmarks.gpu_check $(ARGS)

test: $(STAMP) ## The fast tests, in two processes; the ten slowest are listed
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --durations=10 $(ARGS)

test-slow: $(STAMP) ## The tests marked slow, gpu or cluster
	$(BIN)/python -m pytest tests -m "slow or gpu or cluster" $(ARGS)

lint: $(STAMP) ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP) ## Format, and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP) ## mypy, strict for clipautt/
	$(BIN)/mypy

wheel: $(STAMP) ## Build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## Remove caches and builds; .venv, data, features and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
