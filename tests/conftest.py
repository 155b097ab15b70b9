"""Settings of TensorFlow, before its import, for all processes; and which worker runs what."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ.update(
    KERAS_BACKEND="tensorflow",
    TF_CPP_MIN_LOG_LEVEL="3",
    TF_NUM_INTRAOP_THREADS="1",
    TF_NUM_INTEROP_THREADS="1",
    OMP_NUM_THREADS="1",
)
if "TF_XLA_FLAGS" not in os.environ:
    # XLA compiles a kernel for a second. One process of this run does so, all others load it.
    kernels = tempfile.mkdtemp(prefix="kernels-")
    atexit.register(shutil.rmtree, kernels)
    os.environ["TF_XLA_FLAGS"] = (
        f"--tf_xla_persistent_cache_directory={kernels} --tf_xla_persistent_cache_device_types=CPU"
    )

START_RANKS = (
    "tests/launch/test_launchers.py",
    "tests/launch/test_signals.py",
    "tests/launch/test_slurm.py",
    "tests/mpi/",
    "tests/runner/test_train.py",
    "tests/zoo/",
)
"""Files that start ranks many times. One worker of pytest-xdist runs them all, one after another,
since two such files at once would need eight cores. Other workers run the other files meanwhile."""


def pytest_collection_modifyitems(items):
    """Puts the files that take longest first."""
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
