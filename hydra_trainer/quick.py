"""A quick start: what Hydra and OmegaConf do twice, or slowly, before a command or a sweep begins.

Without it, half of the CPU time of a dry run goes into composing the configuration a second time,
to ask whether it names a mode, and into reading YAML with the parser that is written in Python.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml


def shorten_start(words: Sequence[str]) -> None:
    """Make Hydra compose once, and let libyaml read its files. Safe to repeat.

    Args:
        words: the command line. With `hydra.mode`, or a folder of the user's that may set it,
            Hydra still composes twice.
    """
    from hydra._internal.hydra import Hydra
    from omegaconf import _utils

    if hasattr(yaml, "CSafeLoader") and not hasattr(_utils.get_yaml_loader, "cache_info"):
        _utils.get_yaml_loader = functools.cache(_with_libyaml(_utils.get_yaml_loader))
    may_set_mode = ("hydra.mode", "--config", "-c", "hydra/", "+hydra")
    if not any(word.lstrip("+").startswith(may_set_mode) for word in words):
        Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    if {"-m", "--multirun"}.intersection(words):
        from hydra.plugins.sweeper import Sweeper

        check = Sweeper.validate_batch_is_legal
        if not hasattr(check, "__wrapped__"):
            Sweeper.validate_batch_is_legal = _of_few(check)  # type: ignore


NUMBER = re.compile(r"=[-+]?\d+(\.\d*)?(e[-+]?\d+)?$", re.IGNORECASE)

Batch = Sequence[Sequence[str]]


def _of_few(check: Callable[[Any, Batch], None]) -> Callable[[Any, Batch], None]:
    """Return a check of the jobs of a sweep that takes one of those that differ in numbers only.

    Hydra composes every job before the first one starts, and again in its turn: for a thousand
    values of a seed, that is minutes.
    """

    @functools.wraps(check)
    def validate_batch_is_legal(self: Any, batch: Batch) -> None:
        kinds = {tuple(NUMBER.sub("=0", word) for word in job): job for job in batch}
        check(self, list(kinds.values()))

    return validate_batch_is_legal


def _with_libyaml(make: Any) -> Any:
    """Return `make`, which derives a loader from yaml.SafeLoader, deriving from the C one."""

    def loader() -> Any:
        slow = yaml.SafeLoader
        yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
        try:
            return make()
        finally:
            yaml.SafeLoader = slow  # type: ignore[misc]

    return loader
