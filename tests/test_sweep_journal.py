"""The journal of a sweep: what was written is there, what was half written is not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.errors import LaunchError
from hydra_trainer.sweep import journal
from hydra_trainer.sweep.journal import FILE, Journal
from hydra_trainer.sweep.rows import State

HEAD = {
    "event": "sweep",
    "words": ["-m", "seed=1,2"],
    "cwd": "/here",
    "program": "python train.py",
    "identity": "abc",
    "sweeper": "basic",
    "objectives": [{"metric": "val/loss", "mode": "min"}],
}


def job(number: int, **more: Any) -> dict[str, Any]:
    words = [f"seed={number}"]
    return {
        "event": "job",
        "number": number,
        "name": f"job-{number}",
        "launcher": "local",
        "overrides": words,
        "params": {"seed": number},
        "output": f"/runs/job-{number}",
        **more,
    }


def fill(directory: Path) -> None:
    with Journal(directory) as book:
        book.write(HEAD, job(0), job(1), {"event": "plan", "numbers": [0, 1]})
        book.write({"event": "sent", "number": 0, "handle": "local:///runs/job-0"})
        book.write({"event": "running", "number": 0})
        told = {"epoch": 1, "epochs": 2, "step": 9, "values": {"val/loss": 0.5}, "value": 0.5}
        book.write({"event": "progress", "number": 0, **told})
        book.write({"event": "ended", "number": 0, "state": "SUCCEEDED", "values": [0.25]})


def test_a_sweep_is_rebuilt_from_its_journal(tmp_path: Path) -> None:
    fill(tmp_path)
    sweep = journal.read(tmp_path)
    assert sweep.words == ["-m", "seed=1,2"] and sweep.current == [0, 1]
    first, second = sweep.shown()
    assert first.state is State.SUCCEEDED and first.values == [0.25] and first.attempts == 1
    assert first.curve == [(9, 0.5)] and first.progress and first.progress["epoch"] == 1
    assert first.sent and first.started and first.ended
    assert second.state is State.PLANNED and second.handle is None
    assert [row.number for row in sweep.ranked()] == [0]
    with Journal(tmp_path) as book:
        assert book.sweep == sweep


@pytest.mark.parametrize("lost", range(1, 70, 7))
def test_a_line_that_was_cut_is_not_there(tmp_path: Path, lost: int) -> None:
    """A killed process, or a full disk, leaves the beginning of what it wrote."""
    fill(tmp_path)
    path = tmp_path / FILE
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    assert journal.read(tmp_path).rows[0].state is State.RUNNING
    with Journal(tmp_path) as book:
        assert book.sweep.rows[0].state is State.RUNNING
        book.write({"event": "ended", "number": 0, "state": "FAILED", "reason": "OOM"})
    lines = path.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines][-2:] == ["progress", "ended"]
    assert journal.read(tmp_path).rows[0].reason == "OOM"


@pytest.mark.parametrize("line", ["{broken", '"text"', "[]", '{"no": "event"}'])
def test_a_line_in_the_middle_that_is_not_ours(tmp_path: Path, line: str) -> None:
    fill(tmp_path)
    path = tmp_path / FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:], ""]))
    before = path.read_bytes()
    for opened in (lambda: journal.read(tmp_path), Journal(tmp_path).__enter__):
        with pytest.raises(LaunchError, match=f"Line 3 of {path}"):
            opened()
    assert path.read_bytes() == before


def test_two_submitters(tmp_path: Path) -> None:
    with Journal(tmp_path):
        assert journal.writer(tmp_path) and str(os.getpid()) in str(journal.writer(tmp_path))
        with pytest.raises(LaunchError, match=f"pid {os.getpid()} on .* is running the sweep"):
            Journal(tmp_path).__enter__()
    assert journal.writer(tmp_path) is None
    with Journal(tmp_path):
        pass


def test_a_directory_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="There is no sweep in"):
        journal.read(tmp_path)


def test_a_retry_forgets_how_it_ended(tmp_path: Path) -> None:
    fill(tmp_path)
    with Journal(tmp_path) as book:
        book.write({"event": "ended", "number": 0, "state": "FAILED", "reason": "UserError"})
        book.write({"event": "retry", "number": 0})
        row = book.sweep.rows[0]
        assert row.state is State.PLANNED and row.retry and not row.reason and not row.curve
        book.write({"event": "sent", "number": 0, "handle": "local:///runs/job-0"})
        assert row.attempts == 2 and not row.retry and row.state is State.PENDING
    assert journal.read(tmp_path).rows[0] == row
