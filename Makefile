# make demo and make test create .venv first; every target may be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup horovod matrix demo test slow large lint bench clean

setup: .venv/ready

.venv/ready: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[cpu,mpi,recipes,dev]'
# Tests compare our models with KerasHub's. --no-deps, because its requirement tensorflow-text would
# install the full tensorflow in addition to tensorflow-cpu.
	$(BIN)/pip install --quiet --no-deps keras-hub
	touch $@

# Horovod is built with the installed TensorFlow and MPI, which takes minutes. Its files need CMake 3.
horovod: setup
	$(BIN)/pip install --quiet 'cmake<4' 'setuptools<81' wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" CXX="$(CURDIR)/tools/horovod-cxx" \
	    HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITH_TENSORFLOW=1 \
	    HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_CPU_OPERATIONS=MPI \
	    $(BIN)/pip install --quiet --no-build-isolation --no-cache-dir 'horovod>=0.28.1'

# An environment with another MPI and all other packages of .venv: `mpich` has MPICH from the package
# index, `debian` uses the MPI of the system.
.venv-%/ready: .venv/ready
	$(BIN)/python -m venv .venv-$*
	.venv-$*/bin/pip install --quiet mpi4py $(filter mpich,$*)
	.venv-$*/bin/pip install --quiet --no-deps --editable .
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/other.pth
	touch $@

matrix: .venv-mpich/ready .venv-debian/ready
	.venv-mpich/bin/python -m pytest -m "matrix and not large"
	.venv-debian/bin/python -m pytest -m "matrix and not large"

demo: setup
	$(BIN)/python -m benchmarks.compare --config=configs/digits_resnet.py \
	    --algorithms=single,swarm --ranks=4 --out=demo

# Two workers for two cores; tests/conftest.py assigns tests to them.
test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

# TESTS limits it to some files or directories.
slow: setup
	$(BIN)/python -m pytest -n 2 -m "slow and not large" $(TESTS)

large: setup
	$(BIN)/python -m pytest -m large

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
	rm -rf .venv .venv-* demo runs build *.egg-info
