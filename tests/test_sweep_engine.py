"""The engine of sweeps, with places that do what a test says."""

import queue
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.bundle import Bundle
from hydra_trainer.errors import Full, LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState, JobStatus, Report, Resources
from hydra_trainer.sweep import journal
from hydra_trainer.sweep.engine import Detached, Engine, Planned
from hydra_trainer.sweep.journal import Journal
from hydra_trainer.sweep.rows import Objective, Row, State
from hydra_trainer.sweep.source import Asked, Listed

DONE = {"status": "completed", "exit_code": 0, "metrics": {"val/loss": 0.5}}


def succeeded(value: float) -> JobStatus:
    objective = {"metric": "val/loss", "mode": "min", "value": value, "step": 9}
    return JobStatus(JobState.SUCCEEDED, exit_code=0, result={**DONE, "objective": objective})


@dataclass
class Place:
    """A launcher whose jobs do what `script` says of each: statuses, the last of which ends it.

    Each watcher's round moves every job that runs by one.
    """

    script: Callable[[str], list[JobStatus]]
    scheme: str = "eks"
    elsewhere: bool = True
    at_once: int | None = None
    detach: bool = False
    refuse: Callable[[str], Exception | None] = lambda name: None
    sent: list[tuple[str, bool]] = field(default_factory=list)
    left: dict[JobHandle, list[JobStatus]] = field(default_factory=dict)
    cancelled: list[JobHandle] = field(default_factory=list)
    most: int = 0
    blind: Exception | None = None
    told: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    lock: Any = field(default_factory=threading.Lock)

    def in_background(self) -> "Place":
        return self

    def submit(self, job: JobSpec) -> JobHandle:
        if error := self.refuse(job.name):
            raise error
        handle = JobHandle(self.scheme, f"ctx/default/{job.name}")
        with self.lock:
            self.sent.append((job.name, job.again))
            if handle not in self.left or job.again:
                self.left[handle] = list(self.script(job.name))
        return handle

    def watch(
        self, jobs: Callable[[], Collection[JobHandle]]
    ) -> Iterator[dict[JobHandle, JobStatus]]:
        while True:
            wanted = jobs()
            with self.lock:
                self.most = max(self.most, len(wanted))
                found = {handle: self._step(handle) for handle in wanted}
            yield found
            threading.Event().wait(0.001)  # as a place has its pace
            if self.blind and found:
                raise self.blind

    def _step(self, handle: JobHandle) -> JobStatus:
        if handle not in self.left:
            return JobStatus(JobState.UNKNOWN)
        if handle in self.cancelled:
            return JobStatus(JobState.CANCELLED, "Stopped", exit_code=143)
        statuses = self.left[handle]
        return statuses[0] if len(statuses) == 1 else statuses.pop(0)

    def cancel(self, handle: JobHandle) -> None:
        with self.lock:
            self.cancelled.append(handle)


RUNNING = JobStatus(JobState.RUNNING)


def straight(name: str) -> list[JobStatus]:
    return [JobStatus(JobState.PENDING), RUNNING, succeeded(float(name.rpartition("-")[2]))]


class Quiet:
    """A view that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, sweep: Any) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None: ...


def spec(name: str, again: bool = False) -> JobSpec:
    code = Bundle.__new__(Bundle)  # nobody looks at it
    return JobSpec(name, name, {}, f"/runs/{name}", Resources(), code, again=again)


class Bench:
    """One sweep directory, and sittings over it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.view = Quiet()
        self.planned = 0

    def sit(
        self,
        source: Any,
        place: Callable[[Asked], Place],
        *,
        limit: int | None = None,
        again: bool = False,
        wish: str = "detach",
    ) -> dict[int, Row]:
        def plan(asked: Asked) -> Planned:
            self.planned += 1
            return Planned(spec(f"job-{asked.params['x']}", again), place(asked))  # type: ignore

        with Journal(self.directory) as book:
            book.sweep.objectives = [Objective("val/loss")]
            engine = Engine(book, plan, lambda scheme: limit, self.view, lambda: wish)
            known = {asked.number: plan(asked) for asked in source.samples()}
            engine.run(source, known if source.ahead else {})
            return {number: book.sweep.rows[row] for number, row in engine.rows_of.items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def grid(*values: float) -> Listed:
    return Listed([Asked(number, [f"x={x}"], {"x": x}) for number, x in enumerate(values)])


def names(place: Place) -> list[str]:
    return [name for name, _ in place.sent]


def test_all_jobs_run_in_order_and_no_more_than_may(bench: Bench) -> None:
    place = Place(straight)
    rows = bench.sit(grid(3, 1, 2, 5, 4), lambda asked: place, limit=2)
    assert names(place) == ["job-3", "job-1", "job-2", "job-5", "job-4"]
    assert [rows[number].values for number in range(5)] == [[3.0], [1.0], [2.0], [5.0], [4.0]]
    assert place.most == 2 and bench.planned == 5
    assert journal.read(bench.directory).rows == {row.number: row for row in rows.values()}


def test_each_job_goes_to_its_own_place(bench: Bench) -> None:
    places = {1: Place(straight), 2: Place(straight, scheme="sagemaker")}
    source = Listed([Asked(n, [], {"x": 7, "n": n}) for n in (1, 2)])
    rows = bench.sit(source, lambda asked: places[asked.number])
    assert [len(place.sent) for place in places.values()] == [1, 1]
    assert rows[1].handle == "eks://ctx/default/job-7"
    assert rows[2].handle == "sagemaker://ctx/default/job-7"


def test_what_is_done_is_not_sent_again(bench: Bench) -> None:
    place = Place(straight)
    bench.sit(grid(1, 2), lambda asked: place)
    rows = bench.sit(grid(1, 2, 3), lambda asked: place)
    assert names(place) == ["job-1", "job-2", "job-3"]
    assert [rows[number].values for number in range(3)] == [[1.0], [2.0], [3.0]]
    # Another order: the jobs keep their rows, and so their numbers.
    rows = bench.sit(grid(3, 4, 1), lambda asked: place)
    assert [(rows[n].number, rows[n].values) for n in range(3)] == [
        (2, [3.0]),
        (3, [4.0]),
        (0, [1.0]),
    ]
    assert names(place)[3:] == ["job-4"]
    assert [row.number for row in journal.read(bench.directory).shown()] == [2, 3, 0]


def test_again_runs_all_of_them_anew(bench: Bench) -> None:
    place = Place(straight)
    bench.sit(grid(1, 2), lambda asked: place)
    bench.sit(grid(1, 2), lambda asked: place, again=True)
    assert place.sent == [("job-1", False), ("job-2", False), ("job-1", True), ("job-2", True)]


def test_one_of_ten_fails(bench: Bench) -> None:
    def script(name: str) -> list[JobStatus]:
        if name == "job-4":
            return [RUNNING, JobStatus(JobState.FAILED, "UserError", "ValueError: no", 1)]
        return straight(name)

    place = Place(script)
    rows = bench.sit(grid(*range(10)), lambda asked: place)
    assert [number for number, row in rows.items() if row.state is State.FAILED] == [4]
    assert (rows[4].reason, rows[4].message, rows[4].exit_code) == (
        "UserError",
        "ValueError: no",
        1,
    )
    # The same command does not run it again; a retry does, and anew.
    bench.sit(grid(*range(10)), lambda asked: place)
    assert len(place.sent) == 10
    with Journal(bench.directory) as book:
        book.write({"event": "retry", "number": 4})
    place.script = straight
    rows = bench.sit(grid(*range(10)), lambda asked: place)
    assert place.sent[10:] == [("job-4", True)] and rows[4].values == [4.0]
    assert rows[4].attempts == 2


def test_jobs_of_a_dead_submitter_are_watched_not_sent(bench: Bench) -> None:
    """It was killed after it had sent one, and in the moment in which it had created another."""
    place = Place(straight)
    with Journal(bench.directory) as book:
        for number in (0, 1):
            handle = place.submit(spec(f"job-{number}"))
            name = f"job-{number}"
            common = {"launcher": "eks", "overrides": [], "params": {}, "output": ""}
            book.write({"event": "job", "number": number, "name": name, **common})
            if number == 0:
                book.write({"event": "sent", "number": 0, "handle": str(handle)})
    rows = bench.sit(grid(0, 1), lambda asked: place)
    assert names(place) == ["job-0", "job-1", "job-1"]
    assert [rows[number].values for number in (0, 1)] == [[0.0], [1.0]]


def test_a_job_that_its_place_has_forgotten_is_sent_again(bench: Bench) -> None:
    place = Place(straight)
    with Journal(bench.directory) as book:
        common = {"launcher": "eks", "overrides": [], "params": {}, "output": ""}
        book.write({"event": "job", "number": 0, "name": "job-7", **common})
        book.write({"event": "sent", "number": 0, "handle": "eks://ctx/default/job-7"})
    rows = bench.sit(grid(7), lambda asked: place)
    assert names(place) == ["job-7"] and rows[0].values == [7.0]


def test_a_stopped_job_goes_on_with_the_next_sitting(bench: Bench) -> None:
    place = Place(lambda name: [RUNNING, JobStatus(JobState.CANCELLED, "Stopped", exit_code=143)])
    rows = bench.sit(grid(1), lambda asked: place)
    assert rows[0].state is State.CANCELLED
    place.left.clear()
    place.script = straight
    assert bench.sit(grid(1), lambda asked: place)[0].values == [1.0]
    assert place.sent == [("job-1", False), ("job-1", False)]


def test_a_place_that_is_full_is_asked_again(bench: Bench) -> None:
    place = Place(straight)
    place.refuse = lambda name: Full("quota") if len(place.left) - done() >= 2 else None

    def done() -> int:
        ended = [one for one in place.left.values() if len(one) == 1]
        return len(ended)

    rows = bench.sit(grid(*range(6)), lambda asked: place)
    assert sorted(names(place)) == [f"job-{n}" for n in range(6)]
    assert all(row.state is State.SUCCEEDED for row in rows.values())


def test_a_place_that_takes_no_jobs_gets_no_more(bench: Bench) -> None:
    bad, good = Place(straight), Place(straight, scheme="sagemaker")
    bad.refuse = lambda name: LaunchError(f"no route to host for {name}")
    source = grid(*range(6))
    with pytest.raises(LaunchError, match="launcher=eks takes no jobs: no route to host"):
        bench.sit(source, lambda asked: (bad, good)[asked.number % 2], limit=1)
    sweep = journal.read(bench.directory)
    assert [row.state for row in sweep.shown()][1::2] == [State.SUCCEEDED] * 3
    assert {row.reason for row in sweep.shown()[::2]} == {"NotSent", ""}
    # Once it can be reached, the same command sends what is missing.
    bad.refuse = lambda name: None
    bench.sit(source := grid(*range(6)), lambda asked: (bad, good)[asked.number % 2])
    assert all(row.state is State.SUCCEEDED for row in journal.read(bench.directory).shown())
    assert len(bad.sent) == len(good.sent) == 3


def test_a_place_that_can_no_longer_be_asked(bench: Bench) -> None:
    bad = Place(lambda name: [RUNNING], blind=LaunchError("the server is gone"))
    good = Place(straight, scheme="sagemaker")
    with pytest.raises(LaunchError, match="launcher=eks cannot be asked: the server is gone"):
        bench.sit(grid(0, 1), lambda asked: (bad, good)[asked.number])
    rows = journal.read(bench.directory).shown()
    assert [row.state for row in rows] == [State.RUNNING, State.SUCCEEDED]


def test_an_objective_that_no_job_logs(bench: Bench) -> None:
    result = {**DONE, "metrics": {"val/acc": 0.5}, "objective": {"metric": "val/loss"}}
    place = Place(lambda name: [JobStatus(JobState.SUCCEEDED, exit_code=0, result=result)])
    words = "objective.metric is val/loss, which the jobs do not log; they log: val/acc"
    with pytest.raises(LaunchError, match=words):
        bench.sit(grid(*range(9)), lambda asked: place, limit=1)
    assert len(place.sent) == 1
    assert journal.read(bench.directory).rows[0].reason == "NoObjective"


def test_a_value_that_is_no_number_is_a_failure(bench: Bench) -> None:
    result = {**DONE, "objective": {"metric": "val/loss", "value": None}}
    place = Place(lambda name: [JobStatus(JobState.SUCCEEDED, exit_code=0, result=result)])
    row = bench.sit(grid(1), lambda asked: place)[0]
    assert (row.state, row.reason) == (State.FAILED, "NotFinite")


def test_a_result_that_is_gone_is_a_failure_of_that_job(bench: Bench) -> None:
    place = Place(lambda name: [JobStatus(JobState.SUCCEEDED, exit_code=0)])
    rows = bench.sit(grid(1, 2), lambda asked: place)
    assert [(row.state, row.reason) for row in rows.values()] == [(State.FAILED, "NoResult")] * 2


class Picky(Listed):
    """Prunes the job whose value is not below 1; asks for one job at a time."""

    ahead = False

    def __init__(self, *values: float) -> None:
        super().__init__(grid(*values).jobs)
        self.left = list(reversed(self.jobs))
        self.heard: list[tuple[int, State]] = []

    def next(self) -> Asked | None:
        return self.left.pop() if self.left else None

    def reported(self, number: int, epoch: int, value: float) -> bool:
        return value >= 1

    def ended(self, number: int, row: Row) -> None:
        self.heard.append((number, row.state))


def test_a_job_that_is_not_good_enough_is_pruned(bench: Bench) -> None:
    def script(name: str) -> list[JobStatus]:
        value = float(name.rpartition("-")[2])
        reports = [Report(epoch, 3, 9 * epoch, {"val/loss": value}) for epoch in (1, 2)]
        running = [replace(RUNNING, progress=report) for report in reports]
        last = succeeded(value) if value < 1 else RUNNING
        return [*running, last]

    place, source = Place(script), Picky(0.5, 2.0, 0.25)
    rows = bench.sit(source, lambda asked: place, limit=1)
    assert source.heard == [(0, State.SUCCEEDED), (1, State.PRUNED), (2, State.SUCCEEDED)]
    assert len(place.cancelled) == 1
    assert rows[0].curve == [(9, 0.5), (18, 0.5)] and rows[0].progress


def test_an_optimizer_that_asks_for_the_very_same_job_twice(bench: Bench) -> None:
    place, source = Place(straight), Picky(0.5, 0.5, 0.25)
    rows = bench.sit(source, lambda asked: place, limit=1)
    assert names(place) == ["job-0.5", "job-0.25"] and rows[0] is rows[1]
    assert source.heard == [(number, State.SUCCEEDED) for number in range(3)]


class Interrupting(Quiet):
    """Ctrl-C once all jobs run."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def update(self, sweep: Any) -> None:
        if sum(row.state is State.RUNNING for row in sweep.rows.values()) >= self.after:
            self.after = 10**6
            raise KeyboardInterrupt


def test_an_interrupt_lets_go(bench: Bench) -> None:
    place = Place(lambda name: [RUNNING])
    bench.view = Interrupting(2)
    with pytest.raises(Detached):
        bench.sit(grid(1, 2, 3), lambda asked: place, limit=2)
    assert not place.cancelled
    rows = journal.read(bench.directory).shown()
    assert [row.state for row in rows] == [State.RUNNING, State.RUNNING, State.PLANNED]


def test_detached_jobs_are_sent_and_let_go(bench: Bench) -> None:
    place = Place(lambda name: [RUNNING], detach=True)
    with pytest.raises(Detached):
        bench.sit(grid(1, 2, 3), lambda asked: place)
    assert names(place) == ["job-1", "job-2", "job-3"]
    rows = journal.read(bench.directory).shown()
    assert all(row.handle and not row.state.ended for row in rows)


def test_an_interrupt_stops_all_jobs(bench: Bench) -> None:
    place = Place(lambda name: [RUNNING])
    bench.view = Interrupting(2)
    rows = bench.sit(grid(1, 2, 3), lambda asked: place, limit=2, wish="cancel")
    assert len(place.cancelled) == 2
    states = [rows[number].state for number in range(3)]
    assert states == [State.CANCELLED, State.CANCELLED, State.PLANNED]
