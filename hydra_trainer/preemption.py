"""Stopping on SIGTERM or Ctrl-C: a flag in the handler, and nothing else there.

Standard library only, so that the handlers can be in place before torch is imported. The ranks
agree on the flag in callbacks.py.
"""

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Training was asked to stop, and has. Not an Exception: nobody's `except` keeps it.

    `exit_code` is 143 after SIGTERM, 130 after Ctrl-C. `unsaved` says why the last save failed;
    None: it did not.
    """

    def __init__(self, signum: int, unsaved: str | None = None) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum
        self.unsaved = unsaved


class StopFlag:
    """Remembers the first signal that asked this process to stop. The second one ends it at once.

    A context manager: at the end it puts back the handlers that `install` replaced.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    def install(self) -> None:
        """(Re)install the handlers: Lightning and debuggers like to put in their own."""
        for number in SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def __enter__(self) -> "StopFlag":
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()


class NoStopFlag(StopFlag):
    """For debugging: Ctrl-C goes to the debugger, SIGTERM ends the process."""

    def install(self) -> None:
        pass
