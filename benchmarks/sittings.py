"""What a sweep takes: a thousand jobs, the same command once more, idle slots."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from .table import Row, limited

REPOSITORY = Path(__file__).parent.parent

MEASURED = """
import os, re, time
from pathlib import Path
from hydra_trainer.app import main
try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    Path(os.environ["BENCH_TOLD"]).write_text(f"{int(peak[1]) / 1024} {time.process_time()}")
"""
"""The command, which tells its peak in MiB and its seconds of CPU. Not ru_maxrss, in which a new
process has the peak of the one that started it."""

WORDS = ["-m", "launcher=eks", "launcher.image=team/image:1"]
SAGEMAKER = [
    "-m",
    "launcher=sagemaker",
    "launcher.role=arn:aws:iam::123456789012:role/training",
    "launcher.output=s3://bench/runs",
    "resources.instance_type=ml.m5.xlarge",
]


def sitting(quick: bool) -> Iterator[Row]:
    """Yield the rows of sweeps whose jobs end as soon as they are there, on either platform."""
    from .played import Played
    from .player import Player

    count = 20 if quick else 1000
    with tempfile.TemporaryDirectory() as folder, Player(Path(folder, "home"), _value) as player:
        there = _There(player.env, lambda: player.asked.total(), player.ran)
        lists = "a cluster", lambda: sum(n for v, n in player.asked.items() if v.endswith(" list"))
        yield from _sat(there, WORDS, count, Path(folder), *lists)
    with tempfile.TemporaryDirectory() as folder, Played(Path(folder, "home")) as played:
        there = _There(played.env, played.calls, played.ran)
        pages = "SageMaker", lambda: played.service.calls["sagemaker", "ListTrainingJobs"]
        yield from _sat(there, SAGEMAKER, count, Path(folder), *pages)


class _There(NamedTuple):
    """Where the jobs of a sweep are played: how to reach it, what it was asked, what it ran."""

    env: dict[str, str]
    asked: Callable[[], int]
    ran: Counter[str]


def _sat(
    there: _There, words: list[str], count: int, folder: Path, where: str, lists: Callable[[], int]
) -> Iterator[Row]:
    """Yield the rows of one sweep; `lists` tells how many requests asked for all jobs at once."""
    name = f"a sweep of {count:,} jobs on {where}:"
    words = [*words, f"seed=range({count})", f"hydra.sweep.dir={folder}/sweep"]
    peak, seconds = _run(words, there.env, folder)
    note = "met" if set(there.ran.values()) == {1} and len(there.ran) == count else "MISSED"
    told = (folder / "sweep/sweep.csv").read_text().count("SUCCEEDED")
    yield Row(f"{name} each ran once", f"{len(there.ran):,}", "", note=note)
    note = "met" if told == count else "MISSED"
    yield Row(f"{name} results that came back", f"{told:,}", "", note=note)
    yield limited(f"{name} peak memory of the submitter", peak, "MiB", 286)  # 300 MB
    yield Row(f"{name} CPU of the submitter, a job", f"{seconds / count * 1000:.3g} ms", "")
    asked = there.asked()
    yield Row(f"{name} requests a job", f"{(asked - lists()) / count:.3g}", "")
    _, seconds = _run(words, there.env, folder)
    name = f"the same command once more, {where}:"
    yield limited(f"{name} CPU", seconds, "s CPU", 2)
    yield limited(f"{name} requests", there.asked() - asked, "", 10)


def _value(config: dict[str, Any]) -> float:
    return float(config["seed"])


def _run(words: list[str], env: dict[str, str], folder: Path) -> tuple[float, float]:
    """Run a sweep to its end; return its peak in MiB and its seconds of CPU."""
    told = folder / "told"
    env = {**os.environ, **env, "BENCH_TOLD": str(told)}
    command = [sys.executable, "-c", MEASURED, *words]
    subprocess.run(command, check=True, capture_output=True, env=env, cwd=REPOSITORY)
    peak, seconds = told.read_text().split()
    return float(peak), float(seconds)


# ------------------------------------------------------------------------------------------ slots

SLOTS = 4


def slots(quick: bool) -> Iterator[Row]:
    """Yield how much of the slots' time is idle while there are jobs to run.

    Jobs last between 0.1 and 5 s. A sweeper that proposes in batches waits for the slowest of
    each; that is worked out from the same jobs.
    """
    place = _Place()
    lengths = _search(place, 8 if quick else 60)
    last = max(begun for begun, _ in place.times)
    first = min(begun for begun, _ in place.times)
    busy = sum(min(ended, last) - begun for begun, ended in place.times)
    idle = 100 * (1 - busy / SLOTS / (last - first))
    batches = [lengths[start : start + SLOTS] for start in range(0, len(lengths), SLOTS)]
    waited = 100 * (1 - sum(lengths) / SLOTS / sum(map(max, batches)))
    name = f"idle slots of {SLOTS}, jobs of 0.1 to 5 s"
    yield Row(
        f"{name}: ours, and in batches",
        f"{idle:.2g} %",
        f"{waited:.2g} %",
        idle / waited,
        note="met (5 %)" if idle <= 5 else "MISSED (5 %)",
    )


def _search(place: "_Place", trials: int) -> list[float]:
    """Run a search of Optuna's over jobs of very different length; return the lengths."""
    from hydra_trainer.bundle import Bundle
    from hydra_trainer.job import JobSpec, Resources
    from hydra_trainer.sweep import space
    from hydra_trainer.sweep.engine import Engine, Planned
    from hydra_trainer.sweep.journal import Journal
    from hydra_trainer.sweep.optimize import Optimizer
    from hydra_trainer.sweep.rows import Objective
    from hydra_trainer.sweep.settings import OptunaConf

    def plan(asked: Any) -> Planned:
        name, code = f"job-{asked.number}", Bundle.__new__(Bundle)  # nobody looks at the code
        job = JobSpec(name, name, {}, "", Resources(), code)
        place.lengths[job.name] = 0.1 * 50 ** asked.params["x"]
        return Planned(job, place)  # type: ignore[arg-type]

    goals = [Objective("val/loss")]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        journal.sweep.objectives = goals
        conf = OptunaConf(n_trials=trials)
        source = Optimizer(space.parse(["x=interval(0,1)"], None, None), goals, conf, Path(folder))
        view = SimpleNamespace(update=lambda sweep: None, say=print)
        engine = Engine(journal, plan, lambda scheme: SLOTS, view)
        engine.run(source, {})
    return list(place.lengths.values())


class _Place:
    """Where jobs do nothing, for as long as they last."""

    scheme, elsewhere, detach, at_once = "bench", True, False, None

    def __init__(self) -> None:
        self.lengths: dict[str, float] = {}
        self.times: list[tuple[float, float]] = []
        self._until: dict[Any, float] = {}

    def in_background(self) -> "_Place":
        return self

    def submit(self, job: Any) -> Any:
        from hydra_trainer.job import JobHandle

        handle, begun = JobHandle(self.scheme, f"here/{job.name}"), time.monotonic()
        self._until[handle] = begun + self.lengths[job.name]
        self.times.append((begun, self._until[handle]))
        return handle

    def watch(self, jobs: Callable[[], Collection[Any]]) -> Iterator[dict[Any, Any]]:
        from hydra_trainer.job import JobState, JobStatus

        pause = threading.Event()
        while True:
            now, found = time.monotonic(), {}
            for handle in jobs():
                if now >= self._until[handle]:
                    objective = {"metric": "val/loss", "value": self.lengths[handle.path[5:]]}
                    found[handle] = JobStatus(JobState.SUCCEEDED, result={"objective": objective})
            yield found
            pause.wait(0.002)
