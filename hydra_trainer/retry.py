"""How long to go on asking a server that does not answer: a budget of tries and seconds.

The pauses have full jitter: a uniform draw between nothing and a bound that doubles, so that a
thousand clients that were cut off together do not come back together.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from hydra_trainer.errors import LaunchError

TRANSIENT = frozenset({429, 500, 502, 503, 504})
"""Answers of an API server, or of what stands before it, that may be another one later."""

TOLD_FROM = 1.0
"""Seconds: a pause of this length is told to the user, a shorter one is not worth a line."""

log = logging.getLogger(__name__)


class Trouble(Exception):
    """A request that did not go through, and may when it is sent again.

    Args:
        words: what happened, for the user.
        after: seconds that the server asked to be left alone (Retry-After).
        reached: whether a server may have received the request, and so may have acted on it.
    """

    def __init__(self, words: str, *, after: float = 0.0, reached: bool = True) -> None:
        super().__init__(words)
        self.after = after
        self.reached = reached


@dataclass(frozen=True)
class Retry:
    """The budget of one request, and the clock it is measured with.

    Attributes:
        tries: how often a request is sent at most.
        seconds: how long it may take, pauses included; a pause that would end later is not begun.
        first: the bound of the first pause, in seconds; it doubles with every further one.
        longest: the bound that the doubling stops at, in seconds.
        sleep: waits for so many seconds.
        clock: seconds that never run backwards.
        spread: draws a number between two bounds.
    """

    tries: int = 10
    seconds: float = 120.0
    first: float = 0.25
    longest: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    spread: Callable[[float, float], float] = random.uniform


class Attempts:
    """How often one request was tried, and whether it may be tried again."""

    def __init__(self, retry: Retry, what: str) -> None:
        self.retry = retry
        self.what = what
        self.failed = 0
        self._began = retry.clock()

    def succeeded(self) -> None:
        """Something came through: whatever goes wrong from here on has a budget of its own."""
        self.failed = 0
        self._began = self.retry.clock()

    def pause(self, trouble: Trouble, *, tries: int | None = None) -> None:
        """Wait before the next try. Raises LaunchError when there is none left.

        `tries` allows fewer than the budget does.
        """
        self.failed += 1
        bound = min(self.retry.longest, self.retry.first * 2 ** (self.failed - 1))
        wait = trouble.after + self.retry.spread(0.0, bound)
        spent = self.retry.clock() - self._began
        allowed = self.retry.tries if tries is None else min(tries, self.retry.tries)
        if self.failed >= allowed or spent + wait > self.retry.seconds:
            raise LaunchError(self._given_up(trouble, spent)) from trouble
        if wait >= TOLD_FROM:
            log.warning("%s: %s Trying again in %.0f s.", self.what, trouble, wait)
        self.retry.sleep(wait)

    def _given_up(self, trouble: Trouble, spent: float) -> str:
        asked = f" It asks to be left alone for {trouble.after:g} s." if trouble.after else ""
        times = "once" if self.failed == 1 else f"{self.failed} times"
        return (
            f"{self.what} was tried {times} in {spent:.0f} s and did not go through. "
            f"The last time: {trouble}{asked} Jobs that run are not touched by this, and every "
            "command can be given again."
        )
