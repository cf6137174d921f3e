"""What a field may hold: small checks, put together to the schemas of whole manifests.

A check takes a value and returns what is wrong with it. While all is right it builds nothing, which
is why there are no paths on the way down: whoever finds a problem prefixes it on the way up.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hydra_trainer.errors import did_you_mean
from hydra_trainer.problems import FEW, NONE, Problem, entry, shown, under

Check = Callable[[Any], list[Problem]]

QUANTITY = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?(\d+(\.\d*)?|\.\d+))?"
)
"""https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity"""


def wrong(value: Any, what: str) -> list[Problem]:
    return [Problem("", f"Invalid value: {shown(value)}: must be {what}")]


# ------------------------------------------------------------------------------- single values


def anything(value: Any) -> list[Problem]:
    return NONE


def text(value: Any) -> list[Problem]:
    if isinstance(value, str):
        return NONE
    hint = f' (put it in quotes: "{shown(value)}")' if isinstance(value, int | float) else ""
    return wrong(value, f"a string{hint}")


def boolean(value: Any) -> list[Problem]:
    return NONE if isinstance(value, bool) else wrong(value, "true or false")


def number(value: Any) -> list[Problem]:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return NONE if good else wrong(value, "a number")


def integer(low: int = -(2**31), high: int = 2**31 - 1) -> Check:
    what = "an integer" if low < 0 else f"an integer of at least {low}"

    def check(value: Any) -> list[Problem]:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            return wrong(value, what)
        return NONE if value <= high else wrong(value, f"an integer of at most {high}")

    return check


def long_text(most: int, least: int = 0) -> Check:
    """Check for a string of some length."""

    def check(value: Any) -> list[Problem]:
        if isinstance(value, str) and not least <= len(value) <= most:
            return wrong(value, f"a string of {least} to {most} characters")
        return text(value)

    return check


def one_of(*words: str) -> Check:
    known = ", ".join(words)

    def check(value: Any) -> list[Problem]:
        if value in words:
            return NONE
        hint = did_you_mean(str(value), words)
        message = f"Unsupported value: {shown(value)}: supported values: {known}.{hint}"
        return [Problem("", message)]

    return check


def quantity(value: Any) -> list[Problem]:
    good = isinstance(value, int) and not isinstance(value, bool)
    if good or (isinstance(value, str) and QUANTITY.fullmatch(value)):
        return NONE
    return wrong(value, "a quantity, such as 2, 500m or 16Gi")


def int_or_text(value: Any) -> list[Problem]:
    good = isinstance(value, int | str) and not isinstance(value, bool)
    return NONE if good else wrong(value, "an integer or a string")


# ------------------------------------------------------------------------------- what holds others


def items(check: Check, most: int = 2**31, least: int = 0) -> Check:
    """Check for a list."""

    def check_items(value: Any) -> list[Problem]:
        if not isinstance(value, list):
            return wrong(value, "a list")
        if not least <= len(value) <= most:
            text = f"Invalid value: {len(value)} items: must be a list of {least} to {most}"
            return [Problem("", text)]
        problems = NONE
        for index, item in enumerate(value):
            if found := check(item):
                problems = problems + under(f"[{index}]", found)
        return problems

    return check_items


def mapping(check: Check) -> Check:
    """Check for an object with keys of any name."""

    def check_mapping(value: Any) -> list[Problem]:
        if not isinstance(value, dict):
            return wrong(value, "an object")
        problems = NONE
        for key, item in value.items():
            if found := check(item):
                problems = problems + under(entry("", str(key)), found)
        return problems

    return check_mapping


def fields(known: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """Check for an object with these fields and no others. A null stands for no value."""

    def check_fields(value: Any) -> list[Problem]:
        if not isinstance(value, dict):
            return wrong(value, "an object")
        problems = NONE
        for key, item in value.items():
            check = known.get(key)
            if check is None:
                problems = [*problems, Problem(str(key), unknown(str(key), known))]
            elif item is not None and (found := check(item)):
                problems = problems + under(key, found)
        missing = [key for key in required if value.get(key) is None]
        return problems + [Problem(key, "Required value") for key in missing]

    return check_fields


def filled(check: Check) -> Check:
    """Check with `check`, and that an object has at least one field."""

    def check_filled(value: Any) -> list[Problem]:
        return wrong(value, "an object with at least one field") if value == {} else check(value)

    return check_filled


def unknown(key: str, known: Iterable[str]) -> str:
    """Return the message for a field that does not exist."""
    names = sorted(known)
    hint = did_you_mean(key, names)
    listed = f", but must be one of {', '.join(names)}." if len(names) <= FEW else "."
    return f"unknown field{listed}{hint}"


def either(small: Check, full: Callable[[], Check | None]) -> Check:
    """Check with `small`, and what it does not know with `full()`, which takes long to make."""

    def check(value: Any) -> list[Problem]:
        found = small(value)
        if not found:
            return NONE
        whole = full()
        return whole(value) if whole else [_unsure(problem) for problem in found]

    return check


def _unsure(problem: Problem) -> Problem:
    """Return what remains of a problem when only the small schema is there."""
    if not problem.message.startswith("unknown field"):
        return problem
    message = (
        "Not checked: this field is not among those that are known without kubernetes-validate. "
        "Type pip install 'hydra-trainer[eks]'."
    )
    return Problem(problem.path, message, "warning")
