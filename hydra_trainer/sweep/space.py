"""What a sweep searches over, as it is typed: overrides that vary, in Hydra's own syntax.

    model=mlp,convnet    model=glob(*)           one of several
    optim.lr=interval(1e-5,1e-1)                 a number between two bounds
    optim.lr=tag(log,interval(1e-5,1e-1))        the same, on a logarithmic scale
    model.width=tag(int,interval(16,256))        a whole number; int(interval(16,256)) is the same
    model.width=range(16,257,16)                 a number in steps; as in Python, without the stop

What is read from it are plain dataclasses, from which each sweeper makes a space of its own kind.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra._internal.grammar.utils import escape_special_characters
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from hydra_trainer.errors import ConfigError, did_you_mean

from .source import Asked


@dataclass(frozen=True)
class Choice:
    """One of several values, each as the text of an override: `mlp`, `'a, b'`, `[1,2]`, `null`."""

    texts: tuple[str, ...]

    @property
    def typed(self) -> str:
        """How it is typed on the command line."""
        # Not choice(...), which takes no null.
        return ",".join(self.texts) if len(self.texts) > 1 else f"choice({self.texts[0]})"

    @property
    def count(self) -> int | None:
        """How many values it can take; None: they have no end."""
        return len(self.texts)

    def all(self) -> Sequence[str]:
        """Return every value, where they have an end."""
        return self.texts

    def samples(self) -> tuple[str, ...]:
        """Return values that stand for all of them, where a configuration is to be checked."""
        return self.texts

    def text(self, value: str) -> str:
        """Return a value as the text of an override."""
        return value

    def read(self, value: str) -> Any:
        """Return a value as the job gets it."""
        return _value(value)


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`, both of them included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def typed(self) -> str:
        if self.step is None:
            interval = f"interval({self.low!r},{self.high!r})"
            return f"tag(log,{interval})" if self.log else interval
        stop = float(Decimal(repr(self.high)) + Decimal(repr(self.step)))
        return f"range({self.low!r},{stop!r},{self.step!r})"

    @property
    def count(self) -> int | None:
        return None if self.step is None else self._steps(self.high) + 1

    def all(self) -> Sequence[float]:
        return [self._at(k) for k in range(self.count or 0)]

    def samples(self) -> tuple[float, ...]:
        return self.low, self.high

    def text(self, value: float) -> str:
        return repr(self.read(value))

    def read(self, value: float) -> float:
        """Return a value in the digits of its steps: 0.3, where adding up gave 0.30000000000000004.

        A value without steps is given as it is, in all its digits.
        """
        return float(value) if self.step is None else self._at(self._steps(value))

    def _steps(self, value: float) -> int:
        assert self.step is not None
        return round((value - self.low) / self.step)

    def _at(self, k: int) -> float:
        return float(Decimal(repr(self.low)) + k * Decimal(repr(self.step)))


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both of them included."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    @property
    def typed(self) -> str:
        if self.step == 1:
            tags = "log,int" if self.log else "int"
            return f"tag({tags},interval({self.low},{self.high}))"
        return f"range({self.low},{self.high + self.step},{self.step})"

    @property
    def count(self) -> int | None:
        return len(self.all())

    def all(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

    def samples(self) -> tuple[int, ...]:
        return self.low, self.high

    def text(self, value: int) -> str:
        return str(value)

    def read(self, value: int) -> int:
        return int(value)


Distribution = Choice | Float | Int


@dataclass(frozen=True)
class Space:
    """What varies, by the key of its override (`optim.lr`, `+model.depth`), and what does not.

    `fixed` are overrides of all jobs, as they were typed.
    """

    params: dict[str, Distribution]
    fixed: tuple[str, ...] = ()

    def job(self, number: int, values: Mapping[str, Any]) -> Asked:
        """Return the job of one value for each parameter, each of its distribution's own kind."""
        words = [f"{key}={one.text(values[key])}" for key, one in self.params.items()]
        shown = {key.lstrip("+"): one.read(values[key]) for key, one in self.params.items()}
        return Asked(number, [*self.fixed, *words], shown)

    def samples(self) -> list[Asked]:
        """Return jobs in which each choice occurs, and both ends of each range."""
        columns = {key: one.samples() for key, one in self.params.items()}
        count = max(map(len, columns.values()), default=0)
        return [
            self.job(row, {key: values[row % len(values)] for key, values in columns.items()})
            for row in range(count)
        ]

    def combinations(self) -> int | None:
        """Return how many different jobs there are; None: no end of them."""
        counts = [one.count for one in self.params.values()]
        return None if None in counts else math.prod(count or 0 for count in counts)

    def described(self) -> dict[str, str]:
        """Return each parameter as it is typed: what two spaces are compared by."""
        return {key: one.typed for key, one in self.params.items()}


def parse(
    words: Sequence[str], params: Mapping[str, Any] | None = None, loader: Any = None
) -> Space:
    """Return the search space of a command line.

    Args:
        words: the overrides that were typed, but for those of `hydra`.
        params: `sweep.params`: more of them, from a file: {optim.lr: "interval(1e-5, 1e-1)"}. A
            list is a choice. The command line wins.
        loader: Hydra's loader of configurations, which knows what `glob` can be.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems: list[str] = []
    typed = [word for word in words if not _about_the_sweep(word)]
    given = [*_of_file(params or {}, problems), *typed]
    found = {}
    for word in given:
        override = _parser(loader).parse_override(word)
        override.config_loader = loader
        found[override.get_key_element()] = word, override
    varying: dict[str, Distribution] = {}
    fixed = []
    for key, (word, override) in found.items():
        if not override.is_sweep_override():
            fixed.append(word)
            continue
        try:
            varying[key] = _distribution(override)
        except ConfigError as error:
            problems += [f"{word} {text}" for text in error.problems]
    if problems:
        raise ConfigError(problems)
    return Space(varying, tuple(fixed))


def _about_the_sweep(word: str) -> bool:
    """Tell whether a word chooses how the sweep goes: no job is composed from it."""
    return bool(re.match(r"[+~]*sweep[.=@]", word))


def _of_file(params: Mapping[str, Any], problems: list[str]) -> Iterator[str]:
    """Yield the entries of `sweep.params` as overrides, but for those that are none."""
    for key, text in typed(params):
        word = f"{key}={text}"
        try:
            _parser().parse_override(word)
        except HydraException as error:
            detail = " ".join(str(error).split())
            problems.append(f"sweep.params: Hydra cannot read {word} ({detail}).")
        else:
            yield word


def typed(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the entries of `sweep.params` with their values as one would type them."""
    for key, value in params.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            texts = tuple(dict.fromkeys(map(text_of, value)))
            yield str(key), Choice(texts).typed
        else:
            yield str(key), value if isinstance(value, str) else text_of(value)


@functools.cache
def _parser(loader: Any = None) -> OverridesParser:
    return OverridesParser.create(config_loader=loader)


# ------------------------------------------------------------------------------- distributions

TAGS = ("log", "int")


def _distribution(override: Override) -> Distribution:
    """Raises ConfigError with what is wrong, to be read after the override itself."""
    found: Any = override.value()
    tags = set(getattr(found, "tags", ()))
    if unknown := sorted(tags - set(TAGS)):
        raise ConfigError(
            f"has the tag {unknown[0]!r}, which means nothing here.{did_you_mean(unknown[0], TAGS)}"
            " There are log and int."
        )
    if isinstance(found, IntervalSweep):
        return _interval(found.start, found.end, tags)
    if isinstance(found, RangeSweep):
        return _range(found, tags)
    if tags:
        raise ConfigError("has a tag, but tags are for intervals and ranges. Leave it out.")
    elements = list(override.sweep_iterator())
    if isinstance(found, Glob):
        return _glob(override, found, elements)
    texts = (text_of(Override._convert_value(element)) for element in elements)
    return Choice(tuple(dict.fromkeys(texts)))


def _glob(override: Override, found: Glob, names: list[Any]) -> Choice:
    if not names:
        known = override.config_loader.get_group_options(override.key_or_group)  # type: ignore
        options = ", ".join(sorted(known)) or "nothing: it is no group"
        raise ConfigError(f"finds nothing. {override.key_or_group} can be: {options}.")
    return Choice(tuple(text_of(name) for name in names))


def _interval(low: Any, high: Any, tags: set[str]) -> Distribution:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError("has a bound that is not a finite number.")
    if not low < high:
        raise ConfigError(
            f"begins at {low} and ends at {high}, but must end above its beginning. Type the lower "
            "bound first; for one value, type that value."
        )
    whole = "int" in tags or (isinstance(low, int) and isinstance(high, int))
    if "log" in tags and low <= 0:
        raise ConfigError(
            f"begins at {low}, but a logarithmic scale begins above 0. Type 1e-6, for instance, or "
            "leave out log."
        )
    if not whole:
        return Float(float(low), float(high), "log" in tags)
    if low != int(low) or high != int(high):
        raise ConfigError(f"goes from {low} to {high}, but int needs whole bounds.")
    return Int(int(low), int(high), "log" in tags)


def _range(found: RangeSweep, tags: set[str]) -> Distribution:
    start, stop, step = (Decimal(repr(n)) for n in (found.start, found.stop, found.step))
    if not all(number.is_finite() for number in (start, stop, step)) or step == 0:
        raise ConfigError("must go from one finite number to another, in steps other than 0.")
    count = math.ceil((stop - start) / step)
    if count < 1:
        raise ConfigError(
            "holds no number: like Python's range, it goes from the first number to below the "
            "second, or down with a step below 0."
        )
    low, high = sorted((start, start + (count - 1) * step))
    whole = all(number == int(number) for number in (low, high, step))
    if "log" in tags:
        if not whole or abs(step) != 1:
            raise ConfigError(
                "has steps, which a logarithmic scale has not. Type "
                f"tag(log,interval({float(low)!r},{float(high)!r}))."
            )
        return _interval(int(low), int(high), tags)
    if whole and ("int" in tags or all(isinstance(n, int) for n in (found.start, found.step))):
        return Int(int(low), int(high), step=int(abs(step)))
    if "int" in tags:
        raise ConfigError("has steps that are not whole, but int needs them to be.")
    return Float(float(low), float(high), step=float(abs(step)))


# ---------------------------------------------------------------------------- values and texts

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
"""A text that needs no quotes, but for the words below."""

NOT_TEXT = ("null", "true", "false", "nan", "inf")


def text_of(value: Any) -> str:
    """Return the text of an override that Hydra reads as this very value."""
    if isinstance(value, str):
        plain = WORD.fullmatch(value) and value.lower() not in NOT_TEXT
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Sequence):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)}:{text_of(one)}" for key, one in value.items())
        return f"{{{','.join(pairs)}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(key: Any) -> str:
    """Return a key of a mapping: Hydra reads no quotes there, and few characters but words."""
    return escape_special_characters(key) if isinstance(key, str) else text_of(key)


@functools.lru_cache(maxsize=4096)
def _value(text: str) -> Any:
    return _parser().parse_override(f"x={text}").value()
