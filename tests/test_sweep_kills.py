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


def start(player: Player, directory: Path, count: int) -> "subprocess.Popen[str]":
    words = ["-m", "launcher=eks", "launcher.image=team/image:1", f"seed=range({count})"]
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


@pytest.mark.parametrize(("kills", "count"), [(2, 8), pytest.param(30, 40, marks=pytest.mark.soak)])
def test_a_killed_submitter(tmp_path: Path, kills: int, count: int) -> None:
    seed = int(os.environ.get("DRILL_SEED", "0"))
    moments, victim = random.Random(seed), Victim()
    directory = tmp_path / "sweep"
    died = 0
    with Player(tmp_path / "home", value, request=victim.hear) as player:

        def sit() -> tuple[int, str]:
            victim.base = player.asked.total()
            victim.process = start(player, directory, count)
            printed, _ = victim.process.communicate()
            assert victim.process.returncode in (0, -signal.SIGKILL), printed
            return victim.process.returncode, printed

        for _ in range(kills):
            # A job takes some seven requests: the sweep shrinks from sitting to sitting.
            victim.at = moments.randint(1, 7 * count // kills)
            died += sit()[0] == -signal.SIGKILL
        victim.at = None
        code, printed = sit()
        assert code == 0
        assert died >= min(kills, 3), f"the sweep was over too early: {died} kills"
        # Each job was created once, and ran once.
        assert len(player.created()) == len(player.ran) == count
        assert set(player.ran.values()) == {1}
        # All is known by now: once more, and nobody is asked.
        asked = player.asked.total()
        code, again = sit()
        assert code == 0 and player.asked.total() == asked
        assert again.endswith(printed[printed.index("\n  job") :])
    sweep = journal.read(directory)
    rows = sweep.shown()
    assert [row.params for row in rows] == [{"seed": seed} for seed in range(count)]
    assert [row.state for row in rows] == [State.SUCCEEDED] * count
    assert [row.values for row in rows] == [[value(row.params)] for row in rows]
    assert (directory / "sweep.csv").read_text().count("\n") == count + 1
