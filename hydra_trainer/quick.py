"""A quick start: what Hydra and OmegaConf do twice, or slowly, before a command or a sweep begins.

Without it, half of the CPU time of a dry run goes into composing the configuration a second time,
to ask whether it names a mode, and into reading YAML with the parser that is written in Python.
"""

import functools
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
            Sweeper.validate_batch_is_legal = _unless_checked(check)  # type: ignore


Batch = Sequence[Sequence[str]]


def _unless_checked(check: Callable[[Any, Batch], None]) -> Callable[[Any, Batch], None]:
    """Return a check of the jobs of a sweep that leaves it to a launcher that checks them all.

    Hydra composes every job before the first one starts, and again in its turn.
    """

    @functools.wraps(check)
    def validate_batch_is_legal(self: Any, batch: Batch) -> None:
        if not getattr(self.launcher, "checks_all", False):
            check(self, batch)

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
