"""Staying with training jobs: SageMaker tells nothing by itself, so it is asked, and not often."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from hydra_trainer.errors import LaunchError
from hydra_trainer.launcher import say

from .account import Account
from .logs import POLL, Logs
from .state import ENDED, told

Object = dict[str, Any]

EVERY = 1.0
"""Seconds between two pages of ListTrainingJobs, which allows two calls a second to an account."""


def follow(account: Account, name: str, pause: float = POLL) -> Object:
    """Print changes of the state and rank 0's log until a job has ended; return what it is then.

    Raises:
        LaunchError: there is no such job, or AWS can no longer be asked. The job goes on.
    """
    logs, seen = Logs(account, name), 0
    while True:
        found = account.describe(name)
        if found is None:
            raise LaunchError(f"There is no training job {name} any more.")
        transitions = found.get("SecondaryStatusTransitions") or []
        for one in transitions[seen:]:
            say(told(one))
        seen = len(transitions)
        if found["TrainingJobStatus"] != "InProgress" or seen > 1:
            for line in logs.read():
                sys.stdout.write(line.text + "\n")
            sys.stdout.flush()
        if found["TrainingJobStatus"] in ENDED:
            return found
        time.sleep(pause)


def wait_all(account: Account, names: Iterable[str], every: float = EVERY) -> dict[str, Object]:
    """Return the summaries of jobs once all have ended: one page of a list at a time.

    The summary of a job that is not there (any more) is empty.
    """
    left, ended = set(names), {}
    while left:
        begun = time.monotonic()
        seen: set[str] = set()
        token: Object = {}
        # Jobs stand in the order of their creation: the pages end where all that are left were.
        while True:
            page = account.page(**token)
            for one in page["TrainingJobSummaries"]:
                name = str(one["TrainingJobName"])
                seen.add(name)
                if name in left and one["TrainingJobStatus"] in ENDED:
                    ended[name] = one
            if not page.get("NextToken") or left <= seen:
                break
            token = {"NextToken": page["NextToken"]}
            begun = _pause(begun, every)
        for name in left - seen:  # gone, or so new that the list does not have it yet
            if (found := account.describe(name)) is None or found["TrainingJobStatus"] in ENDED:
                ended[name] = found or {}
        left -= ended.keys()
        if left:
            _pause(begun, every)
    return ended


def _pause(begun: float, every: float) -> float:
    """Wait until `every` seconds have passed since `begun`; return the time then."""
    time.sleep(max(begun + every - time.monotonic(), 0))
    return time.monotonic()
