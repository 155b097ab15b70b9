# make demo and make test set up what they need; all targets are safe to repeat.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test slow lint bench clean

setup: .venv/ready

.venv/ready: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[cpu,mpi,recipes,dev]'
# Tests compare our models with KerasHub's. Alone: its requirement tensorflow-text would bring the
# full tensorflow in beside tensorflow-cpu.
	$(BIN)/pip install --quiet --no-deps keras-hub
	touch $@

demo: setup
	$(BIN)/python -m benchmarks.compare --config=configs/digits_resnet.py \
	    --algorithms=single,swarm --ranks=4 --out=demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.codec
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.translation_input
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/swarmrun -n 2 -m benchmarks.exchange

clean:
	rm -rf .venv demo runs build *.egg-info
