"""torchrun, with an ending that can be read: which rank ended first, and how.

The command line is torchrun's own. When ranks fail for good, torchrun prints a table and exits 1;
this adds failures.json to the notes of the bootstrap (see bootstrap.py).
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api

from .bootstrap import NOTES, write_json

PATIENCE = 5
"""Seconds for ranks to end after one of them was lost. torchrun gives 30, which a rank that waits
for its lost peer inside a kernel always uses up; what it could still save is saved already."""


class Agent(LocalElasticAgent):
    """torchrun's agent, less patient with ranks that cannot go on."""

    def _stop_workers(self, worker_group: Any) -> None:
        if self._pcontext is not None:
            self._pcontext.close(signal.SIGTERM, PATIENCE)


def main(arguments: list[str]) -> int:
    """Run torchrun with `arguments`. Returns 0 when all ranks returned 0, else 1."""
    api.LocalElasticAgent = Agent  # type: ignore[misc]
    # That it ends ranks is in order; that one ended by itself is still shown.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        found = [{"rank": rank, "exit_code": failure.exitcode} for rank, failure in failures]
        if NOTES in os.environ:
            write_json(Path(os.environ[NOTES], "failures.json"), {"failures": found})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
