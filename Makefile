# Everything runs in .venv, which is created on first use. `make PYTHON=python3.12 ...` uses another interpreter.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test bench gpu-bench lint docs gpu-check torture builtin deps-check release clean distclean

help: ## print this list
	@echo "make TARGET [PYTHON=python3.12]; everything runs in .venv, which is created on first use (about 6 GB)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## create .venv and install everything; then run: . .venv/bin/activate

# pip would end in a long message when the disk is full, minutes later. NEED is in GB.
NEED ?= 7
.venv/installed: pyproject.toml constraints.txt
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1000000)}'); \
	if ! ls -d .venv/lib/python*/site-packages/torch > /dev/null 2>&1 && [ "$$free" -lt $(NEED) ]; then \
	  echo "make: $$free GB are free on the disk of $(CURDIR), .venv takes about $(NEED); free some, or set NEED=0 to try all the same" >&2; \
	  exit 2; \
	fi
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed ## run the whole chain on the built-in task, into runs/demo/report.html; a few minutes
	rm -rf runs/demo
	.venv/bin/gft-edge demo --out runs/demo $(DEMO_FLAGS)

# One thread per worker: threads that share a core with another worker's threads run several times slower.
test: .venv/installed lint ## run lint, types and tests; about a quarter of an hour on two idle cores
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

# mypy does not read setuptools' package-dir map. It checks a folder of links with the layout of the installed package.
lint: .venv/installed ## run ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf .venv/mypy && mkdir -p .venv/mypy/gft_edge
	ln -s $(CURDIR)/gft_edge/* $(CURDIR)/export $(CURDIR)/calibration $(CURDIR)/benchmarks .venv/mypy/gft_edge
	MYPYPATH=.venv/mypy .venv/bin/mypy

# Fails at a broken link or anchor, a page that the navigation lacks, and anything that a page would load from elsewhere. Not --quiet, which
# would silence the warnings that --strict counts.
docs: .venv/docs-installed ## build the documentation site, into site/index.html; needs no network to build or to read
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict
	@echo site/index.html

# A stamp of its own: the site needs mkdocs and numpy, not PyTorch.
.venv/docs-installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

# Writes the comparison with peers and the speed targets to benchmarks/RESULTS.md. Also measures the built-in model as FP32 with all
# patches, FP32 pruned and INT8 pruned, with one and two threads; one checkpoint at ten budgets; and the training step against
# the published code.
bench: .venv/installed ## measure peers and the speed targets, into benchmarks/RESULTS.md
	rm -rf runs/bench && mkdir -p runs/bench
	.venv/bin/python -m gft_edge.benchmarks.experiments.peers.suite runs/bench/peers.json benchmarks/RESULTS.md
	.venv/bin/gft-edge quantize builtin --out runs/bench/checkpoint-int8 > /dev/null
	.venv/bin/gft-edge export builtin --budget full --out runs/bench/fp32-full
	.venv/bin/gft-edge export builtin --out runs/bench/fp32-pruned
	.venv/bin/gft-edge export runs/bench/checkpoint-int8 --out runs/bench/int8-pruned
	.venv/bin/gft-edge bench runs/bench/fp32-full runs/bench/fp32-pruned runs/bench/int8-pruned --threads 1 2 --out runs/bench/bench.json
	.venv/bin/python -m gft_edge.benchmarks.experiments.elastic builtin runs/bench
	.venv/bin/python -m gft_edge.benchmarks.experiments.training_speed runs/bench/training.json
	.venv/bin/python -m gft_edge.benchmarks.experiments.compile_speed runs/bench/compile.json
	.venv/bin/python -m gft_edge.benchmarks.experiments.data_speed runs/bench/data.json
	.venv/bin/python -m gft_edge.benchmarks.experiments.calibration_speed runs/bench/calibration.json --page benchmarks/CALIBRATION.md
	OMP_NUM_THREADS=1 .venv/bin/python -m gft_edge.benchmarks.experiments.preprocessing_speed runs/bench/preprocessing.json

# Tests damaged files, kills, hostile input and long use, and writes docs/promises.md. TORTURE_FLAGS="--seconds 600" shortens the run.
torture: .venv/installed ## measure the effect of damaged files, kills and hostile input, into docs/promises.md
	mkdir -p runs/torture
	OMP_NUM_THREADS=1 .venv/bin/python -m gft_edge.benchmarks.torture runs/torture/torture.json docs/promises.md $(TORTURE_FLAGS)

# Needs an NVIDIA GPU; benchmarks/GPU.md says how to run it from a plain checkout.
gpu-bench: .venv/installed ## measure inference, training and numerics on a GPU; under four minutes
	.venv/bin/python -m gft_edge.benchmarks.experiments.gpu --out runs/bench/gpu.json

# Runs the tests marked gpu or jetson and every backend of a GPU that can run; says what it left out and why. Exit code 0 without a GPU.
gpu-check: .venv/installed ## check on this machine's GPU or Jetson board whatever can run there
	.venv/bin/python -m gft_edge.benchmarks.experiments.gpu_check

# Reproduces the training of the checkpoint in gft_edge/builtin: two hours and a half on two cores.
builtin: .venv/installed ## train the built-in checkpoint again; two hours and a half on two cores
	.venv/bin/gft-edge train --config recipes/scenes.toml --out runs/scenes
	.venv/bin/gft-edge train --config recipes/scenes-selection.toml --out runs/scenes-selection
	.venv/bin/gft-edge train --config recipes/scenes-finish.toml --out runs/scenes-finish
	.venv/bin/python -m gft_edge.benchmarks.experiments.publish runs/scenes-finish runs/builtin \
	  recipes/scenes.toml recipes/scenes-selection.toml recipes/scenes-finish.toml

# Makes environments with the oldest and the newest dependencies below .deps (12 GB), runs a selection of tests in each, and writes the page.
deps-check: .venv/installed ## test the oldest and the newest dependencies, into docs/compatibility.md
	.venv/bin/python tools/compatibility.py

# Checks, builds, commits and tags; pushes nothing. VERSION=1.2.0 names the release, DRY_RUN=1 changes nothing.
release: .venv/installed ## make the release VERSION=1.2.0, with DRY_RUN=1 only show it
	.venv/bin/python tools/release.py '$(VERSION)' $(if $(DRY_RUN),--dry-run)

clean: ## remove build output and caches; keep .venv, .deps and runs/
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv/mypy
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, then remove .venv, .deps and runs/
	rm -rf .venv .deps runs
