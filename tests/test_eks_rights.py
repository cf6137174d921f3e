"""deploy/rbac.yaml: a user who has it can do everything, and everything in it is used.

A user of its group goes through all that can be done with a job, for each kind of job; the
embedded cluster notes what it is asked for.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from hydra_trainer import __main__ as verbs
from hydra_trainer import config, embedded
from hydra_trainer.eks import refusals
from hydra_trainer.eks.cluster import Cluster, Retry
from hydra_trainer.eks.preflight import RIGHTS
from hydra_trainer.embedded import Embedded
from hydra_trainer.embedded.access import Ask, User
from hydra_trainer.embedded.faults import Fault
from hydra_trainer.embedded.refusals import ApiError
from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState, JobStatus
from hydra_trainer.launcher import reaching
from hydra_trainer.launchers import eks
from hydra_trainer.targets import TRUSTED, instantiate

from .conftest import REPOSITORY
from .world import PATIENCE, Pipe

Object = dict[str, Any]
Right = tuple[str, str, str]
"""Verb, API group, and resource with its subresource."""

USER = "ann"
GROUP = "hydra-trainer-users"
TEAM = "team"
QUEUES = "localqueues.kueue.x-k8s.io"

KINDS = {
    # launcher.api: (kind, resource, the container that trains)
    "pytorchjob": ("PyTorchJob", "pytorchjobs.kubeflow.org", "pytorch"),
    "trainjob": ("TrainJob", "trainjobs.trainer.kubeflow.org", "node"),
    "hyperpod": ("HyperPodPyTorchJob", "hyperpodpytorchjobs.sagemaker.amazonaws.com", "pytorch"),
}

THERE: list[tuple[str, Object]] = [
    (QUEUES, {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}}),
    ("resourcequotas", {"metadata": {"name": "quota"}, "spec": {"hard": {"pods": "9"}}}),
    (
        "persistentvolumeclaims",
        {
            "metadata": {"name": "efs-claim"},
            "spec": {"accessModes": ["ReadWriteMany"]},
            "status": {"phase": "Bound"},
        },
    ),
]
"""What the check of a job looks at, besides what deploy/rbac.yaml brings."""

RBAC: list[Object] = [*yaml.safe_load_all((REPOSITORY / "deploy" / "rbac.yaml").read_text())]


def given() -> set[Right]:
    """Return what deploy/rbac.yaml gives."""
    (role,) = [thing for thing in RBAC if thing["kind"] == "Role"]
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def told(kind: str) -> set[Right]:
    """Return what launcher.check=true says that a job of a kind needs, in a queue."""
    found = set()
    for right in RIGHTS:
        plural, group = plural_and_group(right.resource.partition("/")[0])
        part = f"{plural}/{right.subresource}" if right.subresource else plural
        if right.where in ("", kind, "queue"):
            found |= {(verb, group, part) for verb in right.verbs}
    return found


def looked_for(kind: str) -> set[Right]:
    """Return what is asked about other kinds of jobs: a handle does not tell its own."""
    others = [plural_and_group(resource) for other, resource, _ in KINDS.values() if other != kind]
    return {(verb, group, plural) for plural, group in others for verb in ("get", "list")}


def plural_and_group(resource: str) -> tuple[str, str]:
    plural, _, group = resource.partition(".")
    return plural, group


class Asked:
    """What a server was asked for by a user."""

    def __init__(self) -> None:
        self.all: list[Ask] = []
        self.refused: list[Ask] = []
        self._news = threading.Condition()

    def listen(self, cluster: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
        access = cluster.server.access
        check = access.check

        def checked(user: User, ask: Ask) -> None:
            is_counted = user.name == USER and ask.plural != "selfsubjectaccessreviews"
            if is_counted:
                with self._news:
                    self.all.append(ask)
                    self._news.notify_all()
            try:
                check(user, ask)
            except ApiError:
                if is_counted:
                    self.refused.append(ask)
                raise

        monkeypatch.setattr(access, "check", checked)

    def rights(self, since: int = 0) -> set[Right]:
        return {(ask.verb, ask.group, ask.part) for ask in self.all[since:]}

    def until(self, is_so: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(is_so, PATIENCE), self.rights()


class Gate:
    """Holds pods that come to it."""

    def __init__(self, folder: Path) -> None:
        self._arrivals = Pipe(folder / "arrivals")
        self._words = folder / "words"
        os.mkfifo(self._words)
        self._file = os.open(self._words, os.O_RDWR)
        self.script = f"echo here; echo here > {self._arrivals.path}; read word < {self._words}"

    def await_pod(self) -> None:
        self._arrivals.hear()

    def let_through(self) -> None:
        os.write(self._file, b"go\n")


class Ann:
    """A user with the rights of deploy/rbac.yaml, and a job of one kind."""

    def __init__(self, cluster: Embedded, asked: Asked, gate: Gate, api: str) -> None:
        self.cluster = cluster
        self.asked = asked
        self.gate = gate
        _, self.resource, container = KINDS[api]
        run = f"{{name: {container}, command: [sh, -c, '{gate.script}']}}"
        self.words = [
            "launcher=eks",
            "launcher.embedded=true",
            f"launcher.api={api}",
            "launcher.queue=gpus",
            "launcher.service_account=hydra-trainer-pods",
            f"+launcher.pod_overrides={{spec: {{containers: [{run}]}}}}",
            "storage=efs",
            f"name={api}",
        ]
        self.handle = JobHandle("eks", "none")

    def job(self, *more: str) -> tuple[Any, JobSpec]:
        """Return the launcher and the job of a command."""
        plain = config.validate(compose("config", [*self.words, *more]))
        place = instantiate(config.arguments(plain, "launcher"), TRUSTED, "launcher")
        return place, config.to_job(plain, Path("runs/x"))

    def check(self, *more: str) -> bool:
        place, job = self.job(*more)
        return bool(place.preflight(job))

    def submit(self, *more: str) -> None:
        place, job = self.job(*more)
        self.handle = place.submit(job)

    def follow(self) -> "Future[JobStatus]":
        """Follow the job on another thread; return when it watches."""
        since = len(self.asked.all)
        found = ThreadPoolExecutor(1).submit(reaching(self.handle).follow, self.handle)
        plural, group = plural_and_group(self.resource)
        watches = {("watch", group, plural), ("watch", "", "pods"), ("watch", "", "events")}
        self.asked.until(lambda: watches <= self.asked.rights(since))
        return found

    def type(self, verb: str, *more: str) -> int:
        return verbs.verb(verb, [str(self.handle), *more])

    def hold(self, policy: str) -> None:
        """Let jobs wait in the queue (Hold), or in (None)."""

        def write(queue: Object) -> None:
            queue["spec"]["stopPolicy"] = policy

        self.cluster.store.change(QUEUES, TEAM, "gpus", write)

    def break_off(self) -> None:
        """Let the next submit lose the answer to a create, and fail at the job."""
        jobs = f"/{plural_and_group(self.resource)[0]}$"
        tries = 0 if jobs == "/trainjobs$" else 1  # dry runs, that come before all else
        refused = Fault("status", 422, "POST", jobs, skip=tries, message="no more of these")
        self.cluster.faults.add(Fault("lost", method="POST", path="/configmaps$"))
        self.cluster.faults.add(refused)

    def go_through(self) -> None:
        """Do all that can be done with a job."""
        assert self.check()

        # A submit that breaks off: the answer to a create is lost, and the job is refused.
        self.break_off()
        with pytest.raises(LaunchError, match="no more of these"):
            self.submit()
        self.hold("Hold")
        self.submit()  # which clears away what that one left
        assert self.type("status") == 0
        assert self.type("why") == 0
        self.submit()  # the same: it is there already

        followed = self.follow()
        self.hold("None")
        self.gate.await_pod()
        self.gate.let_through()
        assert followed.result(PATIENCE).state is JobState.SUCCEEDED
        assert self.type("wait") == 0
        assert self.type("why") == 0
        assert self.type("logs") == 0
        assert self.type("logs", "--all") == 0
        assert self.type("logs", "--rank", "0", "--follow") == 0
        assert verbs.verb("list", [f"eks://embedded/{TEAM}"]) == 0

        self.submit("launcher.again=true")
        self.gate.await_pod()
        assert self.type("cancel") == 0
        assert self.type("wait") in (143, 1)  # 1 where its pod has gone before somebody looked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked()


@pytest.fixture
def cluster(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    """A cluster on which an administrator has applied deploy/rbac.yaml, reached as the user."""
    with Embedded(tmp_path / "home") as found:
        found.store.create("namespaces", "", {"metadata": {"name": TEAM}})
        owner = Cluster(namespace=TEAM, kubeconfig=str(found.kubeconfig))
        for thing in RBAC:
            owner.create(thing)
        for resource, thing in THERE:
            found.store.create(resource, TEAM, thing)
        asked.listen(found, monkeypatch)
        mine = found.kubeconfig_of(USER, GROUP, namespace=TEAM)
        monkeypatch.setattr(embedded, "start", lambda home: mine)
        at_once = partial(Retry, spread=lambda low, high: 0.0)
        monkeypatch.setattr("hydra_trainer.retry.Retry", at_once)
        monkeypatch.chdir(REPOSITORY)
        yield found


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        yield


def test_the_role_holds_the_rights_that_suffice_and_no_other(
    tmp_path: Path, cluster: Embedded, asked: Asked
) -> None:
    gate = Gate(tmp_path)
    for api, (kind, _, _) in KINDS.items():
        before = len(asked.all)
        Ann(cluster, asked, gate, api).go_through()
        assert asked.rights(before) - looked_for(kind) == told(kind)
    assert asked.refused == []
    assert {ask.namespace or ask.name for ask in asked.all} == {TEAM}
    assert asked.rights() == given()


def test_a_check_does_without_the_secrets_that_the_role_keeps_from_it(
    tmp_path: Path, cluster: Embedded, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    ann = Ann(cluster, asked, Gate(tmp_path), "pytorchjob")
    assert ann.check("+launcher.secrets={KEY: wandb/key}")
    assert [(ask.verb, ask.part) for ask in asked.refused] == [("get", "secrets")]
    assert "warn  secret wandb: not looked at" in capsys.readouterr().out


def test_kinds_of_job_that_one_may_not_see_are_passed_over() -> None:
    def ask(allowed: str) -> Callable[[str], str]:
        def answer(resource: str) -> str:
            if resource.partition(".")[0] != allowed:
                raise refusals.ApiError("forbidden", 403, "Forbidden", resource)
            return resource

        return answer

    found = [kind for kind, _ in eks._of_all_kinds(ask("trainjobs"))]
    assert found == [eks.RESOURCES["trainjob"]]
    with pytest.raises(LaunchError, match="forbidden"):
        list(eks._of_all_kinds(ask("none")))
