"""The values of one trial, which a tuning service chose: how a worker puts them into its config.

A worker never composes: all it gets are dotted keys with values as text. What a text means, the
value that it replaces tells.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from .errors import ConfigError, did_you_mean

Config = dict[str, Any]


def applied(config: Config, values: Mapping[str, str]) -> Config:
    """Return a copy of a resolved configuration with other values, given as text.

    Raises:
        ConfigError: with every key that is not there, and every text that is no such value.
    """
    found: Config = json.loads(json.dumps(config))
    problems: list[str] = []
    for key, text in values.items():
        try:
            _put(found, key, text)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _put(config: Config, key: str, text: str) -> None:
    node: Any = config
    *way, last = key.split(".")
    for at, part in enumerate([*way, last]):
        if not isinstance(node, dict) or part not in node:
            raise ConfigError(_unknown(key, ".".join(way[:at]), node, part))
        if at < len(way):
            node = node[part]
    node[last] = read(key, text, node[last])


def _unknown(key: str, place: str, node: Any, part: str) -> str:
    known = [str(name) for name in node] if isinstance(node, dict) else []
    return (
        f"{key} is to be {part!r} of {place or 'the configuration'}, which has no such key."
        f"{did_you_mean(part, known)} It has: {', '.join(known) or 'none'}."
    )


def read(key: str, text: str, before: Any) -> Any:
    """Return the value that a text stands for where another one was.

    Raises ConfigError when it is none of that kind.
    """
    if isinstance(before, str):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and not isinstance(before, bool):
        value = _number(value)  # to YAML, 1e-05 is a word
    if before is None or value is None or type(value) is type(before):
        return value
    if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(before) is int and isinstance(value, float) and value.is_integer():
        return int(value)  # services write 64.0
    raise ConfigError(f"{key} is {text!r}, but must be {_KINDS[type(before)]}, as {before!r} was.")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def text_of(value: Any) -> str:
    """Return a value as the text that `read` reads as that value."""
    return value if isinstance(value, str) else json.dumps(value)


def differing(one: Any, other: Any, key: str = "") -> list[str]:
    """Return the dotted keys in which two configurations are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys([*one, *other])
        return [
            found
            for name in names
            for found in differing(one.get(name), other.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if type(one) is type(other) and one == other else [key]


# ----------------------------------------------------------------------------------------- a trial


def of_trial(config: Config, trial: Mapping[str, Any]) -> Config:
    """Return the configuration of a trial: `{"name": ..., "values": {key: text}}`.

    Its run directory is a folder of its own in the one that all trials share, here and in S3, and
    its identity that of the job which somebody gets who types these values.

    Args:
        config: resolved, with `${mount:...}` as it came.
        trial: what bootstrap.trial() returned.

    Raises:
        ConfigError: see `applied`.
    """
    from .config import identity

    found = applied(config, trial["values"])
    run, name = found["run"], str(trial["name"])
    digest = identity(found, run["code_digest"])
    own = {key: f"{run[key]}/{name}" for key in ("dir", "remote") if run.get(key)}
    found["run"] = {**run, **own, "name": name, "identity": digest}
    return found
