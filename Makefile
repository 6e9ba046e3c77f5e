# Everything runs in .venv, made on first use. `make PYTHON=python3.12 ...` takes another interpreter.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test bench lint gpu-check torture builtin clean distclean

help: ## this list
	@echo "make TARGET [PYTHON=python3.12]; everything runs in .venv, which is made on first use (about 6 GB)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## make .venv and install everything; then: . .venv/bin/activate

.venv/installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed ## the whole chain on the built-in task, to runs/demo/report.html; a few minutes
	rm -rf runs/demo
	.venv/bin/gft-edge demo --out runs/demo $(DEMO_FLAGS)

# One thread for each worker: two that share a core with another worker's run several times slower.
test: .venv/installed lint ## lint, types and tests; up to half an hour on two cores
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

# mypy does not know setuptools' package-dir map, so it reads a folder of links that looks like the installed package.
lint: .venv/installed ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf .venv/mypy && mkdir -p .venv/mypy/gft_edge
	ln -s $(CURDIR)/gft_edge/* $(CURDIR)/export $(CURDIR)/calibration $(CURDIR)/benchmarks .venv/mypy/gft_edge
	MYPYPATH=.venv/mypy .venv/bin/mypy

# Peers side by side and the speed targets, into benchmarks/RESULTS.md; FP32 at all patches, FP32 pruned and INT8 pruned of
# the built-in model, at one and two threads; one checkpoint at ten budgets; the training step against the published code.
bench: .venv/installed ## peers side by side and the speed targets, into benchmarks/RESULTS.md
	rm -rf runs/bench && mkdir -p runs/bench
	.venv/bin/python -m gft_edge.benchmarks.experiments.peers.suite runs/bench/peers.json benchmarks/RESULTS.md
	.venv/bin/gft-edge quantize builtin --out runs/bench/checkpoint-int8 > /dev/null
	.venv/bin/gft-edge export builtin --budget full --out runs/bench/fp32-full
	.venv/bin/gft-edge export builtin --out runs/bench/fp32-pruned
	.venv/bin/gft-edge export runs/bench/checkpoint-int8 --out runs/bench/int8-pruned
	.venv/bin/gft-edge bench runs/bench/fp32-full runs/bench/fp32-pruned runs/bench/int8-pruned --threads 1 2 --out runs/bench/bench.json
	.venv/bin/python -m gft_edge.benchmarks.experiments.elastic builtin runs/bench
	.venv/bin/python -m gft_edge.benchmarks.experiments.training_speed runs/bench/training.json
	.venv/bin/python -m gft_edge.benchmarks.experiments.calibration_speed runs/bench/calibration.json
	OMP_NUM_THREADS=1 .venv/bin/python -m gft_edge.benchmarks.experiments.preprocessing_speed runs/bench/preprocessing.json

# Damage, kills, hostile input and long use, measured into docs/promises.md; TORTURE_FLAGS="--seconds 600" for a shorter run.
torture: .venv/installed ## what damaged files, kills and hostile input lead to, measured into docs/promises.md
	mkdir -p runs/torture
	OMP_NUM_THREADS=1 .venv/bin/python -m gft_edge.benchmarks.torture runs/torture/torture.json docs/promises.md $(TORTURE_FLAGS)

# For people who have one: everything marked gpu or jetson.
gpu-check: .venv/installed ## the tests marked for a GPU or a Jetson board
	.venv/bin/python -m pytest -m "gpu or jetson"

# How the checkpoint in gft_edge/builtin was made; more than an hour on two cores.
builtin: .venv/installed ## train the shipped checkpoint anew; more than an hour on two cores
	.venv/bin/gft-edge train --config recipes/typeface-start.toml --out runs/typeface-start
	.venv/bin/gft-edge train --config recipes/typeface.toml --out runs/typeface
	.venv/bin/python -m gft_edge.benchmarks.experiments.publish runs/typeface runs/builtin recipes/typeface-start.toml recipes/typeface.toml

clean: ## remove what was built and cached; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv/mypy
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv and everything in runs/
	rm -rf .venv runs
