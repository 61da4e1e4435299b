# make install | demo | test | test-all | test-cluster | check | bench     (paths may hold spaces: all is relative)
PYTHON ?= python3
BIN := .venv/bin
# A thread a process: two processes share two cores (torch would set the same, with a warning).
LAUNCH := OMP_NUM_THREADS=1 $(BIN)/accelerate launch --config_file accelerate_configs/zero2.yaml

.PHONY: install demo test test-all test-cluster check format bench clean

install: .venv/installed

# Rebuilt when what it depends on changes. The constraints pin torch, whose newest build brings gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed

demo: install
	rm -rf demo
	$(BIN)/hstl walkers demo/raw --subjects 28
	$(BIN)/hstl pack --layout casia-b --source demo/raw --to demo/shards --partition recipes/partitions/demo.yaml
	$(LAUNCH) -m pipeline.train recipes/demo.yaml run=demo/run
	$(LAUNCH) -m pipeline.evaluate recipes/demo.yaml --checkpoint demo/run

test: install
	$(BIN)/python -m pytest -m 'not slow'

test-all: install
	$(BIN)/python -m pytest

# Jobs on a real SLURM of three nodes (root, and the Debian packages .ci/run names; skipped otherwise): 5 minutes.
test-cluster: install
	$(BIN)/python -m pytest tests/system/test_slurm.py tests/system/test_nodes.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf demo .venv
