"""The command line of a run: --config=FILE --workdir=DIR [--resume=...] [--config.KEY=VALUE ...].

Uses absl flags and ml_collections; every error becomes one line that says what is allowed. Each
call has its own FlagValues, so no global state changes.
"""

import difflib
import importlib.util
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from swarm_tf.config import RunConfig, flatten, to_dict
from swarm_tf.errors import UsageError
from swarm_tf.options import AUTO, WholeOrAuto, describe_type
from swarm_tf.runner import keys

USAGE = (
    "--config=configs/NAME.py --workdir=DIR [--resume=auto|must|never] "
    "[--config.SECTION.KEY=VALUE ...]"
)
RESUME = ("auto", "must", "never")


class _OrNone(flags.ArgumentParser):  # type: ignore[misc]
    """Reads None too, which ml_collections cannot. `options.check` refuses it where it is wrong."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None", "none") else self._read(argument)


for _type, _read in (
    (int, flags.IntegerParser().parse),
    (float, flags.FloatParser().parse),
    (str, str),
    (WholeOrAuto, lambda text: AUTO if text == AUTO else int(text)),
):
    config_flags.register_flag_parser_for_type(_type, _OrNone(_read))


def parse(argv: Sequence[str]) -> tuple[RunConfig, str, str]:
    """Parses a command line; the caller must pass the result to `validation.validate`.

    Args:
      argv: as `sys.argv`, the program's name first.

    Returns:
      The configuration with its overrides, the path given as --workdir, and whether the run goes
      on from the checkpoints in it: one of `RESUME`.

    Raises:
      UsageError: one line, if an argument or the file is invalid.
      SystemExit: with code 0, after printing the text of --help.
    """
    known, overrides = _parse_known(argv)
    path, workdir = known["config"].value, known["workdir"].value
    if known["help"].value:
        _print_help(argv[0], path)
        raise SystemExit(0)
    if not path:
        raise UsageError(f"--config is missing; use {argv[0]} {USAGE}")
    if not workdir:
        raise UsageError("--workdir is missing; name the directory for the files of the run")
    return _override(load(path), overrides), workdir, known["resume"].value


def load(path: str) -> RunConfig:
    """The result of `get_config()` in a Python file; "FILE:ARGUMENT" passes it an argument.

    Raises:
      UsageError: if the file is missing, raises an error, or does not return a RunConfig.
    """
    name, argument = _split(path)
    if not Path(name).is_file():
        raise UsageError(f"--config={path} is not a file{_did_you_mean_file(name)}")
    spec = importlib.util.spec_from_file_location("run_config", name)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config={path} must be a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*argument)
    except Exception as error:
        raise UsageError(f"--config={path} fails{_where(error, name)}: {_line(error)}") from error
    if not isinstance(config, RunConfig):
        kind = type(config).__name__
        raise UsageError(f"--config={path}: get_config() must return a RunConfig, not {kind}")
    return config


def _split(path: str) -> tuple[str, list[str]]:
    """Splits "FILE:ARGUMENT" or "FILE"; both parts may contain colons."""
    parts = path.split(":")
    for count in range(1, len(parts) + 1):
        if Path(name := ":".join(parts[:count])).is_file():
            return name, [":".join(parts[count:])] if count < len(parts) else []
    stem, suffix, _ = path.partition(".py:")
    return stem + suffix.rstrip(":"), []


def _parse_known(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the flags that are not keys of the configuration; returns the other arguments too."""
    known = flags.FlagValues()
    known.set_gnu_getopt(True)
    flags.DEFINE_string("config", None, "configuration file", flag_values=known)
    flags.DEFINE_string("workdir", None, "directory for the files of the run", flag_values=known)
    text = "whether to go on from the checkpoints in workdir"
    flags.DEFINE_enum("resume", "auto", RESUME, text, flag_values=known)
    flags.DEFINE_boolean("help", False, "print the keys", short_name="h", flag_values=known)
    try:
        return known, known(list(argv), known_only=True)
    except (flags.Error, ValueError) as error:
        raise UsageError(f"{_line(error, named=False)}; use {argv[0]} {USAGE}") from error


def _print_help(program: str, path: str | None) -> None:
    print(f"usage: {program} {USAGE}")
    if path:
        for key in keys.of(load(path)):
            print(f"  --config.{key.name}={key.value}\n      {key.description}")


def _override(config: RunConfig, argv: list[str]) -> RunConfig:
    keys = list(flatten(to_dict(config)))
    for argument in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            _require_key(match[1], keys)
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    try:
        holder = config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
    except (flags.Error, ValueError) as error:
        line = _line(error, named=False)
        if wrong := re.match(r"flag --config\.([\w.]+)=(.*?): ", line):
            kind = describe_type(config_path.get_type(wrong[1], config, normalize=False))
            raise UsageError(f"{wrong[1]}={wrong[2]} must be {kind}") from error
        raise UsageError(f"{line}; use {argv[0]} {USAGE}") from error
    if rest:
        raise UsageError(f"unexpected argument {rest[0]}; use {argv[0]} {USAGE}")
    overridden: RunConfig = holder.value
    return overridden


def _require_key(key: str, keys: list[str]) -> None:
    if key in keys:
        return
    # The section may be missing ("bits") or wrong ("train.bits"), or the name misspelt.
    name = key.rpartition(".")[2]
    similar = [k for k in keys if k.rpartition(".")[2] == name]
    if not similar and not any(k.startswith(f"{key}.") for k in keys):
        similar = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {' or '.join(similar)}? " if similar else ""
    section = (similar[0] if similar else key).partition(".")[0]
    allowed = [k for k in keys if k.startswith(f"{section}.")] or keys
    raise UsageError(f"--config.{key} is no key; {hint}allowed are {', '.join(allowed)}")


def _did_you_mean_file(name: str) -> str:
    files = sorted(str(p) for p in Path(name).parent.glob("*.py") if p.stem != "__init__")
    similar = difflib.get_close_matches(name, files, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return f"; there are {', '.join(files)}" if files else ""


def _where(error: Exception, name: str) -> str:
    """The line of the config file that caused an error, as text."""
    if isinstance(error, SyntaxError):
        return ""  # its text names the line
    calls = traceback.extract_tb(error.__traceback__)
    own = [call for call in calls if Path(call.filename).name == Path(name).name]
    return f" in line {own[-1].lineno}" if own else ""


def _line(error: Exception, *, named: bool = True) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if named else text
