"""All controllers of the embedded cluster: one thread for those that only write, the kubelet's own.

| module | what it does |
|---|---|
| kueue.py | lets a job with a queue wait until the queue takes it |
| training_operator.py | PyTorchJob -> pods and Services |
| trainer.py, jobset.py, batch.py | TrainJob -> JobSet -> Jobs -> pods |
| hyperpod.py | HyperPodPyTorchJob -> pods |
| katib.py | Experiment -> Trials -> PyTorchJobs |
| scheduler.py | a node for each pod |
| kubelet.py | a process for each container |
"""

import contextlib
import heapq
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

from .batch import Jobs, Orphans
from .control import Controller, Family, Key, key_of
from .history import Object
from .hyperpod import HyperPodJobs
from .jobset import JobSets
from .katib import Experiments, Trials
from .kinds import KINDS
from .kubelet import Kubelet
from .kueue import Kueue, Queues
from .refusals import ApiError
from .scheduler import Scheduler
from .store import Store
from .trainer import TrainJobs
from .training_operator import PyTorchJobs

STOP = "STOP"
"""The type of what ends the thread, among the changes of the store."""


class Controllers:
    """Runs the operators, the scheduler and the kubelet on a store.

    Args:
        store: what they work on.
        home: the folder for the files, logs and volumes of pods.
        kubelet: what runs the pods; None: one whose machine has no GPUs, and any claim.
    """

    def __init__(self, store: Store, home: Path, kubelet: Kubelet | None = None) -> None:
        self.kubelet = kubelet or Kubelet(store, home)
        self._store = store
        self._family = Family(store)
        trainer = TrainJobs(store, self._family)
        # Kueue comes before the operators: a job with a queue is suspended before it gets pods.
        self._controllers: tuple[Controller, ...] = (
            *Kueue.of_all_kinds(store),
            Queues(store),
            PyTorchJobs(store, self._family),
            trainer,
            JobSets(store, self._family),
            Jobs(store, self._family, self.kubelet.back_off),
            Orphans(store),
            HyperPodJobs(store, self._family),
            Experiments(store, self._family),
            Trials(store, self._family, home),
            Scheduler(store, self.kubelet.claims),
        )
        self._seed = trainer.seed
        self._due: dict[Key, None] = {}
        self._timers: list[tuple[float, Key]] = []
        self._alarms: dict[Key, float] = {}
        self._changes = store.subscribe()
        self._thread = threading.Thread(target=self._run, name="embedded-operators", daemon=True)

    def start(self) -> None:
        """Start the threads, and go on with what is there."""
        for kind in KINDS:
            for obj in self._store.list(kind.resource)[0]:
                self._note("ADDED", kind.resource, obj)
        self._seed()
        self.kubelet.start()
        self._thread.start()

    def stop(self, grace: float | None = None) -> None:
        """End the threads, and all pods: SIGTERM, the grace period, SIGKILL.

        Args:
            grace: seconds; None: those of the pods.
        """
        self._changes.put((STOP, "", {}))
        if self._thread.ident:
            self._thread.join()
        self._store.unsubscribe(self._changes)
        self.kubelet.stop(grace)

    # ---------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while self._listen():
            while self._due:
                key = next(iter(self._due))
                del self._due[key]
                for controller in self._controllers:
                    if controller.resource == key[0]:
                        self._look(controller, key)
                        if not self._catch_up():
                            return

    def _listen(self) -> bool:
        """Wait for something to do; return whether to go on."""
        if self._due:
            return self._catch_up()
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        with contextlib.suppress(Empty):
            if not self._note(*self._changes.get(timeout=timeout)):
                return False
        while self._timers and self._timers[0][0] <= time.monotonic():
            at, key = heapq.heappop(self._timers)
            if self._alarms.get(key) == at:
                del self._alarms[key]
                self._due[key] = None
        return self._catch_up()

    def _catch_up(self) -> bool:
        """Take in all changes up to now, so that controllers know what they did themselves."""
        with contextlib.suppress(Empty):
            while self._note(*self._changes.get_nowait()):
                pass
            return False
        return True

    def _note(self, kind: str, resource: str, obj: Object) -> bool:
        if kind == STOP:
            return False
        owner = self._family.note(kind, resource, obj)
        if owner:
            self._due[owner] = None
        if kind != "DELETED":
            self._due[key_of(resource, obj)] = None
        for controller in self._controllers:
            with _survived():
                self._due.update(dict.fromkeys(controller.note(kind, resource, obj)))
        return True

    def _look(self, controller: Controller, key: Key) -> None:
        """Let a controller look at an object that is still there."""
        with _survived():
            seconds = controller.reconcile(self._store.get(*key))
            if seconds is not None:
                self._wake(time.monotonic() + seconds, key)

    def _wake(self, at: float, key: Key) -> None:
        """Look at an object again at a time, or before it."""
        if at < self._alarms.get(key, float("inf")):
            self._alarms[key] = at
            heapq.heappush(self._timers, (at, key))


@contextlib.contextmanager
def _survived() -> Iterator[None]:
    """Let other jobs go on whatever happens with one."""
    try:
        yield
    except ApiError:
        pass  # it changed at the same time: that is a change to look at
    except Exception:
        traceback.print_exc()  # into the log of the server
