"""Staying with a training job: SageMaker tells nothing by itself, so it is asked, and not often."""

import sys
import time
from typing import Any

from hydra_trainer.errors import LaunchError
from hydra_trainer.launcher import say

from .account import Account
from .logs import POLL, Logs
from .state import ENDED, told

Object = dict[str, Any]


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
