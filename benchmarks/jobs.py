"""Configurations as `train.py` makes them, for a run directory of their own."""

from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module

from hydra_trainer import config, worker


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
