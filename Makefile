# Everything runs in .venv, which each target sets up by itself. Another interpreter: make demo PYTHON=python3.13
# --no-compile: Python compiles what is really imported, when it is; compiling all takes longer than the rest of pip.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
RUNS   ?= runs/demo
SNR    ?=
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo paper test test-poor test-random test-kills test-slurm lint bench clean

demo: $(VENV)/demo-ready  ## simulate, shard, train, reconstruct, score; SNR=0 RUNS=runs/silent shows what chance looks like
	@bash launch/demo.sh $(RUNS) $(if $(SNR),snr=$(SNR))

paper: $(VENV)/demo-ready  ## the baselines, all controls and all scores too, going on from what the demo made
	@WHOLE=1 bash launch/demo.sh $(RUNS) $(if $(SNR),snr=$(SNR))

test: $(VENV)/test-ready  ## everything that runs on a CPU
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --durations 15

test-poor: $(VENV)/test-ready  ## the unit tests without git, HOME, UTF-8, with few open files, in a tree that cannot be written
	bash tests/poor.sh

test-random: $(VENV)/test-ready  ## the property tests on thousands of examples that nobody has seen before; half an hour
	HYPOTHESIS_PROFILE=random python -m pytest -n 2 -m hypothesis --timeout 3600 tests/unit

test-kills: $(VENV)/test-ready  ## twenty random kills, each followed by the same command
	python -m pytest tests/processes/test_faults.py -k random_kills --kills 20 --timeout 3000 -s

test-slurm: $(VENV)/test-ready  ## the sbatch files on a SLURM of two nodes on this machine (as root; installed by apt)
	python -m pytest tests/slurm

lint: $(VENV)/test-ready
	ruff check .
	ruff format --check .
	lint-imports
	mypy

bench: $(VENV)/test-ready  ## each prints a ratio against what one would otherwise run
	for b in benchmarks/*.py; do echo "== $$b"; python $$b || exit 1; done

$(VENV)/demo-ready: setup.cfg constraints.txt
	@echo "installing into $(VENV): about a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@python -m pip install -qq --no-compile -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/test-ready: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	python -m pip install -qq --no-compile -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/demo-ready

clean:
	rm -rf $(VENV) runs build *.egg-info
