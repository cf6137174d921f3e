"""Keeps as many jobs of a sweep going as allowed, wherever they run, and writes the journal.

One thread decides: it alone asks the source, writes the journal and draws. For each launcher a
sender submits and cancels, and for each cluster, region or machine a watcher tells how its jobs go;
they only put what they learned into a queue.

What is in the journal need not be asked for again: a job that has ended is not sent, one that was
sent is watched. A job that was created in the moment in which the submitter died is found by its
name, which comes from its content, when it is sent again.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from hydra_trainer.errors import ConfigError, Full, HydraTrainerError, LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState, JobStatus
from hydra_trainer.launcher import Launcher

from .journal import Journal
from .outcome import NoObjective, outcome
from .rows import Event, Row, State, Sweep
from .source import Asked, Source

NOT_SENT = "NotSent"
"""Reason of a job that its launcher did not take: it never ran, and the next sitting sends it."""

GIVES_UP = 2
"""Refusals in a row after which a launcher gets no more jobs in this sitting."""

PATIENCE = 30.0
"""Seconds until a place that is full, and that holds none of our jobs, is asked again."""

IN_FLIGHT = 8
"""How many jobs an optimizer has in flight elsewhere where nobody says: it learns from few."""

TICK = 1.0
"""Seconds after which the view is drawn anew, if nothing happens."""


class Planned(NamedTuple):
    """A job that can be sent: what its configuration came to."""

    job: JobSpec
    place: Launcher
    basis: str | None = None  # see Row


class View(Protocol):
    """Shows a sweep while it runs."""

    def update(self, sweep: Sweep) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Detached(Exception):
    """The user let go of a sweep whose jobs go on."""


@dataclass
class Lane:
    """One launcher: what waits for it, what it has in flight, and how much it may have."""

    limit: int
    place: Launcher
    waiting: deque[int] = field(default_factory=deque)
    flying: set[int] = field(default_factory=set)
    refused: int = 0
    closed: str | None = None
    full_until: float = 0.0
    orders: "queue.SimpleQueue[Callable[[], None] | None]" = field(
        default_factory=queue.SimpleQueue
    )

    def has_room(self, now: float) -> bool:
        return self.closed is None and len(self.flying) < self.limit and now >= self.full_until


class Engine:
    """Runs the jobs of a source. Use `run` once.

    `plan` makes the job of what was asked for: raises ConfigError. `limit` says how many jobs a
    launcher may have in flight, by its scheme; None where nobody said. `wish` is asked what to do
    at Ctrl-C: "detach" or "cancel".
    """

    def __init__(
        self,
        journal: Journal,
        plan: Callable[[Asked], Planned],
        limit: Callable[[str], int | None],
        view: View,
        wish: Callable[[], str] = lambda: "detach",
    ) -> None:
        self.journal = journal
        self.sweep = journal.sweep
        self.rows_of: dict[int, int] = {}
        """The number of the row of each job that the source asked for, by the source's number."""
        self._plan, self._limit, self._view, self._wish = plan, limit, view, wish
        self._planned: dict[int, Planned] = {}
        self._asked: dict[int, list[int]] = {}
        self._by_key = {row.key: row.number for row in self.sweep.rows.values()}
        self._lanes: dict[str, Lane] = {}
        self._watched: dict[str, set[JobHandle]] = {}
        self._row_of: dict[JobHandle, int] = {}
        self._news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._events: list[Event] = []
        self._sending: set[int] = set()
        self._to_prune: set[int] = set()
        self._error: BaseException | None = None
        self._over = threading.Event()

    # ------------------------------------------------------------------------------------ the loop

    def run(
        self, source: Source, planned: dict[int, Planned], done: dict[int, int] | None = None
    ) -> None:
        """Run every job that the source has, and return when the last one has ended.

        Args:
            planned: jobs that are made already, by the source's number: they were checked.
            done: rows of jobs that need not be made, by the source's number: they have ended.

        Raises:
            Detached: the user let go of the jobs that still run.
            HydraTrainerError: the sweep cannot go on: no job logs its objective, a launcher can no
                longer be asked, ... Jobs that run go on; the same command finds them.
        """
        self._source = source
        self.rows_of |= done or {}
        if source.ahead:
            self._take({asked.number: asked for asked in source.samples()}, planned)
        elif retries := [row.number for row in self.sweep.rows.values() if row.retry]:
            source.again(retries)
        try:
            self._loop()
        except KeyboardInterrupt:
            self._interrupted()
        finally:
            self._flush()
            self._over.set()
            for lane in self._lanes.values():
                lane.orders.put(None)
        if self._error is not None:
            raise self._error
        if closed := [lane.closed for lane in self._lanes.values() if lane.closed]:
            raise LaunchError("\n".join(dict.fromkeys(closed)))

    def _loop(self) -> None:
        while True:
            self._fill()
            self._flush()
            flying = any(lane.flying for lane in self._lanes.values())
            if self._error is not None or not (flying or self._waits()):
                return
            if not (self._sending or self._waits()) and self._all_let_go():
                raise Detached
            self._hear()

    def _waits(self) -> bool:
        """Tell whether there is something to send once a full place has room again."""
        return any(lane.waiting and lane.closed is None for lane in self._lanes.values())

    def _all_let_go(self) -> bool:
        """Tell whether nobody is to wait for the jobs: launcher.detach=true in all of them."""
        return self._source.ahead and all(lane.place.detach for lane in self._lanes.values())

    def _hear(self) -> None:
        """Take in all that the other threads have learned; wait for it, but not for long."""
        with contextlib.suppress(queue.Empty):
            self._news.get(timeout=TICK)()
            for _ in range(self._news.qsize()):
                self._news.get_nowait()()

    def _flush(self) -> None:
        if self._events:
            self.journal.write(*self._events)
            self._events = []
        self._view.update(self.sweep)

    def _write(self, event: str, number: int, **more: Any) -> None:
        self._events.append({"event": event, "number": number, **more})

    # ------------------------------------------------------------------------- what there is to run

    def _fill(self) -> None:
        """Send what there is room for, and ask the source for more while nothing waits."""
        while self._error is None:
            self._send_waiting()
            if self._source.ahead or any(lane.waiting for lane in self._lanes.values()):
                return
            if self._lanes and not any(lane.has_room(_now()) for lane in self._lanes.values()):
                return
            asked = self._source.next()
            if asked is None:
                return
            try:
                self._take({asked.number: asked}, {asked.number: self._plan(asked)})
            except ConfigError as error:
                self._error = error

    def _take(self, asked: dict[int, Asked], planned: dict[int, Planned]) -> None:
        """Give each job its row, the one that it had in an earlier sitting or a new one, and go."""
        used = set(self.sweep.rows)
        for number, one in planned.items():
            key = (one.place.scheme, one.job.name)
            if (row := self._by_key.get(key)) is None:
                row = number if number not in used else max(used) + 1
                used.add(row)
                self._by_key[key] = row
                self._events.append(_job_event(row, asked[number], one))
            self.rows_of[number] = row
        if self._source.ahead:
            rows = list(dict.fromkeys(self.rows_of[number] for number in sorted(self.rows_of)))
            if rows != self.sweep.current:
                self._events.append({"event": "plan", "numbers": rows})
        self._flush()
        for number, one in planned.items():
            row = self.rows_of[number]
            self._asked.setdefault(row, []).append(number)
            if self._planned.setdefault(row, one) is one:
                self._begin(self.sweep.rows[row])
            elif self.sweep.rows[row].state.ended:  # the very same job once more
                self._source.ended(number, self.sweep.rows[row])

    def _begin(self, row: Row) -> None:
        """Send a job, or watch it, or leave it: by what the journal says of it."""
        job, place, _ = self._planned[row.number]
        lane = self._lane(place)
        if job.again and row.state.ended:
            self._write("retry", row.number)
            self._flush()
        if row.state.ended and not worth_another_try(row):
            self._tell(row)
        elif row.handle is not None and not row.state.ended and not row.retry:
            lane.flying.add(row.number)
            self._watch(row, JobHandle.parse(row.handle))
        else:
            lane.waiting.append(row.number)

    def _lane(self, place: Launcher) -> Lane:
        lane = self._lanes.get(place.scheme)
        if lane is None:
            limit = self._limit(place.scheme) or place.at_once
            if limit is None and not self._source.ahead:
                limit = IN_FLIGHT
            lane = self._lanes[place.scheme] = Lane(limit or 2**31, place)
            threading.Thread(target=_obey, args=(lane.orders,), daemon=True).start()
        return lane

    # ---------------------------------------------------------------------------------- submitting

    def _send_waiting(self) -> None:
        for lane in self._lanes.values():
            while lane.waiting and lane.has_room(_now()):
                number = lane.waiting.popleft()
                lane.flying.add(number)
                self._sending.add(number)
                lane.orders.put(partial(self._submit, lane, number))

    def _submit(self, lane: Lane, number: int) -> None:
        """Called by a lane's sender."""
        if self._over.is_set():
            return
        job, place, _ = self._planned[number]
        row = self.sweep.rows[number]
        anew = row.retry and (place.elsewhere or job.again)
        try:
            handle = place.in_background().submit(replace(job, again=anew))
        except Exception as error:
            self._news.put(partial(self._not_sent, lane, number, error))
        else:
            self._news.put(partial(self._sent, lane, number, handle))

    def _sent(self, lane: Lane, number: int, handle: JobHandle) -> None:
        lane.refused = 0
        self._sending.discard(number)
        self._write("sent", number, handle=str(handle))
        self._watch(self.sweep.rows[number], handle)

    def _not_sent(self, lane: Lane, number: int, error: Exception) -> None:
        lane.flying.discard(number)
        self._sending.discard(number)
        if isinstance(error, Full):
            lane.waiting.appendleft(number)
            lane.full_until = float("inf") if lane.flying else _now() + PATIENCE
            self._view.say(f"{lane.place.scheme} takes no more jobs now: {error}")
            return
        if not isinstance(error, LaunchError):  # wrong for all jobs, or a mistake of ours
            lane.waiting.appendleft(number)
            self._error = error
            return
        lane.refused += 1
        message = str(error)
        self._write("ended", number, state=State.FAILED, reason=NOT_SENT, message=message)
        self._view.say(f"job {number} was not sent: {error}")
        if lane.refused >= GIVES_UP:
            lane.closed = f"launcher={lane.place.scheme} takes no jobs: {error}"

    # ------------------------------------------------------------------------------------ watching

    def _watch(self, row: Row, handle: JobHandle) -> None:
        self._row_of[handle] = row.number
        place = self._planned[row.number].place
        group = group_of(handle)
        new = group not in self._watched
        self._watched.setdefault(group, set()).add(handle)
        if new:
            args = (group, place.in_background())
            threading.Thread(target=self._tell_changes, args=args, daemon=True).start()

    def _tell_changes(self, group: str, place: Launcher) -> None:
        """Called in a watcher's own thread."""
        handles = self._watched[group]
        try:
            with contextlib.closing(place.watch(lambda: set(handles))) as changes:  # type: ignore
                for found in changes:
                    if self._over.is_set():
                        return
                    if found:
                        self._news.put(partial(self._changed, found))
        except Exception as error:
            self._news.put(partial(self._blind, group, place, error))

    def _blind(self, group: str, place: Launcher, error: Exception) -> None:
        """Let go of the jobs of a place that can no longer be asked."""
        for handle in self._watched.pop(group):
            self._lanes[place.scheme].flying.discard(self._row_of.pop(handle))
        if isinstance(error, LaunchError):
            self._lanes[place.scheme].closed = f"launcher={place.scheme} cannot be asked: {error}"
        else:
            self._error = error

    def _changed(self, found: dict[JobHandle, JobStatus]) -> None:
        for handle, status in found.items():
            number = self._row_of.get(handle)
            if number is not None:
                self._look(self.sweep.rows[number], handle, status)

    def _look(self, row: Row, handle: JobHandle, status: JobStatus) -> None:
        if status.state is JobState.UNKNOWN:
            self._lost(row, handle)
        elif status.state.ended:
            self._end(row, handle, status)
        else:
            if status.state is JobState.RUNNING and row.state is not State.RUNNING:
                row.state = State.RUNNING
                self._write("running", row.number)
            self._follow(row, handle, status)

    def _follow(self, row: Row, handle: JobHandle, status: JobStatus) -> None:
        report = status.progress
        if report is None or (row.progress and report.step <= row.progress["step"]):
            return
        value = report.values.get(self.sweep.objectives[0].metric)
        told = {"epoch": report.epoch, "epochs": report.epochs, "step": report.step}
        self._write("progress", row.number, **told, values=report.values, value=value)
        if value is None or row.number in self._to_prune:
            return
        # By epochs: with batches of another size, steps are not the same.
        bad = [self._source.reported(n, report.epoch, value) for n in self._asked[row.number]]
        if bad and all(bad):
            self._to_prune.add(row.number)
            self._cancel(row.number, handle)

    def _lost(self, row: Row, handle: JobHandle) -> None:
        """Send a job again that was sent and is not there: its place has forgotten it."""
        lane = self._leave(row, handle)
        self._write("retry", row.number)
        self._flush()
        lane.waiting.appendleft(row.number)

    def _end(self, row: Row, handle: JobHandle, status: JobStatus) -> None:
        lane = self._leave(row, handle)
        lane.full_until = 0.0
        try:
            found = outcome(status, self.sweep.objectives)
        except NoObjective as error:
            found = error.outcome
            self._error = self._error or error
        if found["state"] is State.CANCELLED and row.number in self._to_prune:
            found |= {"state": State.PRUNED, "reason": "Pruned", "message": ""}
        self._write("ended", row.number, **found)
        self._flush()
        self._tell(row)

    def _leave(self, row: Row, handle: JobHandle) -> Lane:
        place = self._planned[row.number].place
        lane = self._lanes[place.scheme]
        self._watched[group_of(handle)].discard(handle)
        self._row_of.pop(handle)
        lane.flying.discard(row.number)
        return lane

    def _tell(self, row: Row) -> None:
        """Tell the source of a job's end; not of a stop, after which the same command goes on."""
        if row.state is not State.CANCELLED:
            for number in self._asked[row.number]:
                self._source.ended(number, row)

    # ------------------------------------------------------------------------------------ stopping

    def _cancel(self, number: int, handle: JobHandle) -> None:
        place = self._planned[number].place

        def order() -> None:
            try:
                place.in_background().cancel(handle)
            except HydraTrainerError as error:
                told = f"job {number} cannot be stopped: {error}"
                self._news.put(partial(self._view.say, told))

        threading.Thread(target=order, daemon=True).start()  # it may wait for the job's end

    def _interrupted(self) -> None:
        """Ctrl-C: leave the jobs to themselves, or stop them and see them end."""
        if self._wish() == "detach":
            raise Detached
        self._view.say("stopping: jobs save first. Ctrl-C once more leaves them to themselves.")
        for handle, number in [*self._row_of.items()]:
            self._cancel(number, handle)
        try:
            while any(lane.flying for lane in self._lanes.values()):
                self._flush()
                self._hear()
        except KeyboardInterrupt:
            raise Detached from None


def _now() -> float:
    return time.monotonic()


def _obey(orders: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    for order in iter(orders.get, None):
        order()


def group_of(handle: JobHandle) -> str:
    """Return what can be watched at once: a namespace of a cluster, a region, a folder here."""
    return f"{handle.scheme}://{handle.path.rpartition('/')[0]}"


def worth_another_try(row: Row) -> bool:
    """Tell whether a job that has ended is sent by the same command: it was stopped, or not sent.

    One that failed would fail again: `hydra-trainer sweep retry-failed` sends it.
    """
    return row.state is State.CANCELLED or row.reason == NOT_SENT


def _job_event(number: int, asked: Asked, planned: Planned) -> Event:
    return {
        "event": "job",
        "number": number,
        "name": planned.job.name,
        "launcher": planned.place.scheme,
        "overrides": list(asked.overrides),
        "params": asked.params,
        "output": planned.job.output,
        "basis": planned.basis,
    }


def handles(sweep: Sweep) -> Iterator[tuple[Row, JobHandle]]:
    """Yield the jobs of a sweep that were sent and have not ended, as far as the journal knows."""
    for row in sweep.rows.values():
        if row.handle is not None and not row.state.ended:
            yield row, JobHandle.parse(row.handle)
