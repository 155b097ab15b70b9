"""Runs a program in another process, with other numbers of threads than the tests have."""

import os
import subprocess
import sys
from pathlib import Path


def last_word(program: str, *arguments: str) -> str:
    """The last word that the program prints; it may import the tests and the code under test."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ
        | {
            "TF_NUM_INTRAOP_THREADS": "4",
            "TF_NUM_INTEROP_THREADS": "4",
            "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()[-1]
