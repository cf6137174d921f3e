"""hydra-trainer diff: what differs between two jobs, and whether it could change the training."""

import shlex
from pathlib import Path
from typing import Any

from . import config
from .errors import HydraTrainerError
from .job import JobSpec
from .launcher import Launcher
from .targets import TRUSTED, instantiate

Rows = list[tuple[str, str, str]]

NONE = "-"


def diff(left: str, right: str) -> str:
    """Return a report on two command lines of overrides, such as "launcher=eks seed=1".

    Raises:
        HydraTrainerError: one of them is no job.
    """
    sides = [_job(words) for words in (left, right)]
    (one, place), (other, other_place) = sides
    trained = _differences(_training(one), _training(other))
    facts, other_facts = place.facts(one), other_place.facts(other)
    matters = [*trained, *_differences(facts, other_facts)]
    rest = _differences(_rest(one, place), _rest(other, other_place))
    lines = [*_table("Could change the training", matters), "", *_table("Does not", rest), ""]
    if one.identity == other.identity:
        lines.append(
            f"Both are the run {one.name}: where they share storage.output, each goes on from the "
            "other's checkpoints."
        )
    elif not trained:
        lines.append(
            "The same training under two names, for it does not run on the same resources. With "
            "one hydra.run.dir, each goes on from the other's checkpoints."
        )
    else:
        lines.append("Two trainings: neither goes on from the other's checkpoints.")
    if facts["processes"] != other_facts["processes"]:
        lines.append(
            "The batch is the same, cut into other parts: sums are rounded otherwise, and dropout "
            "draws other numbers."
        )
    return "\n".join(lines)


def _job(words: str) -> tuple[JobSpec, Launcher]:
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    config.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
            plain = config.validate(compose("config", shlex.split(words)))
    except HydraException as error:
        raise HydraTrainerError(f"{words!r}: {error}") from None
    except HydraTrainerError as error:
        raise HydraTrainerError(f"{words!r}: {error}") from None
    trusted = (*TRUSTED, *plain["trusted_modules"])
    place = instantiate(config.arguments(plain, "launcher"), trusted, "launcher")
    return config.to_job(plain, Path("runs/x")), place


def _training(job: JobSpec) -> dict[str, str]:
    """Return what is trained: the keys of the configuration that decide it, and the code."""
    kept = config.without(job.config, config.NOT_TRAINING)
    return {**_flat(kept), "code": job.code.digest}


def _rest(job: JobSpec, place: Launcher) -> dict[str, str]:
    """Return all else that the configuration says; of the launcher, what is not its default."""
    training = _training(job)
    usual = type(place)()
    found = {}
    for key, value in _flat(config.without(job.config, ("run", "resources"))).items():
        first, _, option = key.partition(".")
        is_usual = first == "launcher" and str(getattr(usual, option, None)) == value
        if key not in training and not is_usual and not key.startswith("launcher.env."):
            found[key] = value
    return found


def _flat(node: Any, key: str = "") -> dict[str, str]:
    if isinstance(node, dict) and node:
        return {
            found: value
            for name, child in node.items()
            for found, value in _flat(child, f"{key}.{name}" if key else str(name)).items()
        }
    return {key: str(node)}


def _differences(left: dict[str, str], right: dict[str, str]) -> Rows:
    keys = dict.fromkeys((*left, *right))
    pairs = ((key, left.get(key, NONE), right.get(key, NONE)) for key in keys)
    return [row for row in pairs if row[1] != row[2]]


def _table(title: str, rows: Rows) -> list[str]:
    if not rows:
        return [f"{title}: nothing."]
    cut = [tuple(_cut(text) for text in row) for row in rows]
    widths = [max(len(row[i]) for row in cut) for i in range(2)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in cut]
    return [f"{title}:", *lines]


def _cut(text: str, width: int = 48) -> str:
    return text if len(text) <= width else f"...{text[-width + 3 :]}"
