"""Configurations as `train.py` makes them, for a run directory of their own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module

from hydra_trainer import config, worker
from hydra_trainer.job import JobSpec


def write(directory: Path, overrides: list[str]) -> Path:
    """Compose, validate and write the configuration of a job. Returns its config.yaml."""
    config.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        cfg = compose("config", ["trusted_modules=[benchmarks]", *overrides])
    job = config.to_job(config.validate(cfg), directory)
    directory.mkdir(parents=True)
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(job.config))
    return path


def make(directory: Path, overrides: list[str]) -> dict[str, Any]:
    """Write a configuration and read it as a worker does."""
    return worker.read_config(write(directory, overrides))


def sweep(count: int, launcher: str, first: int = 0) -> list[JobSpec]:
    """Return the jobs of a sweep over the seed."""
    config.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        plain = config.validate(compose("config", [f"launcher={launcher}"]))
    job = config.to_job(plain, Path("runs/x"))
    found = []
    for number in range(first, first + count):
        identity = f"{number:08x}" * 2
        name = f"{job.name[:-8]}{identity[:8]}"
        run = {**job.config["run"], "identity": identity, "name": name}
        made = {**job.config, "seed": number, "run": run}
        found.append(replace(job, config=made, identity=identity, name=name))
    return found
