"""The command `swarm-tf`; as `python -m swarm_tf` a launcher starts it on several ranks."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "doctor": "swarm_tf.launch.doctor",
    "consensus": "swarm_tf.checkpoint.mean_model",
}
"""Modules whose `main` takes the other arguments and returns the exit code."""


def main() -> None:
    """Exits with the code of the command; with 2 and the usage if there is none of this name."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: swarm-tf {'|'.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:]))


if __name__ == "__main__":
    main()
