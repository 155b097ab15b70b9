"""Options with their rules: the default, type, range and words of a key stand in one place.

```python
@dataclass
class DiLoCoConfig(Options):
    outer_momentum: float = option(0.9, SHARE, "mu, momentum of the outer step")
```

The type is the annotation, the rest is in the field's metadata. What reads them: constructors and
the configuration (`check`), `train.py --help` and docs/configuration.md.
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
      allows: whether it may be this value.
      describe: completes "KEY=VALUE must be ...".
      obvious: whether documents leave it out.
    """

    allows: Callable[[Any], bool]
    describe: Callable[[], str]
    obvious: bool = False


def rule(words: str, allows: Callable[[Any], bool], *, obvious: bool = False) -> Rule:
    """A rule with fixed words."""
    return Rule(allows, lambda: words, obvious)


def one_of(values: Collection[Any]) -> Rule:
    """One of `values`, or of the keys of a table, entries that come later included."""
    return Rule(lambda value: value in values, lambda: f"one of {', '.join(map(str, values))}")


def at_least(low: float) -> Rule:
    """`low` or more."""
    return rule(f"{low} or more", lambda value: value >= low)


ANY = rule("any value", lambda value: True, obvious=True)
POSITIVE = rule("above 0", lambda value: value > 0)
SHARE = rule("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = rule("from 0 to 2147483647", lambda value: 0 <= value < 2**31)
NAME = rule("a name, not empty", lambda value: value != "", obvious=True)
DIRECTORY = rule("a directory, not empty", lambda value: value != "", obvious=True)


def option(
    default: Any,
    allowed: Rule,
    words: str,
    *,
    only: str | None = None,
    or_type: type | None = None,
    agreed: bool = True,
) -> Any:
    """A field of a dataclass, with what is to be known of it.

    Args:
      default: its value, unless another is given.
      allowed: rule for values of the annotated type. None, where the type allows it, has no rule.
      words: what it decides, for --help and the documents.
      only: the task that it belongs to; for every other one it must stay at its default.
      or_type: taken too, without a rule; as argument only, not on the command line.
      agreed: whether an algorithm's ranks must all have the same value.
    """
    metadata = {"rule": allowed, "words": words, "only": only, "or": or_type, "agreed": agreed}
    return dataclasses.field(default=default, metadata=metadata)


def required(allowed: Rule, words: str) -> Any:
    """As `option`, without a default."""
    return option(MISSING, allowed, words)


class Options:
    """Base of dataclasses of options that an algorithm has."""

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """Hold each option to its type and rule; subclasses hold options to each other.

        Args:
          name: of the section in messages.
          ranks: of the run.
          seed: of the run.
          common: what every algorithm has, an `AlgorithmConfig`.

        Raises:
          UsageError: one line that names the key, its value and what is allowed.
        """
        check(self, name)


def fields(section: Any) -> Iterator[dataclasses.Field[Any]]:
    """The fields of a dataclass, or of an instance, that `option` or `required` made."""
    return (field for field in dataclasses.fields(section) if "rule" in field.metadata)


@typing.dataclass_transform(field_specifiers=(dataclasses.field, option))
def with_options(cls: type[_T]) -> type[_T]:
    """A decorator for algorithms: the class becomes a dataclass of its options.

    Instances stay what they are, whatever their options: they are compared by identity. The
    options are added to the docstring, for `help`.
    """
    cls = dataclass(eq=False, repr=False)(cls)
    cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]
    lines = [f"      {each.name}: {describe(each)}" for each in fields(cls)]
    cls.__doc__ = "\n".join([f"{cls.__doc__}".rstrip(), "", "    Options:", *lines, ""])
    return cls


def describe(field: dataclasses.Field[Any]) -> str:
    """What an option decides and what it may be, in a line."""
    return f"{field.metadata['words']} ({allowed(field)})"


def allowed(field: dataclasses.Field[Any]) -> str:
    """What an option may be: its rule, or without one its type."""
    rule, kind = field.metadata["rule"], field.type
    if rule.obvious:
        return describe_type(kind)
    optional = isinstance(kind, UnionType) and type(None) in typing.get_args(kind)
    return f"{rule.describe()}{', or None' if optional else ''}"


def check(section: Any, name: str) -> None:
    """Hold every option of a dataclass to its type and rule; NumPy's scalars become Python's.

    Args:
      section: the instance.
      name: of the section in messages: "swarm"; empty for the root.

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
    """One value that has passed its type and rule; NumPy's scalars become Python's.

    Args:
      kind: int, float, bool, str, a union of such with None, or tuple[float, ...].

    Raises:
      UsageError: as `check`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if not _fits(value, kind):
        raise UsageError(f"{key}={value} must be {describe_type(kind)}")
    if value is not None and not allowed.allows(value):
        raise UsageError(f"{key}={value} must be {allowed.describe()}")
    return value


def check_unused(section: Any, name: str, task: str) -> None:
    """Hold options of other tasks to their defaults.

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
    """What an option of this annotated type takes, in words for an error line."""
    if isinstance(kind, UnionType):
        return " or ".join(describe_type(each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a tuple of numbers such as (0.5, 0.75)"
    words = {
        int: "a whole number",
        float: "a finite number",
        bool: "True or False",
        str: "a string",
        type(None): "None",
    }
    return words.get(kind) or f"a {kind.__name__}"


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, float) for item in value)
    if kind is not bool and isinstance(value, bool):
        return False  # to Python, True is an int
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)
