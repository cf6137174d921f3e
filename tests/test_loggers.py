"""What the loggers hold after a run, and after one that was killed and went on."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hydra_trainer import metrics

from .conftest import Job

Hit = Callable[..., dict[str, str]]


def test_a_killed_run_is_one_curve(job: Callable[..., Job], hit: Hit) -> None:
    """Steps that were trained twice are logged once, in TensorBoard as in metrics.csv."""
    drill = job("run", "logger=tensorboard", "checkpoint.every_n_steps=null")
    assert drill.run(**hit("SIGKILL", "train", 16))[0] == -9
    code, printed = drill.run()
    assert code == 0, printed
    events = EventAccumulator(str(drill.directory / "tensorboard"))
    events.Reload()
    csv = metrics.read(drill.directory / "metrics.csv")
    assert {"train/loss", "val/loss", "val/acc", "lr"} <= csv.keys()
    for name in ("train/loss", "val/loss", "val/acc", "lr"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == csv[name][0], name
        assert [s.value for s in scalars] == pytest.approx(csv[name][1])
    assert csv["val/loss"][0] == [9, 18, 27]
    assert csv["train/loss"][0] == [*range(3, 28, 3)]


def test_mlflow_in_its_file(job: Callable[..., Job]) -> None:
    drill = job("run", "logger=mlflow")
    code, printed = drill.run()
    assert code == 0, printed
    with sqlite3.connect(drill.directory / "mlflow.db") as database:
        steps = database.execute("select step from metrics where key = 'val/loss' order by step")
        assert [step for (step,) in steps] == [9, 18, 27]
        found = database.execute("select value from params where key = 'model.hidden'")
        assert found.fetchall() == [("16",)]


def test_wandb_offline(job: Callable[..., Job], tmp_path: Path) -> None:
    drill = job("run", "logger=wandb")
    code, printed = drill.run(WANDB_SILENT="true", HOME=str(tmp_path))
    assert code == 0, printed
    (written,) = drill.directory.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"val/loss" in content
    assert b"model.hidden" in content


def test_the_picture(job: Callable[..., Job]) -> None:
    drill = job("run")
    code, printed = drill.run()
    assert code == 0, printed
    assert (drill.directory / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_a_torn_row_is_written_again(tmp_path: Path) -> None:
    """A kill in the middle of a row, and rows after the checkpoint: both go."""
    log = metrics.CSVLog(str(tmp_path))
    for step in (3, 6, 9):
        log.log_metrics({"train/loss": 1.0 / step}, step)
    path = tmp_path / metrics.FILE
    path.write_text(path.read_text()[:-4])
    resumed = metrics.CSVLog(str(tmp_path), resume_step=6)
    resumed.log_metrics({"val/loss": 0.5}, 7)
    assert metrics.read(path) == {
        "train/loss": ([3, 6], pytest.approx([1 / 3, 1 / 6])),
        "val/loss": ([7], [0.5]),
    }
