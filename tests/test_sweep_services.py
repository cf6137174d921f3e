"""Sweeps that a service drives: SageMaker's tuner, and Katib."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydra_trainer import bootstrap, config, values, worker
from hydra_trainer.errors import ConfigError

PLAIN: dict[str, Any] = {
    "model": {"_target_": "m", "hidden": 64, "dropout": 0.0, "act": "relu", "norm": None},
    "optim": {"lr": 0.001, "betas": [0.9, 0.999], "amsgrad": False},
    "storage": {"output": "runs", "mounts": {}},
    "launcher": {"_target_": "l"},
    "run": {"name": "m-d-1", "dir": "/out/m-d-1", "identity": "1", "code_digest": "c"},
}

# ---------------------------------------------------------------------------- values in the worker


def test_values_become_what_they_replace() -> None:
    texts = {
        "optim.lr": "1e-05",
        "model.hidden": "128.0",
        "model.dropout": "1",
        "model.act": "1e3",
        "model.norm": "batch",
        "optim.betas": "[0.8, 0.9]",
        "optim.amsgrad": "true",
    }
    found = values.applied(PLAIN, texts)
    assert found["optim"] == {"lr": 1e-05, "betas": [0.8, 0.9], "amsgrad": True}
    assert found["model"] == {
        "_target_": "m",
        "hidden": 128,
        "dropout": 1.0,
        "act": "1e3",
        "norm": "batch",
    }
    assert type(found["model"]["hidden"]) is int and type(found["model"]["dropout"]) is float
    assert PLAIN["model"]["hidden"] == 64


@pytest.mark.parametrize("value", ["a", "null", "1e-5", 1e-05, 64, True, None, [1, "b"], {"a": 1}])
def test_a_text_is_read_as_the_value_it_was(value: Any) -> None:
    assert values.read("key", values.text_of(value), value) == value


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("optim.lrr", "0.1", "'lrr' of optim, which has no such key. Did you mean 'lr'?"),
        ("nothing", "1", "'nothing' of the configuration"),
        ("optim.lr.x", "1", "'x' of optim.lr, which has no such key. It has: none."),
        ("model.hidden", "64.5", "model.hidden is '64.5', but must be a whole number"),
        ("optim.lr", "fast", "optim.lr is 'fast', but must be a number, as 0.001 was."),
        ("optim.amsgrad", "1", "must be true or false"),
        ("optim.betas", "0.9", "must be a list"),
    ],
)
def test_a_value_that_does_not_fit_is_told(key: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values.applied(PLAIN, {key: text, "model.nope": "1"})
    assert told in caught.value.problems[0] and "model.nope" in caught.value.problems[1]


def test_a_trial_is_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**PLAIN, "run": {**PLAIN["run"], "dir": f"{tmp_path}/out"}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(given))
    trial = {"name": "tune-7", "values": {"optim.lr": "0.5"}}
    monkeypatch.setenv(bootstrap.TRIAL, json.dumps(trial))
    found = worker.read_config(file)
    assert found["optim"]["lr"] == 0.5
    assert found["run"]["dir"] == f"{tmp_path}/out/tune-7" and found["run"]["name"] == "tune-7"
    typed = {**given, "optim": {**given["optim"], "lr": 0.5}}
    assert found["run"]["identity"] == config.identity(typed, "c")  # as of the job with that value
    monkeypatch.delenv(bootstrap.TRIAL)
    assert worker.read_config(tmp_path / "out" / "tune-7" / "config.yaml") == found
