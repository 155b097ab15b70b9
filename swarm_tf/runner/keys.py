"""All keys of the configuration with their descriptions, for --help and docs/configuration.md.

`python -m swarm_tf.runner.keys > docs/configuration.md` writes the page.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swarm_tf import options
from swarm_tf.config import RunConfig, algorithms

_HEAD = """# Configuration

A recipe is a Python file whose `get_config()` returns a `RunConfig` (`swarm_tf/config.py`).
`--config.SECTION.KEY=VALUE` sets one key, and
`python train.py --config=FILE --help` prints all keys with the values of that file. A misspelt key
or an invalid value stops all ranks before training with one line and exit code 2.

This page is generated from the code: `python -m swarm_tf.runner.keys > docs/configuration.md`.
"""


@dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
      name: with dots, as on the command line.
      value: the value in this configuration, or the default.
      description: what the key decides and which values it may have.
    """

    name: str
    value: Any
    description: str


def of(config: Any, prefix: str = "") -> Iterator[Key]:
    """The keys of a configuration, or of one of its sections."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if "rule" not in field.metadata:
            yield from of(value, f"{name}.")
        else:
            yield Key(name, value, options.describe(field))


def page() -> str:
    """The text of docs/configuration.md."""
    known = algorithms()
    own = list(options.fields(RunConfig))
    parts = [_HEAD, "## The run\n", _table("", own)]
    for section in dataclasses.fields(RunConfig):
        if "rule" in section.metadata:
            continue
        keys = list(options.fields(section.type))
        title = f"algorithm={section.name}" if section.name in known else section.name
        summary = f"{known.get(section.name, section.type).__doc__}".splitlines()[0]
        parts += [f"## {title}\n", f"{summary}\n", _table(f"{section.name}.", keys)]
    return "\n".join(part for part in parts if part)


def _table(prefix: str, fields: list[dataclasses.Field[Any]]) -> str:
    if not fields:
        return ""
    rows = ["| key | default | allowed | what it decides |", "|---|---|---|---|"]
    for field in fields:
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default}`"
        only = f"; only with task={field.metadata['only']}" if field.metadata["only"] else ""
        decides = field.metadata["description"] + only
        cells = (f"`{prefix}{field.name}`", default, options.allowed(field), decides)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
