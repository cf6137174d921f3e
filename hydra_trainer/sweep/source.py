"""Where the jobs of a sweep come from: a list that is there from the start, or an optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .rows import Row


@dataclass(frozen=True)
class Asked:
    """A job that a source wants to be run.

    `number` is its number in the source (hydra.job.num, Optuna's trial). `overrides` are what
    Hydra composes it from; `params` are what differs between the jobs, as values.
    """

    number: int
    overrides: Sequence[str]
    params: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> str:
        """Return what sets this job apart from the others, as one would type it."""
        return " ".join(f"{key}={value}" for key, value in self.params.items())


class Source(Protocol):
    """Called by one thread, the engine's. The engine asks again whenever a job has ended."""

    sweeper: str
    """Its name, for the journal: basic, optuna."""

    total: int | None
    """How many jobs it will ask for in all, as far as it knows."""

    ahead: bool
    """Whether its jobs are known before the first one runs, and wait for nothing but room."""

    def samples(self) -> list[Asked]:
        """Return jobs whose configurations are checked before the first one is sent.

        What is known `ahead` is all told here; an optimizer returns one for every choice that it
        has.
        """

    def next(self) -> Asked | None:
        """Return a job to run now. None: there is none now, and none is running: none any more."""

    def again(self, numbers: Sequence[int]) -> None:
        """Ask once more for jobs of an earlier sitting, by their numbers then: they failed, and
        are to be run again. Not called where all are known `ahead`."""

    def ended(self, number: int, row: Row) -> None:
        """Take in how a job ended: `row.state`, and `row.values` where it succeeded."""

    def reported(self, number: int, epoch: int, value: float) -> bool:
        """Take in the first objective of a running job. Returns whether to stop (prune) it."""


class Listed:
    """All jobs are known: Hydra's basic sweeper and every other one that gives batches."""

    sweeper = "basic"
    ahead = True

    def __init__(self, jobs: Sequence[Asked]) -> None:
        self.jobs = list(jobs)
        self.total: int | None = len(self.jobs)

    def samples(self) -> list[Asked]:
        return self.jobs

    def next(self) -> Asked | None:
        return None  # `samples` has told all

    def again(self, numbers: Sequence[int]) -> None: ...

    def ended(self, number: int, row: Row) -> None: ...

    def reported(self, number: int, epoch: int, value: float) -> bool:
        return False
