"""The submitter of a sweep is killed, and the same command goes on: every job runs exactly once."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.player import Player
from hydra_trainer.sweep import journal
from hydra_trainer.sweep.rows import State

from .conftest import REPOSITORY, environment

COUNT = 40


def value(config: dict[str, Any]) -> float:
    return (config["seed"] - 17) ** 2 / 100


class Victim:
    """A submitter, to be killed with the request of a given number."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.at: int | None = None
        self.base = 0

    def hear(self, number: int) -> None:
        if self.process is not None and self.at is not None and number - self.base >= self.at:
            self.process.kill()
            self.at = None


def start(player: Player, directory: Path) -> "subprocess.Popen[str]":
    words = ["-m", "launcher=eks", "launcher.image=team/image:1", f"seed=range({COUNT})"]
    limits = ["hydra.launcher.max_concurrent=5", f"hydra.sweep.dir={directory}"]
    return subprocess.Popen(
        [sys.executable, "train.py", *words, *limits],
        cwd=REPOSITORY,
        env=environment() | player.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_a_killed_submitter(tmp_path: Path, kills: int) -> None:
    seed = int(os.environ.get("DRILL_SEED", "0"))
    moments, victim = random.Random(seed), Victim()
    directory = tmp_path / "sweep"
    died = 0
    with Player(tmp_path / "home", value, request=victim.hear) as player:
        for _ in range(kills):
            victim.base = player.asked.total()
            # A job takes some seven requests: the sweep shrinks from sitting to sitting.
            victim.at = moments.randint(1, 7 * COUNT // kills)
            victim.process = start(player, directory)
            printed, _ = victim.process.communicate()
            died += victim.process.returncode == -signal.SIGKILL
            assert victim.process.returncode in (0, -signal.SIGKILL), printed
        victim.at = None
        last = start(player, directory)
        printed, _ = last.communicate()
        assert last.returncode == 0, printed
        assert died >= min(kills, 3), f"the sweep was over too early: {died} kills"
        # Each job was created once, and ran once.
        assert len(player.created()) == COUNT and set(player.ran.values()) == {1}
        assert len(player.ran) == COUNT
    sweep = journal.read(directory)
    rows = sweep.shown()
    assert [row.params for row in rows] == [{"seed": seed} for seed in range(COUNT)]
    assert [row.state for row in rows] == [State.SUCCEEDED] * COUNT
    assert [row.values for row in rows] == [[value(row.params)] for row in rows]
    assert "seed=17" in printed
    assert (directory / "sweep.csv").read_text().count("\n") == COUNT + 1


def test_a_finished_sweep_asks_nobody(tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    with Player(tmp_path / "home", value) as player:
        for turn in range(2):
            before = player.asked.total()
            process = start(player, directory)
            printed, _ = process.communicate()
            assert process.returncode == 0, printed
            assert turn == 0 or player.asked.total() == before
