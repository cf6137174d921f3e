"""Where the pods are in a manifest of each kind that is rendered."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from hydra_trainer.trees import dig, objects

ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
"""The label that tells Kubeflow Trainer which part of a runtime trains: the one with `trainer`."""


class Template(NamedTuple):
    """A pod template: its path in the manifest, and what is in it."""

    path: str
    body: dict[str, Any]
    trains: str | None
    """The container that the operator looks for; None: any."""


def templates(manifest: dict[str, Any]) -> list[Template]:
    """Return the pod templates of an object, in their order."""
    find = FINDERS.get(str(manifest.get("kind")))
    return list(find(dig(manifest, "spec"))) if find else []


def _pytorchjob(spec: dict[str, Any]) -> Iterator[Template]:
    for role in dig(spec, "pytorchReplicaSpecs"):
        replica = dig(spec, "pytorchReplicaSpecs", role)
        path = f"spec.pytorchReplicaSpecs.{role}.template"
        yield Template(path, dig(replica, "template"), "pytorch")


def _hyperpod(spec: dict[str, Any]) -> Iterator[Template]:
    for index, replica in enumerate(objects(spec, "replicaSpecs")):
        path = f"spec.replicaSpecs[{index}].template"
        yield Template(path, dig(replica, "template"), None)


def _runtime(spec: dict[str, Any]) -> Iterator[Template]:
    path = "spec.template.spec.replicatedJobs"
    for index, job in enumerate(objects(dig(spec, "template", "spec"), "replicatedJobs")):
        body = dig(job, "template", "spec", "template")
        trains = "node" if step(job) == "trainer" else None
        yield Template(f"{path}[{index}].template.spec.template", body, trains)


def step(replicated_job: dict[str, Any]) -> Any:
    """Return which step of a TrainJob a replicated job is, by its label."""
    return dig(replicated_job, "template", "metadata", "labels").get(ANCESTOR)


FINDERS = {
    "PyTorchJob": _pytorchjob,
    "HyperPodPyTorchJob": _hyperpod,
    "TrainingRuntime": _runtime,
    "ClusterTrainingRuntime": _runtime,
}
