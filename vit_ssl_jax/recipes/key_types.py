"""Types of config keys: what a value may be, in words and as a predicate."""

import dataclasses
import math
import numbers
from collections.abc import Callable

MOST = 2**31 - 1  # of a step's number or a size


@dataclasses.dataclass(frozen=True)
class Key:
  """A config key.

  Attributes:
    meaning: for `--help` and docs/config.md.
    possible: the possible values, in words.
    fits: value -> True if it is possible.
    resumable: may change when a run resumes, for it changes no step's result.
    data: decides which images there are, or what they look like.
    views: read only if objective="views".
  """

  meaning: str
  possible: str
  fits: Callable[[object], bool]
  resumable: bool = False
  data: bool = False
  views: bool = False


def whole(meaning, low, high=MOST, **flags):
  possible = f"a whole number of at least {low}"
  if high != MOST:
    possible = f"a whole number in [{low}, {high}]"
  return Key(
    meaning, possible, lambda x: is_whole(x) and low <= x <= high, **flags
  )


def number(meaning, low, high, ends="[]", **flags):
  """A finite number in an interval, whose ends may be open."""
  return Key(
    meaning,
    f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}",
    lambda x: (
      is_number(x)
      and low <= x <= high
      and not (ends[0] == "(" and x == low)
      and not (ends[1] == ")" and x == high)
    ),
    **flags,
  )


def flag(meaning, **flags):
  return Key(meaning, "True or False", lambda x: isinstance(x, bool), **flags)


def text(meaning, **flags):
  """Text without a line break, such as a path."""
  return Key(
    meaning, "text", lambda x: isinstance(x, str) and x.isprintable(), **flags
  )


def choice(meaning, *choices, **flags):
  possible = " or ".join(map(repr, choices))
  return Key(meaning, possible, lambda x: x in choices, **flags)


def several(meaning, possible, fits, **flags):
  """A tuple of finite numbers."""
  return Key(
    meaning,
    possible,
    lambda x: (
      isinstance(x, tuple | list) and all(map(is_number, x)) and fits(x)
    ),
    **flags,
  )


def interval(meaning, kind, fits, **flags):
  return several(
    meaning,
    f"two {kind}, low and high",
    lambda x: len(x) == 2 and x[0] <= x[1] and all(map(fits, x)),
    **flags,
  )


def area(meaning, **flags):
  kind = "shares of the area in (0, 1]"
  return interval(meaning, kind, lambda x: 0 < x <= 1, **flags)


def channels(meaning, low):
  """A number for each of three channels, or ()."""
  return several(
    meaning,
    f"three numbers in {low}, 1], or ()",
    lambda x: (
      len(x) in (0, 3) and all(0 <= n <= 1 and (n or low == "[0") for n in x)
    ),
    data=True,
  )


def is_whole(x):
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def is_number(x):
  real = isinstance(x, numbers.Real) and not isinstance(x, bool)
  return real and math.isfinite(x)
