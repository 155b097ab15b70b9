"""Before TensorFlow is imported anywhere: one thread a process, and silence. And who runs what."""

import os

import pytest

os.environ.update(
    KERAS_BACKEND="tensorflow",
    TF_CPP_MIN_LOG_LEVEL="3",
    TF_NUM_INTRAOP_THREADS="1",
    TF_NUM_INTEROP_THREADS="1",
    OMP_NUM_THREADS="1",
)

START_RANKS = (
    "tests/launch/test_launchers.py",
    "tests/launch/test_signals.py",
    "tests/launch/test_slurm.py",
    "tests/mpi/",
    "tests/runner/test_train.py",
    "tests/zoo/",
)
"""Files that start ranks again and again. Of the workers of pytest-xdist one runs them all, one
after another: two such files at once would want eight cores. The others run the rest beside it."""


def pytest_collection_modifyitems(items):
    """First what takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(START_RANKS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files go to workers as a whole: their tests share fixtures, and what TensorFlow compiles."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "ranks" if nodeid.startswith(START_RANKS) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Files(config, log)
