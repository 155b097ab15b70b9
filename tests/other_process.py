"""What a program prints in a process of its own, with other numbers of threads than the tests'."""

import os
import subprocess
import sys
from pathlib import Path


def last_word(program: str, *arguments: str) -> str:
    """The last word of the standard output; the program may import the tests and what they test."""
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
