"""Options: the default, type, rule and description of a key are written in one place.

```python
@dataclass
class DiLoCoConfig(Options):
    outer_momentum: float = option(0.9, SHARE, "momentum of the outer step, mu")
```

The type is the annotation; the rule and the description are in the field's metadata. They are read
by constructors and the configuration (`check`), by `train.py --help` and by docs/configuration.md.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Any, TypeVar

import numpy as np

from swarm_tf.errors import UsageError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rule:
    """Which values of the right type an option may have.

    Attributes:
      allows: whether the option may have the given value.
      describe: returns the end of the sentence "KEY=VALUE must be ...".
      obvious: whether the documentation shows the type in place of the rule.
    """

    allows: Callable[[Any], bool]
    describe: Callable[[], str]
    obvious: bool = False


def rule(text: str, allows: Callable[[Any], bool], *, obvious: bool = False) -> Rule:
    """A rule whose description is the constant `text`."""
    return Rule(allows, lambda: text, obvious)


def one_of(values: Collection[Any]) -> Rule:
    """One of `values`. For a table: one of its keys, also those that are added later."""
    return Rule(lambda value: value in values, lambda: f"one of {', '.join(map(str, values))}")


def at_least(low: float) -> Rule:
    """A number that is `low` or more."""
    return rule(f"{low} or more", lambda value: value >= low)


AUTO = "auto"
WholeOrAuto = typing.Annotated[int | str, AUTO]
"""The type of an option that is a whole number, or "auto"."""

ANY = rule("any value", lambda value: True, obvious=True)
POSITIVE = rule("above 0", lambda value: value > 0)
SHARE = rule("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = rule("from 0 to 2147483647", lambda value: 0 <= value < 2**31)
NAME = rule("a name, not empty", lambda value: value != "", obvious=True)
DIRECTORY = rule("a directory, not empty", lambda value: value != "", obvious=True)


def option(
    default: Any,
    allowed: Rule,
    description: str,
    *,
    only: str | None = None,
    or_type: type | None = None,
    agreed: bool = True,
    may_change: bool = False,
) -> Any:
    """A dataclass field that is an option.

    Args:
      default: the default value.
      allowed: rule for values of the annotated type; it is not applied to None.
      description: what the option decides, for --help and docs/configuration.md.
      only: the one task that uses the option; with other tasks it must keep its default.
      or_type: a second type, accepted without a rule in constructors, not on the command line.
      agreed: whether the value must be the same on all ranks.
      may_change: whether a run that goes on from checkpoints may have another value.
    """
    metadata = {
        "rule": allowed,
        "description": description,
        "only": only,
        "or": or_type,
        "agreed": agreed,
        "may_change": may_change,
    }
    return dataclasses.field(default=default, metadata=metadata)


def required(allowed: Rule, description: str, *, may_change: bool = False) -> Any:
    """An `option` without a default."""
    return option(MISSING, allowed, description, may_change=may_change)


class Options:
    """Base class of dataclasses that hold the options of an algorithm."""

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """Check the type and rule of each option; subclasses also check combinations of options.

        Args:
          name: the section's name in error messages.
          ranks: number of ranks in the run.
          seed: the seed of the run.
          common: the options that every algorithm has, an `AlgorithmConfig`.

        Raises:
          UsageError: one line that names the key, its value and what is allowed.
        """
        check(self, name)


def fields(section: Any) -> Iterator[dataclasses.Field[Any]]:
    """The fields of a dataclass (class or instance) that were made by `option` or `required`."""
    return (field for field in dataclasses.fields(section) if "rule" in field.metadata)


@typing.dataclass_transform(field_specifiers=(dataclasses.field, option))
def with_options(cls: type[_T]) -> type[_T]:
    """A decorator for algorithms: the class becomes a dataclass whose fields are its options.

    Instances are compared by identity, not by their options. The options are added to the
    docstring, so that `help` shows them.
    """
    cls = dataclass(eq=False, repr=False)(cls)
    cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]
    lines = [f"      {each.name}: {describe(each)}" for each in fields(cls)]
    cls.__doc__ = "\n".join([f"{cls.__doc__}".rstrip(), "", "    Options:", *lines, ""])
    return cls


def describe(field: dataclasses.Field[Any]) -> str:
    """One line: what an option decides and which values it may have."""
    return f"{field.metadata['description']} ({allowed(field)})"


def allowed(field: dataclasses.Field[Any]) -> str:
    """Which values an option may have: the text of its rule, or its type if the rule is obvious."""
    rule, kind = field.metadata["rule"], field.type
    if rule.obvious:
        return describe_type(kind)
    optional = isinstance(kind, UnionType) and type(None) in typing.get_args(kind)
    return f"{rule.describe()}{', or None' if optional else ''}"


def check(section: Any, name: str) -> None:
    """Check the type and rule of every option; NumPy scalars become Python scalars.

    Args:
      section: the dataclass instance.
      name: the section's name in error messages, such as "swarm"; empty for the root.

    Raises:
      UsageError: one line that names the key, its value and what is allowed.
    """
    for field in fields(section):
        value = getattr(section, field.name)
        if field.metadata["or"] is not None and isinstance(value, field.metadata["or"]):
            continue
        key = f"{name}.{field.name}" if name else field.name
        setattr(section, field.name, checked(key, value, field.type, field.metadata["rule"]))


def checked(key: str, value: Any, kind: Any, allowed: Rule = ANY) -> Any:
    """Check one value and return it; a NumPy scalar becomes a Python scalar.

    Args:
      key: the option's name in error messages.
      kind: int, float, bool, str, a union of one of these with None, tuple[float, ...], or
        `WholeOrAuto`.

    Raises:
      UsageError: one line that names the key, its value and what is allowed.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if not _fits(value, kind):
        raise UsageError(f"{key}={value} must be {describe_type(kind)}")
    if value is not None and not allowed.allows(value):
        raise UsageError(f"{key}={value} must be {allowed.describe()}")
    return value


def check_unused(section: Any, name: str, task: str) -> None:
    """Check that options of other tasks have their defaults.

    Raises:
      UsageError: one has another value.
    """
    for field in fields(section):
        value = getattr(section, field.name)
        if field.metadata["only"] not in (None, task) and value != field.default:
            raise UsageError(
                f"{name}.{field.name}={value} has no effect on task={task}; "
                f"leave it at {field.default}"
            )


def describe_type(kind: Any) -> str:
    """The text of an error message for an annotated type, such as "a whole number"."""
    if isinstance(kind, UnionType):
        return " or ".join(describe_type(each) for each in typing.get_args(kind))
    if kind is WholeOrAuto:
        return f"a whole number or {AUTO}"
    if typing.get_origin(kind) is tuple:
        return "a tuple of numbers such as (0.5, 0.75)"
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "True or False",
        str: "a string",
        type(None): "None",
    }
    return names.get(kind) or f"a {kind.__name__}"


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in typing.get_args(kind))
    if kind is WholeOrAuto:
        return value == AUTO or _fits(value, int)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, float) for item in value)
    if kind is not bool and isinstance(value, bool):
        return False  # bool is a subclass of int
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)
