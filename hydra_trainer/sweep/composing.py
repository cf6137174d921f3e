"""The configurations of a sweep's jobs, composed by Hydra once for each kind.

Hydra takes more than a tenth of a second to compose one, most of it to find and read files. The
jobs of a sweep mostly differ in values; what these are put into is the same for all of a kind.
"""

import contextlib
import functools
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_trainer import __version__, config
from hydra_trainer.job import JobSpec
from hydra_trainer.launcher import Launcher
from hydra_trainer.targets import TRUSTED, instantiate

KINDS = 512
"""How many kinds of jobs are kept, at some 20 KB each."""

SIMPLE = re.compile(r"(\+{0,2}[\w./@]+)=[\w.+-]+")
"""An override whose value is one word or number, and its key as Hydra has it."""

NOT_ALONE = re.compile(r"_target_|\$\{(?!mount:|run:)[^}]*:")
"""In an override: what follows from other files, from the environment or the clock, too."""


NOT_KNOWN = re.compile(r"[+~]*(hydra|(launcher\.)?again\b)")
"""Overrides of Hydra itself, and those by which a job is to run anew."""


class Composer:
    """Composes the jobs of a sweep: what `config_loader.load_sweep_config` returns, faster.

    `checked` is for `planned`: what was found in parts that other jobs have, too.
    """

    def __init__(self, config_loader: ConfigLoader, master_config: DictConfig) -> None:
        self.checked: config.Checked = {}
        self._loader, self._master = config_loader, master_config
        self._parser = OverridesParser.create()
        self._values: dict[tuple[str, bool], bool] = {}
        self._base = functools.lru_cache(KINDS)(self._compose_kind)
        self._basis = functools.lru_cache(KINDS)(self._digest_kind)
        self._parsed = functools.lru_cache(KINDS)(self._parse)

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return the whole configuration of a job, with Hydra's own node, as `hydra.job.num`.

        Raises what Hydra raises where something is wrong with the overrides.
        """
        words = list(overrides)
        cfg = self._quickly(words)
        if cfg is None:
            cfg = self._loader.load_sweep_config(self._master, words)
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        return cfg

    def basis(self, overrides: Sequence[str]) -> str | None:
        """Return a digest of all that a job's identity follows from, but for its overrides.

        Jobs of equal overrides and basis are the same job: the files that Hydra composed, the
        environment that they name, and the code. None where only composing the job can tell, and
        for a job that is to run anew: that it was known before says nothing.
        """
        words = list(overrides)
        if any(NOT_KNOWN.match(word) or NOT_ALONE.search(word) for word in words):
            return None
        try:
            return self._basis(tuple(w for w in words if not self._is_value(self._form(w), words)))
        except Exception:
            return None  # composing it will tell what is wrong

    def _digest_kind(self, kind: tuple[str, ...]) -> str | None:
        cfg: DictConfig = pickle.loads(self._base(kind))
        with _current(cfg):
            plain = config.resolve(cfg)
        if config.get(plain, "again") or config.get(plain, "launcher.again"):
            return None
        code = config.to_job(plain, Path()).code.digest
        return config.digest({"config": plain, "code": code, "version": __version__})

    def _quickly(self, words: list[str]) -> DictConfig | None:
        """Return the same without reading a file; None where that is not sure, or not right."""
        try:
            overrides = [self._parsed(word) for word in words]
            if any(_needs_hydra(override) for override in overrides):
                return None
            is_value = [self._is_value(_form(override), words) for override in overrides]
            kind = tuple(word for word, value in zip(words, is_value, strict=True) if not value)
            values = [one for one, value in zip(overrides, is_value, strict=True) if value]
            cfg: DictConfig = pickle.loads(self._base(kind))
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            self._tell(cfg, overrides, words)
        except Exception:
            return None  # Hydra says what is wrong, in its words and in its order
        return cfg

    def _parse(self, word: str) -> Override:
        return self._parser.parse_overrides([word])[0]

    def _compose_kind(self, kind: tuple[str, ...]) -> bytes:
        # Pickled, it is copied in a fifth of the time of a deepcopy, and takes less memory.
        return pickle.dumps(self._loader.load_sweep_config(self._master, list(kind)))

    def _form(self, word: str) -> tuple[str, bool]:
        """Return `_form`, of most overrides without the grammar, which takes its time."""
        found = SIMPLE.fullmatch(word)
        return (found[1], False) if found else _form(self._parsed(word))

    def _is_value(self, form: tuple[str, bool], words: list[str]) -> bool:
        """Tell whether an override only changes the composed configuration, and chooses no file.

        Hydra itself is asked, once for each key: is it a group?
        """
        if form not in self._values:
            always = OmegaConf.to_container(self._master.hydra.overrides.hydra)
            assert isinstance(always, list)
            found = self._loader.compute_defaults_list(
                self._master.hydra.job.config_name, [*always, *words], RunMode.RUN
            )
            values = {_form(one) for one in found.config_overrides}
            self._values |= {(one := self._form(word)): one in values for word in words}
        return self._values[form]

    def _tell(self, cfg: DictConfig, overrides: list[Override], words: list[str]) -> None:
        """Write down in Hydra's node what Hydra does."""
        cfg.hydra.overrides.task = words
        how = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides, kv_sep=how.kv_sep, item_sep=how.item_sep, exclude_keys=how.exclude_keys
        )
        OmegaConf.copy_cache(self._master, cfg)  # such as ${now:}: the same for all jobs


def _needs_hydra(override: Override) -> bool:
    """Tell whether an override is about Hydra itself, or is several, which a job cannot have."""
    return override.key_or_group.startswith("hydra") or override.is_sweep_override()


def _form(override: Override) -> tuple[str, bool]:
    """Return what decides whether an override is a value: `model={...}` is one, `model=mlp` not."""
    return override.get_key_element(), isinstance(override.value(), dict)


def planned(
    cfg: DictConfig, directory: Path, checked: config.Checked | None = None, apart: bool = False
) -> tuple[dict[str, Any], JobSpec, Launcher]:
    """Check the configuration of a job, and return it plain, with its job and its launcher.

    Args:
        cfg: what `Composer.compose` returned.
        directory: the folder of the sweep; the run directory is made below it, by the job's name.
        checked: `Composer.checked`, to look only once at what many jobs have.
        apart: whether the sweep has the same jobs for several launchers.

    Raises:
        ConfigError: with every problem found.
    """
    with _current(cfg):
        plain = config.validate(cfg, checked)
    trusted = (*TRUSTED, *plain["trusted_modules"])
    place = instantiate(config.arguments(plain, "launcher"), trusted, "launcher")
    if apart:
        plain = config.named_after(place.scheme, plain)
    return plain, config.to_job(plain, directory.joinpath), place


@contextlib.contextmanager
def _current(cfg: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` be about one job. HydraConfig.set_config would copy a lot for that."""
    current: Any = HydraConfig.instance()
    before, current.cfg = current.cfg, cfg
    try:
        yield
    finally:
        current.cfg = before
