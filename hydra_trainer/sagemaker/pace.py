"""How fast to ask: each operation of AWS has a rate of its own for an account, and tells none.

What it tells is a refusal, and that means one thing: at this moment the account's bucket of tokens
was empty. Between two such moments no more can have been accepted than what has come into the
bucket, so that every refusal bounds the rate that the next calls are spaced by, and the longer ago
the other one is, the closer. A thousand calls cost about ten refusals.
"""

import time
from collections import deque
from collections.abc import Callable

MEMORY = 200
"""Calls after which a refusal is forgotten: the rate is known to one part in so many."""

PATIENCE = 50
"""Calls without a refusal, beyond those, after which there seems to be more to be had."""

MORE = 1.1
"""How much more is tried then."""

SLOWEST = 1.0
"""Seconds between two calls at most: all that is asked here is allowed more often. What is refused
all the same, others use up; each call is tried again, at longer and longer intervals."""

SPARE = 0.5
"""Seconds without a call after which a small bucket may be full: the rest is no measure."""


class Pace:
    """The rate of one operation, learned from its refusals; no limit until there is one.

    Args:
        sleep: waits for so many seconds.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._every = 0.0  # seconds between two calls
        self._due = 0.0  # when the next one may be sent
        self._idle = 0.0  # seconds in which more could have been sent: no measure of the rate
        self._accepted = 0
        self._refusals: deque[tuple[float, int]] = deque()  # when, and after how many accepted
        self._expected = 0  # after how many accepted there is one, if the rate is right

    def wait(self) -> None:
        """Return when the next call may be sent."""
        now = self._clock()
        late = now - self._due
        if late < 0:
            self._sleep(-late)
        else:
            self._idle += max(late - SPARE, 0.0)
            self._due = max(self._due, now - self._every)  # one call may be made up for, not more
        self._due += self._every

    def accepted(self) -> None:
        """A call was not refused for being one too many."""
        self._accepted += 1
        if self._every and self._accepted >= self._expected:
            self._every /= MORE
            self._refusals.clear()  # they are of a time with less
            self._expected = self._accepted + PATIENCE

    def refused(self) -> None:
        """A call was one too many."""
        now = self._clock() - self._idle
        while len(self._refusals) > 1 and self._accepted - self._refusals[0][1] > MEMORY:
            self._refusals.popleft()
        bounds = [(now - when) / (self._accepted - count + 1) for when, count in self._refusals]
        self._every = min(max(bounds, default=self._every * MORE), SLOWEST)
        self._refusals.append((now, self._accepted))
        self._expected = self._accepted + MEMORY + PATIENCE
