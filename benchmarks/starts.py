"""How fast things start: the command, a job, and a job after a kill; and what they weigh."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import jobs
from .steps import images
from .table import Row, compared
from .timed import WATCH

REPOSITORY = Path(__file__).parent.parent
TRAIN = [sys.executable, str(REPOSITORY / "train.py")]

HEAVY = "from hydra_trainer.app import main; main(); import sys; sys.exit('torch' in sys.modules)"


def command(quick: bool) -> Iterator[Row]:
    """Yield the row of `--cfg job` against the import that it cannot do without."""
    shown, imported = in_turns([*TRAIN, "--cfg", "job"], "import hydra", quick)
    light = subprocess.run([sys.executable, "-c", HEAVY, "--cfg", "job"], capture_output=True)
    name = "CPU time, --cfg job / import hydra"
    yield compared(name, shown, imported, "s CPU", 2)
    note = "met" if light.returncode == 0 else "MISSED"
    yield Row("... torch is not imported", "no" if light.returncode else "yes", "", note=note)


def in_turns(command: list[str], statement: str, quick: bool) -> tuple[list[float], list[float]]:
    """Return the seconds of CPU of a command, and of a Python that runs a statement."""
    ours, baseline = [], []
    with tempfile.TemporaryDirectory() as folder:
        # Compiled code is kept, as it is on any machine where the command ran before.
        env = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(2 if quick else 12):
            baseline.append(_cpu([sys.executable, "-c", statement], env))
            ours.append(_cpu(command, env))
    return ours[1:], baseline[1:]


def _cpu(words: list[str], env: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def restart(quick: bool) -> Iterator[Row]:
    """Yield the rows of a job that is killed: wall seconds until it trains again."""
    found = [_killed() for _ in range(1 if quick else 2)]
    cold, restarted, again = (list(times) for times in zip(*found, strict=True))
    name = "first new step after kill -9 of"
    yield compared(f"{name} one of 2 ranks, from the kill / cold start", restarted, cold, "s", 1.5)
    yield compared(f"{name} the job, the same command / cold start", again, cold, "s", 1.5)


def _killed() -> tuple[float, float, float]:
    """Return seconds to the first step: of a new job; after rank 1 was killed; of a new command.

    Rank 1 kills itself at its 26th step, is started again by the job, and kills itself again,
    which ends the job: it may restart once. Then the same command is typed.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *images(128, 60, "convnet"),
            "trusted_modules=[benchmarks]",
            "checkpoint.every_n_steps=10",
            "resources.processes_per_node=2",
            "launcher.max_restarts=1",
            f"hydra.run.dir={folder}/run",
        ]
        begun = time.time()
        _train(words, f"{folder}/first", kills=2)
        (first, _), (killed, _) = json.loads(Path(f"{folder}/first-1-0").read_text())
        (restarted, _), _ = json.loads(Path(f"{folder}/first-1-1").read_text())
        typed = time.time()
        _train(words, f"{folder}/second", kills=0)
        (again, _), *_ = json.loads(Path(f"{folder}/second-1-0").read_text())
    return first - begun, restarted - killed, again - typed


def _train(words: list[str], marks: str, kills: int) -> None:
    watch = ["Marks", {"steps": [0, 25], "file": marks, "kills": kills}]
    env = {**os.environ, WATCH: json.dumps(watch), "OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), env.get("PYTHONPATH", "")]).rstrip(":")
    subprocess.run([*TRAIN, *words], env=env, capture_output=True)


MEMORY = {
    "ours": "from hydra_trainer.training import train as side",
    "hand": "from benchmarks.hand import run as side",
}
# Not ru_maxrss, in which a new process has the peak of the one that started it.
PEAK_OF = r"""
import re, sys
from pathlib import Path
from hydra_trainer import worker
side(worker.read_config(Path(sys.argv[1])))
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(int(peak[1]) / 1024, file=sys.stderr)
"""


def memory(quick: bool) -> Iterator[Row]:
    """Yield the peak memory of a whole run, for context."""
    found = {}
    for side, imported in MEMORY.items():
        with tempfile.TemporaryDirectory() as folder:
            path = jobs.write(Path(folder, "run"), images(128, 5 if quick else 50, "convnet"))
            done = subprocess.run(
                [sys.executable, "-c", imported + PEAK_OF, str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
        found[side] = float(done.stderr.split()[-1])
    yield compared("peak memory, convnet: ours / by hand", [found["ours"]], [found["hand"]], "MiB")
