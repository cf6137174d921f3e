"""What people read of a sweep on a terminal and in a log, and sweep.csv."""

import csv
import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from hydra_trainer.sweep import live, table
from hydra_trainer.sweep.front import front
from hydra_trainer.sweep.grid import begun, cut, fitted
from hydra_trainer.sweep.rows import Row, Sweep
from hydra_trainer.sweep.tally import left
from hydra_trainer.sweep.words import command, duration, reason, short, spent, varied

from .swept import ACCURACY, BEGAN, LOSS, Told, grown


def under_way(count: int = 1000, ended: int = 60, running: int = 8) -> Told:
    """Return a sweep in the middle: of what has ended, one in five has failed."""
    told = Told()
    for number in range(count):
        told.job(number, optim__lr=0.001 * (1 + number), model="mlp" if number % 2 else "convnet")
    for number in range(min(count, ended + running)):
        told.running(number)
        told.progress(number, 5, 15, 0.5)
        told.at += 10
        if number < ended and number % 5 == 0:
            told.failed(number, message=f"CUDA out of memory in job {number}")
        elif number < ended:
            told.succeeded(number, 0.1 + 0.001 * number)
    for number in range(ended + running, min(count, ended + running + 4)):
        told.sent(number)
    return told


class Seen:
    """A view and what it has written; its clock stands still until it is told otherwise."""

    def __init__(self, terminal: bool, width: int = 80, height: int = 24, **more: Any) -> None:
        self.now = BEGAN
        self._file = io.StringIO()
        console = Console(
            file=self._file,
            force_terminal=terminal,
            force_interactive=terminal,
            width=width,
            height=height,
            color_system=None,
        )
        self.view = table.view(console, clock=lambda: self.now, **more)

    def update(self, told: Told, after: float = 10.0) -> list[str]:
        """Show a sweep after some seconds; return the new lines."""
        self.now += after
        self.view.update(told.sweep)
        return self.lines()

    def lines(self) -> list[str]:
        written = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return written.splitlines()


def frame(told: Told, width: int = 80, height: int = 24, total: int | None = None) -> list[str]:
    found = live.frame(told.sweep, told.at + 10, BEGAN, width, height, total)
    return [line.plain.rstrip() for line in found]


# -------------------------------------------------------------------------------- on a terminal


@pytest.mark.parametrize("width, height", [(80, 24), (200, 60), (40, 10), (80, 3), (20, 1), (1, 2)])
def test_the_table_never_leaves_the_screen(width: int, height: int) -> None:
    lines = frame(under_way(), width, height)
    assert 0 < len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_the_table_with_1000_jobs() -> None:
    lines = frame(under_way())
    assert lines[0].startswith("  60 of 1,000 ━")
    assert lines[1] == "  8 running, 4 pending, 48 succeeded, 12 failed, 928 planned"
    assert lines[2] == "  11:30, about 1:37:12 left; best val/loss 0.101 (job 1)"
    states = [line.split()[1] for line in lines[5:-1]]
    assert states == ["running"] * 8 + ["failed"] * 3 + ["succeeded"] * 7
    numbers = [int(line.split()[0]) for line in lines[5:-1]]
    assert numbers == [*range(60, 68), 55, 50, 45, 1, 2, 3, 4, 6, 7, 8]  # the newest, the best
    assert lines[5].split() == ["60", "running", "0.061", "convnet", "5/15", "0.5", "1:30"]
    assert lines[13].split(maxsplit=4)[4].startswith("OutOfMemoryError: CUDA out")
    assert lines[-1] == "  ... and 982 more: 4 pending, 41 succeeded, 9 failed, 928 planned"


def test_the_table_shows_every_job_where_there_is_room() -> None:
    lines = frame(under_way(12, 4, 3))
    assert len(lines) == 5 + 12 and "more" not in lines[-1]
    assert [line.split()[1] for line in lines[-5:]] == ["pending"] * 4 + ["planned"]


def test_jobs_that_nobody_has_asked_for_yet_are_counted() -> None:
    lines = frame(under_way(20, 4, 3), total=64)
    assert lines[0].startswith("  4 of 64 ") and lines[1].endswith("53 planned")
    assert lines[-1] == "  ... and 46 more: 46 planned"


def test_where_a_job_runs_is_shown_if_there_are_several_places_or_room() -> None:
    told = Told()
    told.job(0, "eks", optim__lr=1)
    assert frame(told)[4].split() == ["job", "state", "lr", "epoch", "val/loss", "time"]
    assert frame(told, 130)[5].split() == ["0", "planned", "1", "eks", "mlp-digits-0000"]
    told.job(1, "sagemaker", optim__lr=2)
    assert frame(told)[6].split() == ["1", "planned", "2", "sagemaker"]


def test_the_table_is_drawn_in_place_and_a_line_stays() -> None:
    seen, told = Seen(True), under_way(20, 20)
    (first, *_) = [line for line in seen.update(told) if "of 20" in line]
    assert "20 of 20" in first
    seen.view.say("job [3] was not sent")
    assert any("job [3] was not sent" in line for line in seen.lines())  # no markup of rich's
    seen.view.close()
    *_, last = [line for line in seen.lines() if "of 20" in line]
    assert "20 of 20 jobs have ended after 0:10" in last
    seen.view.close()
    seen.view.update(told.sweep)
    assert seen.lines() == []


def test_drawing_takes_at_most_a_hundredth_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = used = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

        @classmethod
        def thread_time(cls) -> float:
            cls.used += 0.02  # so long takes a drawing
            return cls.used

    seen, told = Seen(True), under_way(20, 20)
    monkeypatch.setattr(live, "time", Clock)
    drawn = 0
    for _ in range(1000):
        Clock.now += 0.1
        seen.view.update(told.sweep)
        drawn += any("of 20" in line for line in seen.lines())
    assert 30 < drawn <= 0.01 * 100 / 0.02
    seen.view.close()


# -------------------------------------------------------------------------------------- in a log


def test_lines_for_each_change_that_matters() -> None:
    seen, told = Seen(False), Told()
    for number in range(4):
        told.job(number, optim__lr=0.1 * number, model="mlp")
    assert seen.update(told) == []
    for number in range(3):
        told.running(number)
    assert seen.update(told) == ["sent 3 jobs to eks"]
    told.progress(0, 1, 15, 0.3)
    assert seen.update(told) == []
    told.succeeded(0, 0.25)
    told.failed(1, "Evicted", "the node\nwas taken away")
    told.ended(2, "PRUNED")
    told.sent(3)
    assert seen.update(told) == [
        "sent job 3 to eks",
        "job 0 (lr=0) succeeded after 0:20: val/loss 0.25, the best so far",
        "job 1 (lr=0.1) failed after 0:21: Evicted: the node",
        "job 2 (lr=0.2) pruned after 0:22",
    ]
    told.at += 5
    told.retried(1)
    told.running(1)
    assert seen.update(told) == ["sent job 1 to eks"]
    told.succeeded(1, 0.5)
    assert seen.update(told, 0.1) == []  # not at once, but
    seen.view.close()
    assert seen.lines() == [
        "job 1 (lr=0.1) succeeded after 0:21: val/loss 0.5",
        "3 of 4 jobs have ended after 0:50: 1 pending, 2 succeeded, 1 pruned; "
        "best val/loss 0.25 (job 0)",
    ]
    seen.view.close()
    assert seen.lines() == []


def test_a_thousand_jobs_are_no_flood() -> None:
    seen, told = Seen(False), Told()
    for number in range(1000):
        told.job(number, optim__lr=number)
    written = seen.update(told)
    for number in range(1000):  # ten a second
        told.sent(number)
        written += seen.update(told, 0.05)
        told.succeeded(number, 1000.0 - number)
        written += seen.update(told, 0.05)
    seen.view.close()
    written += seen.lines()
    assert len(written) < 600
    assert any(line.startswith("sent 20 jobs") for line in written)
    assert any("more have ended: " in line and "best val/loss" in line for line in written)
    assert written[-1].startswith("1,000 of 1,000 jobs have ended")


def test_what_ended_before_is_told_in_one_line() -> None:
    seen = Seen(False)
    (line,) = seen.update(under_way(100, 90))
    assert line.startswith("100 jobs, of which the journal says: 8 running, 2 pending, 72 succ")


# ------------------------------------------------------------------------------------ at the end


def test_the_last_table() -> None:
    told = under_way(30, 24, 0)
    told.ended(24, "CANCELLED", reason="Stopped")
    parts = table.final(told.sweep, Path("runs/my sweeps/x"), 80).split("\n\n")
    assert parts[0] == "25 of 30 jobs have ended: 3 pending, 19 succeeded, 5 failed, " + (
        "1 cancelled, 2 planned"
    )
    head, *rows = parts[1].splitlines()
    assert head.split() == ["job", "val/loss", "time", "state", "lr", "model"]
    assert rows[0].split() == ["1", "0.101", "0:21", "succeeded", "0.002", "mlp"]
    assert rows[-1].split()[-3:] == ["cancelled", "0.025", "convnet"]
    _, _, *failed = parts[2].splitlines()
    assert failed[0].split(maxsplit=3)[:3] == ["0", "0.001", "convnet"]
    assert failed[0].endswith("OutOfMemoryError: CUDA out of memory in job 0")
    assert parts[3].splitlines() == [
        "Best: job 1, val/loss 0.101",
        "  python train.py launcher=eks optim.lr=0.002 model=mlp",
    ]
    commands = [line.strip() for line in parts[4].splitlines()[2::2]]
    assert commands == [
        "'runs/my sweeps/x/report.html'",
        "hydra-trainer why eks://prod/team/mlp-digits-0000",
        "hydra-trainer sweep retry-failed 'runs/my sweeps/x'",
        "python train.py -m launcher=eks launcher.detach=true optim.lr=1e-4,1e-3",
    ]


@pytest.mark.parametrize("width", [80, 100, 40])
def test_the_last_table_of_a_large_sweep_is_short(width: int) -> None:
    sweep = grown(1000)
    text = table.final(sweep, Path("x"), width)
    head = text.split("\n\nBest:")[0].splitlines()
    assert len(head) <= 50
    assert width < 80 or max(map(cell_len, head)) <= width
    values = [float(line.split()[1]) for line in head[3:33]]
    assert values == sorted(values) and values[0] == pytest.approx(
        sweep.ranked()[0].values[0], 1e-3
    )
    assert sum("... and" in line for line in head) == 2 and "x/sweep.csv" in text


def test_more_is_better_where_the_objective_says_so() -> None:
    told = Told([ACCURACY])
    for number, accuracy in enumerate((0.5, 0.9, 0.7)):
        told.job(number, optim__lr=number)
        told.succeeded(number, accuracy)
    assert "Best: job 1, val/acc 0.9\n" in table.final(told.sweep, None, 80)


def test_several_objectives_have_a_front() -> None:
    told = Told([LOSS, ACCURACY])
    for number, values in enumerate([(0.3, 0.9), (0.1, 0.5), (0.2, 0.95), (0.4, 0.99), (0.2, 0.4)]):
        told.job(number, optim__lr=number)
        told.succeeded(number, *values)
    good = [row.number for row in front(list(told.sweep.rows.values()), told.sweep.objectives)]
    assert good == [1, 2, 3]
    text = table.final(told.sweep, None, 80)
    ahead, others = text.split("The others:")
    assert [line.split()[0] for line in ahead.splitlines()[4:7]] == ["1", "2", "3"]
    assert [line.split()[0] for line in others.splitlines()[2:4]] == ["4", "0"]
    assert "Best: job 1, val/loss 0.1, val/acc 0.5\n" in text
    assert "Best: job 3, val/loss 0.4, val/acc 0.99\n" in text


def test_a_row_with_the_objectives_of_another_sitting_is_not_compared() -> None:
    told = Told([LOSS, ACCURACY])
    for number, values in enumerate([(0.3,), (0.4, 0.9)]):
        told.job(number, optim__lr=number)
        told.succeeded(number, *values)
    assert "Best: job 1, val/loss 0.4, val/acc 0.9\n" in table.final(told.sweep, None, 80)


def test_nothing_came_of_it() -> None:
    assert table.final(Told().sweep, None, 80) == "0 jobs: none was asked for"
    told = Told()
    told.job(0, optim__lr=1)
    told.failed(0, "NotSent", "no such host")
    text = table.final(told.sweep, Path("x"), 80)
    assert "1 failed:" in text and "NotSent: no such host" in text and "Best" not in text
    assert "hydra-trainer why" not in text  # it never ran


def test_status_says_who_runs_it_and_what_runs() -> None:
    told = under_way(30, 10)
    text = table.status(told.sweep, "pid 7 on ada", Path("x"), 80, now=told.at + 10)
    lines = text.splitlines()
    assert lines[0].startswith("10 of 30 jobs have ended: 8 running, 4 pending, 8 succeeded")
    assert lines[1] == "pid 7 on ada runs it"
    assert [line.split()[0] for line in lines[4:12]] == [str(n) for n in range(10, 18)]
    assert "2 failed:" in text and lines[-1].endswith("hydra-trainer sweep table x")
    alone = table.status(told.sweep, None, None, 80, now=told.at)
    assert "nobody runs it; to go on: python train.py -m launcher=eks" in alone
    done = table.status(grown(3), None, None, 80)
    assert "nobody" not in done


# ----------------------------------------------------------------------------------- sweep.csv


def test_the_file_holds_all_that_is_known() -> None:
    told = Told([LOSS, ACCURACY])
    told.job(0, launcher="eks", optim__lr=1 / 3, name="a,b", data__flip=True, model=None)
    told.running(0)
    told.succeeded(0, 0.25, 0.75)
    told.job(1, optim__lr=1e-5, name='say "hi"\nyou')
    told.failed(1, "Evicted", "taken\naway")
    first, second = csv.DictReader(io.StringIO(table.csv(told.sweep)))
    assert first["optim.lr"] == repr(1 / 3) and first["data.flip"] == "true"
    assert first["model"] == "null" and first["param.name"] == "a,b"
    assert first["name"] == "mlp-digits-0000" and first["state"] == "SUCCEEDED"
    assert (first["val/loss"], first["val/acc"], first["last.val/loss"]) == ("0.25", "0.75", "0.25")
    assert first["started"] == "2027-01-15T08:00:00Z" and first["seconds"] == "20.0"
    assert second["param.name"] == 'say "hi" you' and second["message"] == "taken\naway"
    assert second["val/loss"] == second["model"] == second["handle"] == ""


# ----------------------------------------------------------------------------------- the words


def test_the_command_of_a_job_can_be_pasted() -> None:
    told = Told(words="--config-dir 'my conf' -cn mine --multirun hydra.searchpath=[a] a=1,2 -m")
    told.job(0, name="it's <b>", data="x y")
    row = told.sweep.rows[0]
    row.overrides += ["again=true", "sweep=optuna", "sweep.n_trials=3", "+hydra.launcher.x=1"]
    words = shlex.split(command(told.sweep, row))
    assert words == [
        *("python", "train.py", "--config-dir", "my conf", "-cn", "mine", "hydra.searchpath=[a]"),
        *("launcher=eks", "name=it's <b>", "data=x y"),
    ]


def test_only_what_differs_is_shown_under_short_names() -> None:
    rows = [
        Row(n, "", "eks", [], {"optim.lr": n, "model.lr": n, "data.size": n, "seed": 1}, "")
        for n in range(3)
    ]
    assert varied(rows) == ["optim.lr", "model.lr", "data.size"]
    assert list(short(varied(rows)).values()) == ["optim.lr", "model.lr", "size"]
    assert varied(rows[:1]) == ["optim.lr", "model.lr", "data.size", "seed"]
    assert varied([Row(0, "", "", [], {"a": 1}, ""), Row(1, "", "", [], {}, "")]) == ["a"]


def test_reasons_on_one_line() -> None:
    def row(name: str, message: str) -> Row:
        return Row(0, "", "eks", [], {}, "", reason=name, message=message)

    assert reason(row("Error", "\n first \nsecond")) == "Error: first"
    trace = "Traceback (most recent call last):\n  File x\nValueError: no"
    assert reason(row("ValueError", trace)) == "ValueError: no"
    assert reason(row("", "\x1b[31mred\x1b[0m")) == "red"
    assert reason(row("", "")) == "no reason is known"


def test_times() -> None:
    found = [duration(seconds) for seconds in (-1, 0.4, 59.6, 3599, 3600, 47 * 3600, 2 * 86400.0)]
    assert found == ["0:00", "0:00", "1:00", "59:59", "1:00:00", "47:00:00", "2 d 0 h"]
    told = Told()
    told.job(0)
    assert spent(told.sweep.rows[0], BEGAN) is None
    told.running(0)
    assert spent(told.sweep.rows[0], BEGAN + 5) == 5
    told.at += 86400  # nobody looked
    told.succeeded(0, 1.0)
    assert spent(told.sweep.rows[0], BEGAN + 90000) == 20


def test_the_time_that_is_left() -> None:
    told = Told()
    for number in range(10):
        told.job(number)
    rows = told.sweep.shown()
    assert left(rows, told.at, 10) is None
    told.running(0)
    told.running(1)
    assert left(rows, told.at + 10, 10) is None
    told.progress(0, 5, 15, 0.1)
    assert left(rows, told.at + 10, 10) == (8 * 30 + 2 * 20) / 2
    told.succeeded(0, 0.1)  # in 20 s
    assert left(rows, told.at + 10, 12) == 10 * 20 + 10


def test_cells_are_cut_in_the_middle() -> None:
    assert cut("abcdefghijklmnop", 12) == "abcde...mnop" and begun("abcdefgh", 6) == "abc..."
    assert cut("日本語日本語日本語", 11) == "日本...本語"
    assert cut("abcdef", 3) == "abc" and cut("abc", 0) == ""
    head, row = fitted(["optimizer", "model"], [["a" * 60, "mlp"]], 40)
    assert row.startswith("aaaa") and "..." in row and row.rstrip().endswith("mlp")
    assert cell_len(head) <= 40
    _, row = fitted(["a", "b", "c", "d"], [["x" * 20] * 4], 20)
    assert row.startswith("a=xx") and cell_len(row) == 20
    assert Sweep().shown() == []
