"""launcher=eks: a Kubernetes cluster with Kubeflow's training operator, its Trainer, or HyperPod.

What a job looks like there is in hydra_trainer/eks; this file is the way through it.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_trainer import delivery, launcher, storage
from hydra_trainer.eks import manifests, marks, pod
from hydra_trainer.eks.options import PLACEHOLDER, Options
from hydra_trainer.eks.seen import label
from hydra_trainer.errors import ConfigError, Full, LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState, JobStatus

if TYPE_CHECKING:
    from hydra_trainer.eks.cluster import Cluster
    from hydra_trainer.eks.seen import Seen

EMBEDDED = "embedded"
"""The context of the cluster on this machine."""

HOME = Path("~/.cache/hydra-trainer/embedded")

RESOURCES = {
    "pytorchjob": "pytorchjobs.kubeflow.org/v1",
    "trainjob": "trainjobs.trainer.kubeflow.org/v1alpha1",
    "hyperpod": "hyperpodpytorchjobs.sagemaker.amazonaws.com/v1",
}
QUOTA = re.compile(r"exceeded quota: .* used: \S*=[1-9]")
"""The refusal of an object for which there is room once another one is gone."""

PREFLIGHT = 20.0  # seconds for one question: a webhook that is down must not be waited for
LAST_LINES = 20  # of a log, that `why` reads


@dataclass(frozen=True)
class EksLauncher(Options):
    """Sends a job to a Kubernetes cluster, follows it, and brings its result back."""

    scheme = "eks"
    elsewhere = True
    language = "yaml"

    @property
    def at_once(self) -> int | None:
        """Return 2 with the embedded one, which is this machine."""
        return 2 if self.embedded else None

    @classmethod
    def reaching(cls, handle: JobHandle) -> "EksLauncher":
        """Return a launcher for the cluster and the namespace of a handle."""
        context, namespace, _ = _parts(handle)
        return cls(context=context, namespace=namespace, embedded=context == EMBEDDED)

    # ----------------------------------------------------------------------------------- render

    def render(self, job: JobSpec) -> dict[str, Any]:
        """Return the List of everything that is created: ConfigMaps, and the job last.

        Raises:
            ConfigError: with everything that is wrong with it.
        """
        found = manifests.manifests(job, self)
        problems, warnings = _checked(found)
        if self.image == PLACEHOLDER and self.dry_run:
            warnings.append(
                f"launcher.image is {PLACEHOLDER}, a name that stands for your image: no cluster "
                "can pull it. docs/eks.md builds one."
            )
        if manifests.forgets(job, self):
            warnings.append(
                "storage.output is a folder of this machine, so checkpoints stay in their pod and "
                "go with it: a pod that is lost starts the training anew. Type storage.output=s3://"
                "BUCKET/PREFIX, storage=efs or storage=fsx."
            )
        for text in warnings:
            launcher.say(f"warning: {text}")
        if problems:
            raise ConfigError(problems)
        return found

    def facts(self, job: JobSpec) -> dict[str, str]:
        """Return what of the training is decided here: processes, machine, image, environment."""
        machine = job.resources.instance_type or "any node"
        env = pod.environment(job, self)
        return launcher.facts(job, machine, self.image or "", env)

    # ----------------------------------------------------------------------------------- submit

    def preflight(self, job: JobSpec) -> bool:
        """Print what would stop the job on the cluster. Returns whether nothing would."""
        from hydra_trainer.eks.preflight import preflight
        from hydra_trainer.findings import render_findings

        spec = self.render(job)
        findings = preflight(self.cluster(seconds=PREFLIGHT), spec)
        print(render_findings(findings))
        return not any(finding.level == "fail" for finding in findings)

    def submit(self, job: JobSpec) -> JobHandle:
        """Create the job, or find it: the same job is adopted, another one of that name refused.

        Raises:
            ConfigError: the job is wrong; nothing was sent.
            Full: a quota of the namespace has no room for one more job.
            LaunchError: the cluster refuses it, or cannot be reached.
        """
        items = self.render(job)["items"]
        cluster = self.reach(job)
        wanted = items[-1]
        handle = JobHandle("eks", f"{cluster.context}/{cluster.namespace}/{_name(wanted)}")
        if (there := cluster.get(RESOURCES[self.api], _name(wanted))) is not None:
            if not (self.again or job.again):
                self._adopt(there, wanted, handle)
                return handle
            self._remove(cluster, there)
        launcher.say(f"submitting {handle}")
        self.create(cluster, items)
        return handle

    def reach(self, job: JobSpec) -> "Cluster":
        """Return the cluster, with the code where a job of it finds it.

        Raises:
            ConfigError: there is no image.
            LaunchError: the code cannot be put there, or there is no such cluster.
        """
        if self.image == PLACEHOLDER and not self.embedded:
            raise ConfigError(
                f"launcher.image is {PLACEHOLDER}, which stands for your image. Type "
                "launcher.image=REGISTRY/NAME:TAG (docs/eks.md builds one), or "
                "launcher.embedded=true to run the job on this machine."
            )
        if self.embedded:
            self._join(job)
        elif problems := storage.stand_in_problems(job.config):
            raise ConfigError(problems)
        delivery.place(job)
        return self.cluster()

    def _join(self, job: JobSpec) -> None:
        """Have the S3 on this machine up, for a job that uses it."""
        config = storage.with_embedded_s3(job.config)
        if config["storage"]["s3"]["embedded"]:
            from hydra_trainer.embedded import buckets

            buckets.join(config)

    def _adopt(self, there: dict[str, Any], wanted: dict[str, Any], handle: JobHandle) -> None:
        if label(there, marks.DIGEST) == label(wanted, marks.DIGEST):
            launcher.say(f"{handle} is there already")
            return
        raise LaunchError(
            f"{handle} is there already, with other settings: the same training, sent with other "
            "resources, storage or launcher options. To follow it as it is, type hydra-trainer "
            f"logs -f {handle}; to replace it, add launcher.again=true; to run both, add name=..."
        )

    def create(self, cluster: "Cluster", items: list[dict[str, Any]]) -> None:
        """Create objects, of which the last one owns the others. Raises Full, LaunchError."""
        from hydra_trainer.eks.refusals import AlreadyExists

        if self.api != "trainjob":  # whose webhook first wants to see its runtime
            with _told_when_full():  # the webhooks say no before anything is there
                cluster.create(items[-1], dry_run=True)
        made = []
        for item in items:
            if item.get("immutable") and cluster.exists(_resource(item), _name(item)):
                continue  # the code of a job before: it is large, and need not be sent again
            try:
                with _told_when_full() if item is items[-1] else contextlib.nullcontext():
                    made.append(cluster.create(item))
            except AlreadyExists:
                if item is items[-1] or item.get("immutable"):
                    continue  # the job: somebody sent the same at the same time
                cluster.delete(_resource(item), _name(item))  # of a job that was never created
                made.append(cluster.create(item))
        job = made[-1] if made and made[-1]["kind"] == items[-1]["kind"] else None
        owner = job or cluster.get(_resource(items[-1]), _name(items[-1]))
        for item in items[:-1]:
            if owner is not None:
                self._own(cluster, item, owner)

    def _own(self, cluster: "Cluster", item: dict[str, Any], owner: dict[str, Any]) -> None:
        """Let the job own an object, which goes with it."""
        from hydra_trainer.eks.refusals import ApiError

        try:
            cluster.own(item, owner)
        except ApiError as error:
            if error.code != 404:
                raise
            cluster.create(item)  # it went with the last job that had the same code
            cluster.own(item, owner)

    def _remove(self, cluster: "Cluster", there: dict[str, Any]) -> None:
        """Delete a job and return when it is gone."""
        name, resource = _name(there), RESOURCES[self.api]
        fields = f"metadata.name={name}"
        _, version = cluster.list(resource, fields=fields)
        cluster.delete(resource, name)
        if cluster.get(resource, name) is None:
            return
        for kind, _ in cluster.watch(resource, fields=fields, since=version, known=[there]):
            if kind == "DELETED":
                return

    def cluster(self, **budget: Any) -> "Cluster":
        """Return the cluster; `budget` is how long it is asked for an answer, as in Retry."""
        from hydra_trainer.eks.cluster import Cluster
        from hydra_trainer.retry import Retry

        retry = Retry(**budget)
        if self.embedded:
            from hydra_trainer import embedded

            kubeconfig = embedded.start(HOME.expanduser())
            return Cluster(EMBEDDED, self.namespace, kubeconfig=str(kubeconfig), retry=retry)
        return Cluster(self.context, self.namespace, retry=retry)

    # ------------------------------------------------------------------------------------ verbs

    def status(self, handle: JobHandle) -> JobStatus:
        """Return how a job goes, from its conditions and its pods."""
        from hydra_trainer.eks import state
        from hydra_trainer.eks.follow import age

        cluster = self.cluster()
        seen = _see(cluster, handle)
        return state.status(seen, age=age(cluster, seen.job))

    def why(self, handle: JobHandle) -> str:
        """Return one screen on what happened, with the last lines of the logs that tell."""
        from hydra_trainer.eks import state
        from hydra_trainer.eks.follow import age

        cluster = self.cluster()
        seen = _see(cluster, handle)
        logs = {
            name: _tail(cluster, seen, name, previous)
            for name, previous in state.worth_reading(seen)
        }
        return state.why(seen, logs, age=age(cluster, seen.job))

    def logs(
        self, handle: JobHandle, *, rank: int | None = 0, follow: bool = False
    ) -> Iterator[str]:
        """Yield the lines of the pod that a rank is on; None: those of all pods, in turn."""
        from hydra_trainer.eks.follow import together

        cluster = self.cluster()
        seen = _see(cluster, handle)
        pods = _pods_in_order(seen)
        if rank is not None:
            pods = [_pod_of(seen, pods, rank, handle)]
        if len(pods) == 1:
            container = _container(pods[0])
            yield from cluster.logs(pods[0]["metadata"]["name"], container=container, follow=follow)
            return
        yield from together(cluster, [(_name(p), _container(p)) for p in pods], follow=follow)

    def follow(self, handle: JobHandle) -> JobStatus:
        """Print state changes, the events that matter and rank 0's log until the job ends.

        Ctrl-C lets go of the job, which goes on.
        """
        if self.detach:
            return self.status(handle)
        from hydra_trainer.eks.follow import Follower

        cluster = self.cluster()
        found = _search(cluster, handle)
        if found is None:
            raise _gone(handle)
        try:
            return Follower(cluster, found[0], _parts(handle)[2]).run()
        except KeyboardInterrupt:
            launcher.say(
                f"let go of {handle}, which goes on. To see it again: hydra-trainer logs -f"
            )
            return JobStatus(JobState.RUNNING)

    def wait(self, handle: JobHandle) -> JobStatus:
        """Return when a job has ended."""
        return self.wait_all([handle])[handle]

    def wait_all(self, handles: list[JobHandle]) -> dict[JobHandle, JobStatus]:
        """Return how jobs of one namespace ended, once all have: one watch for all of them."""
        from hydra_trainer.eks import follow

        cluster = self.cluster()
        names = {_parts(handle)[2]: handle for handle in handles}
        found = _search(cluster, handles[0])
        if found is None:
            return {handle: follow.wait_gone(cluster, name) for name, handle in names.items()}
        resource, _ = found
        ended = follow.wait_all(cluster, resource, set(names))
        return {names[name]: status for name, status in ended.items()}

    def in_background(self) -> "EksLauncher":
        """Return the same launcher, whose `follow` does not wait for the job."""
        return replace(self, detach=True)

    def watch(
        self, jobs: Callable[[], Collection[JobHandle]], *, progress: bool = True
    ) -> Iterator[dict[JobHandle, JobStatus]]:
        """Yield how jobs of one namespace go: one watch of their kind and one of pods for all.

        With `progress`, the log of one running job is looked at each second, in turn.
        """
        from hydra_trainer.eks import many

        while not (first := jobs()):
            yield {}
            time.sleep(many.TICK)
        place = self._of(next(iter(first)))
        cluster = place.cluster(seconds=many.PATIENCE, tries=many.TRIES)
        handles: dict[str, JobHandle] = {}

        def names() -> Collection[str]:
            handles.clear()
            handles.update({_parts(handle)[2]: handle for handle in jobs()})
            return handles

        changes = many.Teller(cluster, _of_all_kinds, progress=progress).tell(names)
        with contextlib.closing(changes):
            for found in changes:
                yield {handles[name]: status for name, status in found.items()}

    def _of(self, handle: JobHandle) -> "EksLauncher":
        """Return a launcher for the cluster of a handle, whatever the context is by now."""
        context, namespace, _ = _parts(handle)
        if self.embedded and context == EMBEDDED:
            return replace(self, namespace=namespace)
        return replace(self, context=context, namespace=namespace, embedded=False)

    def cancel(self, handle: JobHandle) -> None:
        """Delete a job: its pods get SIGTERM and the grace period to save."""
        from hydra_trainer.eks import state

        cluster = self.cluster()
        found = _search(cluster, handle)
        if found is not None and not state.status(_see(cluster, handle)).state.ended:
            cluster.delete(found[0], _parts(handle)[2])

    def list(self) -> list[tuple[JobHandle, JobStatus]]:
        """Return the jobs in the namespace that this package sent."""
        from hydra_trainer.eks.follow import by_job, status_of

        cluster = self.cluster()
        found = []
        pods, _ = cluster.list("pods", labels=marks.ALL)
        of = by_job(pods)
        for _, (jobs, _) in _of_all_kinds(lambda kind: cluster.list(kind, labels=marks.ALL)):
            for job in jobs:
                handle = JobHandle("eks", f"{cluster.context}/{cluster.namespace}/{_name(job)}")
                found.append((handle, status_of(job, of.get(_name(job), []))))
        return found


# ------------------------------------------------------------------------------------ what is there


def _parts(handle: JobHandle) -> tuple[str, str, str]:
    """Return context, namespace and name. A context may hold slashes (an EKS ARN does)."""
    parts = handle.path.rsplit("/", 2)
    if handle.scheme != "eks" or len(parts) < 2:
        raise LaunchError(
            f"{handle} is not the handle of a job on a cluster: eks://CONTEXT/NAMESPACE/NAME."
        )
    context, namespace, *name = parts
    return context, namespace, name[0] if name else ""


def _search(cluster: "Cluster", handle: JobHandle) -> tuple[str, dict[str, Any]] | None:
    """Return a job and its resource, or None where there is none of that name."""
    name = _parts(handle)[2]
    for resource, found in _of_all_kinds(lambda resource: cluster.get(resource, name)):
        if found is not None:
            return resource, found
    return None


def _of_all_kinds(ask: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
    """Yield the answers for the kinds of job that a cluster has and that the user may see.

    Raises ApiError where the user may see none of those that are there.
    """
    from hydra_trainer.eks.refusals import ApiError

    refused, seen = None, False
    for resource in RESOURCES.values():
        try:
            answer = ask(resource)
        except ApiError as error:
            if error.code not in (403, 404):
                raise
            refused = error if error.code == 403 else refused
            continue
        seen = True
        yield resource, answer
    if refused is not None and not seen:
        raise refused


def _gone(handle: JobHandle) -> LaunchError:
    return LaunchError(
        f"There is no job {handle}. It was cancelled or deleted, or its time to live is over "
        "(launcher.ttl); a run directory on shared storage still has its result.json."
    )


@contextlib.contextmanager
def _told_when_full() -> Iterator[None]:
    """Tell a quota without room, which has some later, from other refusals of a job."""
    from hydra_trainer.eks.refusals import ApiError

    try:
        yield
    except ApiError as error:
        if error.code == 403 and QUOTA.search(error.message):
            raise Full(
                f"{error} A job counts until it is deleted: by hydra-trainer cancel while it runs, "
                "by kubectl delete or its time to live (launcher.ttl) afterwards."
            ) from error
        raise


def _see(cluster: "Cluster", handle: JobHandle) -> "Seen":
    from hydra_trainer.eks.follow import workload
    from hydra_trainer.eks.seen import Seen

    pods, _ = cluster.list("pods", labels=marks.of_job(_parts(handle)[2]))
    found = _search(cluster, handle)
    if found is None and not pods:
        raise _gone(handle)
    job = found[1] if found else None
    waits = workload(cluster, job) if job else None
    return Seen(job, pods, cluster.list("events")[0], waits)


# ------------------------------------------------------------------------------------ pods and logs


def _pods_in_order(seen: "Seen") -> list[dict[str, Any]]:
    """Return the pods of a job by the rank of their node: the master, then the workers."""
    return sorted(seen.pods, key=node_rank)


def node_rank(of: dict[str, Any]) -> int:
    """Return which node of the job a pod is, as the operators number them."""
    labels = of["metadata"].get("labels") or {}
    kind = labels.get("training.kubeflow.org/replica-type")
    index = int(
        labels.get("training.kubeflow.org/replica-index")
        or labels.get("batch.kubernetes.io/job-completion-index")
        or re.findall(r"\d+$", of["metadata"]["name"] + "-0")[0]
    )
    has_master = labels.get("training.kubeflow.org/job-role") != "master" and kind == "worker"
    return index + int(has_master)


def _pod_of(
    seen: "Seen", pods: list[dict[str, Any]], rank: int, handle: JobHandle
) -> dict[str, Any]:
    each = _processes(seen)
    if not 0 <= rank < len(pods) * each:
        raise LaunchError(
            f"{handle} has no rank {rank} now: it has {len(pods)} pods of {each} ranks. To see "
            f"why, type hydra-trainer why {handle}."
        )
    return pods[rank // each]


def _processes(seen: "Seen") -> int:
    """Return how many ranks a pod has."""
    spec = (seen.job or {}).get("spec", {})
    found = spec.get("nprocPerNode") or spec.get("trainer", {}).get("numProcPerNode") or 1
    return int(found)


def _container(of: dict[str, Any]) -> str:
    return str(of["spec"]["containers"][0]["name"])


def _tail(cluster: "Cluster", seen: "Seen", name: str, previous: bool) -> list[str]:
    found = next(item for item in seen.pods if _name(item) == name)
    with contextlib.suppress(LaunchError):
        lines = cluster.logs(name, container=_container(found), previous=previous, tail=LAST_LINES)
        return list(lines)
    return []


# --------------------------------------------------------------------------------------- manifests


def _name(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])


def _resource(item: dict[str, Any]) -> str:
    from hydra_trainer.eks.cluster import resource_of

    return resource_of(item)


def _checked(spec: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what is wrong with rendered manifests, and what may be."""
    from hydra_trainer.eks.keys import with_key
    from hydra_trainer.eks.rules import rule_problems, webhook_problems
    from hydra_trainer.eks.schema import schema_problems

    problems: list[str] = []
    warnings: list[str] = []
    for item in spec["items"]:
        for found in (*schema_problems(item), *webhook_problems(item), *rule_problems(item)):
            text = f"{item['kind']} {found.path}: {with_key(found.path, found.message)}"
            (warnings if found.severity == "warning" else problems).append(text)
    return problems, warnings
