"""torchrun, with an ending that can be read: which rank ended first, and how.

The command line is torchrun's own. When ranks fail for good, torchrun prints a table and exits 1;
this adds failures.json to the notes of the bootstrap (see bootstrap.py). And the first node of a
job is the first node of its ranks: torchrun numbers them by host name, by which the pod worker-10
comes before worker-2 and a result in the log of another pod than the one that is asked.
"""

import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    c10d_rendezvous_backend,
    dynamic_rendezvous,
)
from torch.distributed.launcher import api

from .bootstrap import JOIN_TIMEOUT, NOTES, write_json

PATIENCE = 5
"""Seconds for ranks to end after one of them was lost, or a machine has come to an elastic job.
torchrun gives 30, which a rank that waits for its lost peer inside a kernel always uses up; what it
could still save is saved already. Where nobody was lost, they are for a step and a save."""


class Agent(LocalElasticAgent):
    """torchrun's agent, less patient with ranks that cannot go on."""

    def _stop_workers(self, worker_group: Any) -> None:
        if self._pcontext is not None:
            self._pcontext.close(signal.SIGTERM, PATIENCE)


def _number_nodes(own: str | None) -> None:
    """Let the rendezvous number the nodes as the platform does; `own` is this node's number.

    A node describes itself by host name, process and a number within the process. There is one
    rendezvous in this process, so the last is free to say which node it is.
    """
    if own is None:
        return
    generator = dynamic_rendezvous._NodeDescGenerator
    executor: Any = dynamic_rendezvous._DistributedRendezvousOpExecutor
    complete = executor._mark_rendezvous_complete

    def generate(self: Any, local_addr: str | None = None) -> Any:
        address = local_addr or socket.getfqdn()
        return dynamic_rendezvous._NodeDesc(address, os.getpid(), int(own))

    def mark_complete(self: Any) -> None:
        complete(self)
        nodes = self._state.participants
        for rank, node in enumerate(sorted(nodes, key=lambda node: (node.local_id, node))):
            nodes[node] = rank

    generator.generate = generate  # type: ignore[method-assign]
    executor._mark_rendezvous_complete = mark_complete


def _await_host(seconds: float) -> None:
    """Let this machine wait for the one that they meet on, however late that starts.

    torch gives up when it could not be reached for twice the read_timeout. The pod would end, and
    be made anew, which is for launcher.attempts to count: a node that takes ten minutes to come
    would end the job.
    """
    make = c10d_rendezvous_backend._create_tcp_store
    until = time.monotonic() + seconds

    def create(params: Any) -> Any:
        while True:
            try:
                return make(params)
            except RendezvousConnectionError:
                if params.get_as_bool("is_host") or time.monotonic() > until:
                    raise
            print(f"{params.endpoint} cannot be reached yet", file=sys.stderr, flush=True)
            time.sleep(1)

    c10d_rendezvous_backend._create_tcp_store = create


def main(arguments: list[str]) -> int:
    """Run torchrun with `arguments`. Returns 0 when all ranks returned 0, else 1."""
    api.LocalElasticAgent = Agent  # type: ignore[misc]
    _number_nodes(os.environ.get("PET_NODE_RANK"))
    _await_host(JOIN_TIMEOUT)
    # That it ends ranks is in order; that one ended by itself is still shown.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        found = [{"rank": rank, "exit_code": failure.exitcode} for rank, failure in failures]
        _note({"failures": found})
        return 1
    except RendezvousError as error:
        _note({"failures": [], "lost": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _note(found: dict[str, Any]) -> None:
    if NOTES in os.environ:
        write_json(Path(os.environ[NOTES], "failures.json"), found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
