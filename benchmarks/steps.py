"""The time of one training step: our core, a loop by hand, Lightning with its defaults."""

import contextlib
import ctypes
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from hydra_trainer import progress, training

from . import hand, jobs, stock
from .table import Row, compared
from .timed import WATCH, Turns, clock, ring, watches

Side = Callable[[dict[str, Any]], Any]

CORE = ["trainer.max_epochs=1", "trainer.limit_val_batches=0", "trainer.limit_test_batches=0"]
"""One epoch, and no validation inside the timed steps; all else is a default run's: metrics.csv,
TensorBoard, progress bar, a checkpoint at the end."""

WARM_UP = 20  # steps before the clock starts
ROUND = 25  # turns of each side that make one figure: what comes every 50 steps is in all of them


MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Environment in which glibc keeps the memory that it has (mallopt(3)). By itself it gives some of
it back in every step and takes it again, more or less of it by chance: up to 2 ms of a convnet's
step."""


def keep_memory() -> None:
    """Set what MALLOC says in this process, for all sides of its comparisons."""
    with contextlib.suppress(AttributeError):  # not glibc
        for option, value in zip((-8, -3, -1), MALLOC.values(), strict=True):
            ctypes.CDLL(None).mallopt(option, int(value))


def images(batch: int, steps: int, model: str) -> list[str]:
    """Return overrides for a model on images of the default data's size, 8x8."""
    name = {"mlp": "TimedMLP", "convnet": "TimedConvNet"}[model]
    return [
        *CORE,
        f"model={model}",
        f"model._target_=benchmarks.timed.{name}",
        "data=synthetic",
        "data.shape=[1,8,8]",
        f"data.batch_size={batch}",
        f"data.size={batch * (steps + WARM_UP + 1)}",
        "trainer.progress=bar",
    ]


def one_process(quick: bool) -> Iterator[Row]:
    """Yield the rows of one process: CPU time, on one thread, so that other load counts little."""
    keep_memory()
    yield from _against_hand("convnet", 128, 1.05, turn=2, rounds=1 if quick else 24)
    yield from _against_hand("mlp", 16, 1.7, turn=4, rounds=1 if quick else 24)


def _against_hand(model: str, batch: int, target: float, turn: int, rounds: int) -> Iterator[Row]:
    name = f"step, {model}, batch {batch}"
    by_hand, ours = _in_turns(training.train, model, batch, turn, rounds)
    yield compared(f"{name}: ours / by hand", ours, by_hand, "ms CPU", target)
    # For context, so a quarter of it will do.
    by_hand, defaults = _in_turns(stock.run, model, batch, turn, (rounds + 3) // 4)
    yield compared(f"{name}: Lightning's defaults / by hand", defaults, by_hand, "ms CPU")


def _in_turns(
    side: Side, model: str, batch: int, turn: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the CPU milliseconds of a step in every round: by hand, and of `side`.

    They are threads that take turns. `side` has the main one, where it can take signals.
    """
    overrides = images(batch, turn * ROUND * rounds, model)
    with ring(2) as folder, terminal(), contextlib.ExitStack() as stack:
        configs = [jobs.make(folder / f"run-{n}", overrides) for n in range(2)]
        turns = [Turns(str(folder), n, 2, WARM_UP, turn, ROUND * rounds) for n in range(2)]
        for one in turns:
            stack.callback(one.close)
        stack.enter_context(mock.patch.object(progress, "time", clock(turns[1])))
        with ThreadPoolExecutor(1) as pool:
            by_hand = pool.submit(_one_thread, hand.run, configs[0], turns[0])
            _one_thread(side, configs[1], turns[1])
            by_hand.result()
    return _rounds(turns[0].spent, turn), _rounds(turns[1].spent, turn)


def _one_thread(side: Side, config: dict[str, Any], turns: Turns) -> None:
    """Run a side with its stopwatch, and on one thread: torch keeps their number per thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watches.watch = turns
    try:
        side(config)
    except BaseException:
        turns.give_up()
        raise
    finally:
        watches.watch = None
        torch.set_num_threads(threads)


def _rounds(spent: list[float], turn: int) -> list[float]:
    """Return milliseconds per step, of ROUND turns each."""
    sums = (sum(spent[n : n + ROUND]) for n in range(0, len(spent), ROUND))
    return [seconds / (turn * ROUND) * 1000 for seconds in sums]


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Let progress bars draw, as on a terminal, and throw away what they draw."""
    with (
        mock.patch.dict(os.environ, FORCE_COLOR="1"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def two_ranks(quick: bool) -> Iterator[Row]:
    """Yield the row of two gloo ranks under torchrun: CPU time of both."""
    turn, rounds = 2, 1 if quick else 10
    overrides = images(128, turn * ROUND * rounds, "convnet")
    with ring(2, ranks=2) as folder:
        shared = {"folder": str(folder), "sides": 2}
        shared |= {"warm_up": WARM_UP, "every": turn, "turns": ROUND * rounds}
        started = []
        for side, module in enumerate(("benchmarks.hand", "hydra_trainer.worker")):
            config = jobs.write(
                folder / f"run-{side}", [*overrides, "resources.processes_per_node=2"]
            )
            started.append(_torchrun(module, config, {**shared, "side": side}))
        for process, log in started:
            if process.wait():
                raise RuntimeError(f"A side of the comparison failed:\n{log.read_text()[-4000:]}")
        by_hand, ours = (_rounds(_spent(folder, side), turn) for side in range(2))
    yield compared("step, convnet, 2 ranks: ours / DDP by hand", ours, by_hand, "ms CPU", 1.05)


def _torchrun(
    module: str, config: Path, watch: dict[str, Any]
) -> tuple[subprocess.Popen[bytes], Path]:
    """Start two ranks of a module. Returns the agent's process and the file with the output."""
    env = {**os.environ, WATCH: json.dumps(["Turns", watch])}
    env |= {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1", **MALLOC}
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    log = config.with_name("output.txt")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *agent, "-m", module, str(config)],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, log


def _spent(folder: Path, side: int) -> list[float]:
    """Return the CPU seconds of both ranks of a side in each turn."""
    ranks = [json.loads((folder / f"spent-{side}-{rank}").read_text()) for rank in (0, 1)]
    return [sum(both) for both in zip(*ranks, strict=True)]
