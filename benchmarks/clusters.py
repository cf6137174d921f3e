"""What it costs to send a job to a cluster: a dry run, the jobs of a sweep, creates, waiting."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from . import crowd, jobs
from .crowd import MERGE, STRATEGIC, Bare
from .starts import TRAIN, in_turns
from .table import Row, compared, limited, verdict

DRY_RUN = [*TRAIN, "launcher=eks", "launcher.dry_run=true"]
HEAVY = (
    "from hydra_trainer.app import main; main(); import sys; "
    "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'kubernetes')))"
)
RATE = 1.11
"""Of the seconds: 0.9 of the rate."""

STRICT = "?fieldManager=hydra-trainer&fieldValidation=Strict"
"""What Cluster.create asks for, which costs the server something."""

TURN = 10  # creates of one side before it is the other's turn


def dry_run(quick: bool) -> Iterator[Row]:
    """Yield the rows of a dry run: CPU time against the import that it avoids."""
    rendered, imported = in_turns(DRY_RUN, "import torch", quick)
    name = "CPU time, launcher=eks launcher.dry_run=true / import torch"
    yield compared(name, rendered, imported, "s CPU", 0.25)
    light = subprocess.run([sys.executable, "-c", HEAVY, *DRY_RUN[2:]], capture_output=True)
    note = "met" if light.returncode == 0 else "MISSED"
    yield Row("... neither torch nor kubernetes is imported", "", "", note=note)
    yield from _many(quick)


def _many(quick: bool) -> Iterator[Row]:
    """Yield the row of a thousand jobs that differ in one value."""
    from hydra_trainer.launchers.eks import EksLauncher

    count, place = 100 if quick else 1000, EksLauncher(embedded=True)
    sweep = jobs.sweep(count, "eks")
    begun = time.process_time()
    for job in sweep:
        place.render(job)
    seconds = (time.process_time() - begun) * 1000 / count
    yield limited("1,000 jobs rendered and checked", seconds, "s CPU", 2)


# --------------------------------------------------------------------------------------- creates


def creates(quick: bool) -> Iterator[Row]:
    """Yield the rows of creating objects: wall time against a client that does nothing else."""
    from hydra_trainer.eks.cluster import Cluster

    with crowd.crowded() as there:
        ours, bare = Cluster(kubeconfig=str(there.kubeconfig)), Bare(there.kubeconfig)

        def create(sent: list[Sent]) -> None:
            for items, _ in sent:
                ours.create(items[-1])

        def post(sent: list[Sent]) -> None:
            for items, bodies in sent:
                bare.post(items[-1], bodies[-1], STRICT)

        found = _in_turns(create, post, 100 if quick else 1000)
        yield compared("a create / http.client's POST of the same body", *found, "ms", RATE)
        yield from _submits(ours, bare, 20 if quick else 200)


Sent = tuple[list[dict[str, Any]], list[bytes]]
"""The objects of a job, and the bodies of their POSTs."""


def _submits(ours: Any, bare: Bare, count: int) -> Iterator[Row]:
    """Yield the row of all requests of a submit: the jobs of a sweep, which share their code."""
    from hydra_trainer.launchers.eks import EksLauncher

    place = EksLauncher(embedded=True)

    def submit(sent: list[Sent]) -> None:
        for items, _ in sent:
            place._create(ours, items)

    def same(sent: list[Sent]) -> None:
        for items, bodies in sent:
            bare.post(items[-1], bodies[-1], f"{STRICT}&dryRun=All")
            for item, body in zip(items, bodies, strict=True):
                made = bare.post(item, body, STRICT)
            owner = {"apiVersion": items[-1]["apiVersion"], "kind": items[-1]["kind"]}
            owner |= {key: json.loads(made)["metadata"][key] for key in ("name", "uid")}
            for item in items[:-1]:
                bare.patch(item, {"metadata": {"ownerReferences": [owner]}}, STRATEGIC)

    found = _in_turns(submit, same, count, first=10**6)
    yield compared("all requests of a submit / the same by http.client", *found, "ms", RATE)


def _in_turns(
    ours: Callable[[list[Sent]], None],
    baseline: Callable[[list[Sent]], None],
    count: int,
    first: int = 0,
) -> tuple[list[float], list[float]]:
    """Return milliseconds a job, for each turn of both sides, which get jobs of their own."""
    from hydra_trainer.launchers.eks import EksLauncher

    place = EksLauncher(embedded=True)
    rendered = [place.render(job)["items"] for job in jobs.sweep(2 * count, "eks", first)]
    sent = [(items, [json.dumps(item).encode() for item in items]) for items in rendered]
    times: tuple[list[float], list[float]] = ([], [])
    for turn, start in enumerate(range(0, 2 * count, TURN)):
        side = (ours, baseline)[turn % 2]
        begun = time.perf_counter()
        side(sent[start : start + TURN])
        times[turn % 2].append((time.perf_counter() - begun) * 1000 / TURN)
    return times[0][1:], times[1][1:]  # the first turn also makes the connection


# --------------------------------------------------------------------------------------- waiting


def waiting(quick: bool) -> Iterator[Row]:
    """Yield the rows of waiting for a thousand jobs that end one after the other."""
    count = 100 if quick else 1000
    asked, peak = _waited(count)
    _, alone = _waited(1)
    name = f"waiting for {count:,} jobs:"
    yield limited(f"{name} list calls", asked.pop("list", 0), "", 10)
    yield limited(f"{name} watches", asked.pop("watch", 0), "", 1)
    yield limited(f"{name} other requests", sum(asked.values()), "", 1)
    row = compared(f"{name} peak memory / for one", [peak], [alone], "MiB")
    yield replace(row, note=verdict(peak, 150, "MB"))


def _waited(count: int) -> tuple[dict[str, int], float]:
    """Return what a process has asked that waited for so many jobs, and its peak in MiB."""
    from hydra_trainer.launchers.eks import EksLauncher

    place = EksLauncher(embedded=True)
    sent = [place.render(job)["items"][-1] for job in jobs.sweep(count, "eks")]
    with crowd.crowded() as there:
        bare = Bare(there.kubeconfig)
        for item in sent:
            bare.post(item, json.dumps(item).encode())
        names = [item["metadata"]["name"] for item in sent]
        with crowd.waiting(there.kubeconfig, names) as process:
            while not there.asked().get("watch"):
                time.sleep(0.05)
            for item in sent:
                _run(bare, item)
            printed, _ = process.communicate()
        told = json.loads(printed)
        assert told["states"] == {"SUCCEEDED": count} and told["results"] == count, told
        return there.asked(), told["peak"]


def _run(bare: Bare, job: dict[str, Any]) -> None:
    """Let a job run and end, as its operator and a kubelet tell of it."""
    template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    meta = {**template["metadata"], "name": f"{job['metadata']['name']}-master-0"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    bare.post(pod, json.dumps(pod).encode())
    running = {"type": "Running", "status": "True", "reason": "PyTorchJobRunning"}
    bare.patch(job, {"status": {"conditions": [running]}}, MERGE, "/status")
    ended = {"exitCode": 0, "reason": "Completed", "message": RESULT}
    state = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status = {"containerStatuses": [{**state, "state": {"terminated": ended}}]}
    bare.patch(pod, {"status": {"phase": "Succeeded", **status}}, MERGE, "/status")
    done = [{**running, "status": "False"}, {**running, "type": "Succeeded"}]
    bare.patch(job, {"status": {"conditions": done}}, MERGE, "/status")


RESULT = json.dumps({"status": "completed", "exit_code": 0, "filler": "x" * 4000})
"""What a pod says at its end: nearly as much as Kubernetes keeps of it."""
