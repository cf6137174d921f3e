"""Work on large memory by a few threads that do not wait for each other.

The threads of an operation of torch meet at its end: where other processes use the cores, each
waits for the last one to be given one, and a copy takes four times as long as on one thread. Here
whoever has a core takes the next piece, and threads that never get one are not waited for.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")

HELPERS = max(0, min(4, len(os.sched_getaffinity(0))) - 1)

_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: threads do not survive a fork."""


def together(work: Callable[[Piece], object], pieces: Sequence[Piece]) -> None:
    """Call `work` with every piece, in this thread and up to three others."""
    todo = iter(list(pieces))  # of a list: two threads never get the same one

    def some() -> None:
        for piece in todo:
            work(piece)

    pool = _pools.get(os.getpid())
    if pool is None and HELPERS:
        _pools.clear()
        pool = _pools[os.getpid()] = ThreadPoolExecutor(HELPERS, "pieces")
    count = min(HELPERS, len(pieces) - 1)
    others = [pool.submit(some) for _ in range(count)] if pool is not None else []
    some()
    for other in others:
        if not other.cancel():
            other.result()
