"""What becomes of pods in the embedded cluster: the scheduler, the kubelet, and their processes."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.embedded.control import find, holds
from hydra_trainer.embedded.kubelet import NODE
from hydra_trainer.embedded.podlogs import log_file
from hydra_trainer.embedded.process import MARK
from hydra_trainer.embedded.quantities import amount
from hydra_trainer.embedded.refusals import ApiError
from hydra_trainer.embedded.rewriting import Paths, expand

from .conftest import REPOSITORY
from .world import (
    FOREVER,
    JOBS,
    PATIENCE,
    Object,
    Pipe,
    World,
    drained,
    once,
    pod,
    polite,
    pytorchjob,
    restarts,
    shell,
    state,
    stubborn,
    terminated,
)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds with a kubelet as the test wants it; those of one test share a home."""
    with contextlib.ExitStack() as made:
        yield lambda **kubelet: made.enter_context(World(tmp_path / "home", **kubelet))


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "pipe")


# ---------------------------------------------------------------------------------------- scheduler


def asking(name: str, **limits: str) -> Object:
    wanted = {key.replace("_", "/"): value for key, value in limits.items()}
    return pod(name, shell(FOREVER, resources={"limits": wanted}))


AFTER = (
    " no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not "
    "helpful for scheduling."
)


def test_a_pod_waits_for_gpus(make: Callable[..., World]) -> None:
    world = make(capacity={"nvidia.com/gpu": 8})
    world.create(asking("one", **{"nvidia.com_gpu": "6"}))
    world.running("one")
    world.create(asking("two", **{"nvidia.com_gpu": "4"}))
    text = world.told("two", "FailedScheduling")
    assert text == f"0/1 nodes are available: 1 Insufficient nvidia.com/gpu.{AFTER}"
    two = world.get("pods", "two") or {}
    scheduled = find(two["status"]["conditions"], "PodScheduled") or {}
    assert (scheduled["reason"], scheduled["message"]) == ("Unschedulable", text)
    assert (two["status"]["phase"], "nodeName" in two["spec"]) == ("Pending", False)
    world.store.delete("pods", "default", "one")
    world.running("two")


def test_a_machine_has_no_gpus_unless_told(world: World) -> None:
    world.create(pytorchjob("job", FOREVER))
    world.running("job-master-0")  # CPU and memory are not counted
    world.create(asking("large", cpu="500", memory="4Ti"))
    world.running("large")
    world.create(asking("gpu", **{"nvidia.com_gpu": "1"}))
    assert "1 Insufficient nvidia.com/gpu" in world.told("gpu", "FailedScheduling")


@pytest.mark.parametrize(
    ("node", "spec", "words"),
    [
        ({"spec": {"unschedulable": True}}, {}, "1 node(s) were unschedulable"),
        (
            {"spec": {"taints": [{"key": "spot", "value": "yes", "effect": "NoSchedule"}]}},
            {"tolerations": [{"key": "spot", "operator": "Equal", "value": "no"}]},
            "1 node(s) had untolerated taint {spot: yes}",
        ),
        (
            {"metadata": {"labels": {"kind": "a"}}},
            {"nodeSelector": {"kind": "b", "zone": "any"}},
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        ({"status": {"allocatable": {"cpu": "1"}}}, {"cpu": "1500m"}, "1 Insufficient cpu"),
        ({"status": {"allocatable": {"pods": "0"}}}, {}, "1 Too many pods"),
    ],
    ids=["cordon", "taint", "selector", "cpu", "pods"],
)
def test_the_schedulers_words(world: World, node: Object, spec: Object, words: str) -> None:
    def change(found: Object) -> None:
        for part, values in node.items():
            found.setdefault(part, {}).update(values)

    before = world.store.get("nodes", "", NODE)
    world.store.change("nodes", "", NODE, change)
    spec = dict(spec)
    resources = {"requests": {"cpu": spec.pop("cpu")}} if "cpu" in spec else {}
    world.create(pod("p", shell(FOREVER, resources=resources), **spec))
    assert world.told("p", "FailedScheduling") == f"0/1 nodes are available: {words}.{AFTER}"
    world.store.change("nodes", "", NODE, lambda found: found.update(**without(before)))
    world.running("p")


def without(node: Object) -> Object:
    return {key: value for key, value in node.items() if key != "metadata"} | {
        "metadata": {**node["metadata"], "labels": {}}
    }


def claiming(name: str) -> Object:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    return pod("p", shell("echo 1 > /data/file", volumeMounts=mounts), volumes=volumes)


def test_a_claim_that_is_not_there(make: Callable[..., World]) -> None:
    world = make(claims=["other"])
    world.create(claiming("data"))
    text = world.told("p", "FailedScheduling")
    assert text == f'0/1 nodes are available: persistentvolumeclaim "data" not found.{AFTER}'
    claim = {"metadata": {"name": "data"}, "spec": {}, "status": {"phase": "Pending"}}
    world.store.create("persistentvolumeclaims", "default", claim)
    world.told("p", "FailedScheduling", "pod has unbound immediate PersistentVolumeClaims")
    world.store.change(
        "persistentvolumeclaims",
        "default",
        "data",
        lambda found: found["status"].update(phase="Bound"),
    )
    world.pod("p", "Succeeded")


def test_any_claim_is_a_folder(world: World) -> None:
    world.create(claiming("data"))
    world.pod("p", "Succeeded")
    assert (world.home / "volumes" / "data" / "file").read_text() == "1\n"


# ------------------------------------------------------------------------------ what a pod is given


def test_a_config_map_that_comes_later(world: World) -> None:
    volumes = [
        {"name": "code", "configMap": {"name": "code"}},
        {"name": "key", "secret": {"secretName": "key", "items": [{"key": "a", "path": "b/c"}]}},
    ]
    mounts = [
        {"name": "code", "mountPath": "/code/", "readOnly": True},
        {"name": "key", "mountPath": "/key"},
    ]
    script = "cat /code/main.sh /code/data.bin /key/b/c"
    world.create(pod("p", shell(script, volumeMounts=mounts), volumes=volumes))
    text = world.told("p", "FailedMount")
    assert text == 'MountVolume.SetUp failed for volume "code" : configmap "code" not found'
    waiting = world.until("pods", "p", state)
    assert state(waiting) == {"waiting": {"reason": "ContainerCreating"}}
    config = {"metadata": {"name": "code"}, "data": {"main.sh": "one\n"}}
    config["binaryData"] = {"data.bin": "dHdvCg=="}
    world.store.create("configmaps", "default", config)
    world.told("p", "FailedMount", 'secret "key" not found')
    world.store.create(
        "secrets", "default", {"metadata": {"name": "key"}, "data": {"a": "dGhyZWU="}}
    )
    assert world.log(world.pod("p", "Succeeded")) == "one\ntwo\nthree"


def test_the_environment_of_a_container(world: World) -> None:
    world.store.create("secrets", "default", {"metadata": {"name": "s"}, "data": {"k": "djE="}})
    config = {"metadata": {"name": "c"}, "data": {"k": "v2"}}
    world.store.create("configmaps", "default", config)

    def taken(key: str, **source: Any) -> Object:
        return {"name": key, "valueFrom": source}

    env = [
        {"name": "A", "value": "a b"},
        {"name": "B", "value": "$(A) $$(A) $(NO)"},
        taken("SECRET", secretKeyRef={"name": "s", "key": "k"}),
        taken("CONFIG", configMapKeyRef={"name": "c", "key": "k"}),
        taken("ABSENT", secretKeyRef={"name": "none", "key": "k", "optional": True}),
        taken("POD", fieldRef={"fieldPath": "metadata.name"}),
        taken("LABEL", fieldRef={"fieldPath": "metadata.labels['a.b/c']"}),
        taken("CPU", resourceFieldRef={"resource": "limits.cpu"}),
        {"name": "PET_MASTER_ADDR", "value": "elsewhere"},
        {"name": "A", "value": "again"},
    ]
    more: Object = {"env": env, "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}]}
    made = pod("p", shell("env | sort; echo $(A)", resources={"limits": {"cpu": "1500m"}}, **more))
    made["metadata"]["labels"] = {"a.b/c": "label"}
    world.create(made)
    found = world.pod("p", "Succeeded")
    *lines, last = world.log(found).splitlines()
    said = dict(line.split("=", 1) for line in lines)
    wanted = {
        "A": "again",
        "B": "a b $(A) $(NO)",
        "SECRET": "v1",
        "CONFIG": "v2",
        "P_k": "v2",
        "POD": "p",
        "HOSTNAME": "p",
        "LABEL": "label",
        "CPU": "2",
        "PET_MASTER_ADDR": "127.0.0.1",
    }
    assert {key: said.get(key) for key in wanted} == wanted
    assert last == "again" and "ABSENT" not in said
    assert not {"HOME", "USER", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST"} & said.keys()


def test_a_secret_that_is_not_there_keeps_the_container_from_starting(world: World) -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    world.create(pod("p", shell("true", env=[{"name": "S", "valueFrom": source}])))
    assert world.told("p", "Failed") == 'Error: secret "s" not found'
    world.waiting("p", "CreateContainerConfigError")
    world.store.create("secrets", "default", {"metadata": {"name": "s"}, "data": {}})
    world.told("p", "Failed", "couldn't find key k in Secret default/s")
    world.store.change("secrets", "default", "s", lambda found: found.update(data={"k": "dg=="}))
    world.pod("p", "Succeeded")


def test_paths_are_those_of_this_machine(world: World, tmp_path: Path) -> None:
    volumes = [
        {"name": "here", "hostPath": {"path": str(tmp_path / "new"), "type": "DirectoryOrCreate"}},
        {"name": "work", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "here", "mountPath": "/mnt/data", "subPath": "inner"},
        {"name": "work", "mountPath": "/mnt"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    script = (
        "echo /mnt/data /mnt/database /x/mnt/data /dev/shm; pwd; echo $OUT; "
        "echo 1 > $OUT/file; echo 2 > /mnt/file"
    )
    env = [{"name": "OUT", "value": "/mnt/data"}]
    container = shell(script, env=env, volumeMounts=mounts, workingDir="/mnt")
    found = world.create(pod("p", container, volumes=volumes))
    inner, work = tmp_path / "new" / "inner", world.home / "pods" / found["metadata"]["uid"]
    mnt = work / "volumes" / "work"
    lines = world.log(world.pod("p", "Succeeded")).splitlines()
    assert lines == [f"{inner} {mnt}/database /x/mnt/data /dev/shm", str(mnt), str(inner)]
    assert (inner / "file").read_text() == "1\n" and (mnt / "file").read_text() == "2\n"
    world.store.delete("pods", "default", "p")
    world.create(pod("q", shell("true")))
    world.pod("q", "Succeeded")
    assert not work.exists()  # an emptyDir goes with its pod


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B) $A ${A} $(", "$(B) $A ${A} $("),
        ("$(A)$(A)", "11"),
    ],
)
def test_references_are_filled_in_as_kubernetes_does(text: str, wanted: str) -> None:
    assert expand(text, {"A": "1"}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a", "X"),
        ("--out=/a/b:/a/c/d", "--out=Y:X/c/d"),
        ("/ab /a.b s3://a/a /c/a", "/ab /a.b s3://a/a /c/a"),
        ("'/a' \"/a/b\"", "'X' \"Y\""),
    ],
)
def test_only_whole_paths_are_rewritten(text: str, wanted: str) -> None:
    assert Paths({"/a/": Path("X"), "/a/b": Path("Y")}).here(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("2", 2), ("500m", 0.5), ("1Ki", 1024), ("1.5M", 1.5e6), ("1e3", 1000)]
)
def test_quantities(text: str, wanted: float) -> None:
    assert float(amount(text)) == wanted
    with pytest.raises(ValueError, match="no quantity"):
        amount("much")


# ------------------------------------------------------------------------------- how containers end


def test_exit_codes_and_reasons(world: World) -> None:
    world.create(pod("p", shell("true", "a"), shell("exit 3", "b"), shell("kill -9 $$$$", "c")))
    found = world.pod("p", "Failed")
    ends = [terminated(found, index) for index in range(3)]
    assert [(end["exitCode"], end["reason"]) for end in ends] == [
        (0, "Completed"),
        (3, "Error"),
        (137, "Error"),
    ]
    ready = find(found["status"]["conditions"], "Ready") or {}
    assert (ready["status"], ready["reason"]) == ("False", "PodFailed")


def test_a_kill_from_outside(world: World) -> None:
    world.create(pod("p", shell(FOREVER)))
    world.running("p")
    world.kubelet.kill("default", "p", reason="OOMKilled")
    end = terminated(world.pod("p", "Failed"))
    assert (end["exitCode"], end["reason"]) == (137, "OOMKilled")
    with pytest.raises(ApiError):
        world.kubelet.kill("default", "none")


@pytest.mark.parametrize(
    ("script", "policy", "wanted"),
    [
        ("echo told > /dev/termination-log; echo log; exit 1", "FallbackToLogsOnError", "told\n"),
        ("echo one; echo two; exit 1", "FallbackToLogsOnError", "one\ntwo\n"),
        ("echo log; exit 1", "File", ""),
        ("echo log", "FallbackToLogsOnError", ""),
        ("printf %05000d 0 > /dev/termination-log", "File", "0" * 4096),
        ("seq 100; exit 1", "FallbackToLogsOnError", "".join(f"{n}\n" for n in range(21, 101))),
        ("printf %09000d 0; exit 1", "FallbackToLogsOnError", "0" * 2047 + "\n"),
    ],
    ids=["file", "fallback", "no fallback", "success", "4096 bytes", "80 lines", "2048 bytes"],
)
def test_the_termination_message(world: World, script: str, policy: str, wanted: str) -> None:
    world.create(pod("p", shell(script, terminationMessagePolicy=policy)))
    found = world.until("pods", "p", lambda found: "terminated" in state(found))
    assert terminated(found).get("message", "") == wanted


def test_a_command_that_does_not_exist(world: World) -> None:
    command = {"name": "pytorch", "image": "image:1", "command": ["no-such-program"]}
    world.create(pod("p", command))
    end = terminated(world.pod("p", "Failed"))
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert 'exec: "no-such-program": executable file not found in $PATH' in end["message"]


def test_a_container_without_a_command_says_why_it_waits(world: World) -> None:
    world.create(pod("p", {"name": "pytorch", "image": "image:1"}))
    found = world.waiting("p", "CreateContainerConfigError")
    assert "the container needs a command" in state(found)["waiting"]["message"]


def test_an_image_that_is_not_there(world: World) -> None:
    world.create(pod("p", shell("true") | {"image": "no-such-image:1"}, shell(FOREVER, "b")))
    found = world.waiting("p", "ImagePullBackOff")
    assert state(found)["waiting"]["message"] == 'Back-off pulling image "no-such-image:1"'
    text = world.told("p", "Failed", "Failed to pull")
    assert text.startswith('Failed to pull image "no-such-image:1": ')
    assert "running" in state(world.until("pods", "p", lambda p: "running" in state(p, 1)), 1)
    world.store.delete("pods", "default", "p")
    world.gone("pods", "p")


def test_a_container_that_fails_again_and_again_is_held_back(world: World) -> None:
    world.create(pod("p", shell("exit 1"), restartPolicy="Always"))
    looping = world.waiting("p", "CrashLoopBackOff")
    assert looping["status"]["phase"] == "Running"
    assert looping["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    world.told("p", "BackOff", "Back-off restarting failed container pytorch in pod p_default(")
    assert world.until("pods", "p", lambda p: restarts(p) > 3)


def test_init_containers_come_first(world: World, tmp_path: Path) -> None:
    mark = f"{tmp_path}/order"
    first = shell(f"echo first >> {mark}", "first")
    again = shell(f"{once(tmp_path, 1)}; echo second >> {mark}", "second")
    waits = shell("exit 1", "init-pytorch")
    world.create(
        pod(
            "p",
            shell(f"cat {mark}"),
            initContainers=[first, again, waits],
            restartPolicy="OnFailure",
        )
    )
    found = world.pod("p", "Succeeded")
    assert world.log(found) == "first\nsecond"
    assert [one["restartCount"] for one in found["status"]["initContainerStatuses"]] == [0, 1, 0]
    world.create(pod("q", shell("true"), initContainers=[shell("exit 4", "first")]))
    failed = world.pod("q", "Failed")
    assert state(failed) == {"waiting": {"reason": "PodInitializing"}}


def test_the_log_is_what_the_runtime_writes(world: World) -> None:
    world.create(pod("p", shell("echo one; echo two >&2; printf three")))
    found = world.pod("p", "Succeeded")
    assert world.log(found) == "one\ntwo\nthree"
    lines = log_file(world.home, found, "pytorch", 0).read_text().splitlines()
    stamps = [line.split(" ")[0] for line in lines]
    assert stamps == sorted(stamps)
    assert all(len(one) == 30 and one.endswith("Z") for one in stamps)
    world.create(pod("q", shell("printf %020000d 0; echo")))
    parts = log_file(world.home, world.pod("q", "Succeeded"), "pytorch", 0).read_text()
    assert [line.split(" ")[2] for line in parts.splitlines()] == ["P", "F"]


# ------------------------------------------------------------------------------------ how pods end


def test_a_deleted_pod_may_save(world: World, pipe: Pipe) -> None:
    world.create(pod("p", shell(polite(pipe))))
    pipe.hear()
    seen = world.store.subscribe()
    world.store.delete("pods", "default", "p")
    world.gone("pods", "p")
    last = [obj for kind, what, obj in drained(seen) if what == "pods" and kind == "MODIFIED"][-1]
    assert terminated(last)["exitCode"] == 143
    assert last["status"]["phase"] == "Failed"
    assert ("Killing", "Stopping container pytorch") in world.events("p")


def test_the_grace_period_ends_in_sigkill(world: World, pipe: Pipe) -> None:
    made = world.create(pod("p", shell(stubborn(pipe)), terminationGracePeriodSeconds=1))
    pipe.hear()
    seen = world.store.subscribe()
    world.store.delete("pods", "default", "p")
    world.gone("pods", "p")
    last = [obj for kind, what, obj in drained(seen) if what == "pods" and kind == "MODIFIED"][-1]
    assert terminated(last)["exitCode"] == 137
    assert not (world.home / "pods" / made["metadata"]["uid"]).exists()


def test_a_second_delete_shortens_the_grace_period(world: World, pipe: Pipe) -> None:
    world.create(pod("p", shell(stubborn(pipe)), terminationGracePeriodSeconds=600))
    pipe.hear()
    world.store.delete("pods", "default", "p")
    world.told("p", "Killing")
    world.store.delete("pods", "default", "p", grace=0)
    world.gone("pods", "p")


def test_all_processes_end_with_the_first(world: World, pipe: Pipe) -> None:
    """As in a container, even those with a session of their own, as torchrun's ranks are."""
    held = f"exec 9> {pipe.path}; trap '' TERM; echo up >&9; sleep 600"
    world.create(pod("p", shell(f'setsid sh -c "{held}" & wait')))
    pipe.hear()
    world.kubelet.kill("default", "p", signal.SIGTERM)
    world.pod("p", "Failed")
    assert not pipe.is_held()


def test_a_drained_node_lets_its_pods_save_and_they_are_made_anew(world: World, pipe: Pipe) -> None:
    world.create(pytorchjob("job", polite(pipe)))
    pipe.hear()
    first = world.running("job-master-0")
    seen = world.store.subscribe()
    world.kubelet.drain()
    second = world.until(
        "pods", "job-master-0", lambda p: p["metadata"]["uid"] != first["metadata"]["uid"]
    )
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    old = [
        obj
        for kind, what, obj in drained(seen)
        if kind == "MODIFIED" and obj["metadata"].get("uid") == first["metadata"]["uid"]
    ]
    target = find(old[-1]["status"]["conditions"], "DisruptionTarget") or {}
    assert target["reason"] == "EvictionByEvictionAPI"
    assert terminated(old[-1])["exitCode"] == 143
    assert not holds((world.get(JOBS, "job") or {})["status"], "Failed")


def test_only_the_pods_of_a_node_are_drained(world: World) -> None:
    world.store.create("nodes", "", {"metadata": {"name": "other"}, "status": {}})
    for name in ("a", "b"):
        world.create(pod(name, shell(FOREVER)))
    nodes = {name: world.running(name)["spec"]["nodeName"] for name in ("a", "b")}
    assert {*nodes.values()} == {NODE, "other"}
    gone, stays = sorted(nodes, key=lambda name: nodes[name] != "other")
    world.kubelet.drain("other")
    world.gone("pods", gone)
    assert "running" in state(world.running(stays))


def test_a_pod_that_is_evicted_stays_as_failed_and_is_replaced(world: World) -> None:
    world.create(pod("p", shell(FOREVER)))
    world.running("p")
    world.kubelet.evict("default", "p", "The node was low on resource: memory.")
    status = world.pod("p", "Failed")["status"]
    assert (status["reason"], status["message"]) == (
        "Evicted",
        "The node was low on resource: memory.",
    )
    world.create(pytorchjob("job", FOREVER, policy="OnFailure"))
    first = world.running("job-master-0")
    world.kubelet.evict("default", "job-master-0")
    world.until("pods", "job-master-0", lambda p: p["metadata"]["uid"] != first["metadata"]["uid"])


def test_the_deadline_of_a_pod(world: World) -> None:
    world.create(pod("quick", shell("true"), activeDeadlineSeconds=1))
    world.create(pod("slow", shell(FOREVER), activeDeadlineSeconds=1))
    late = world.pod("slow", "Failed")["status"]
    assert late["reason"] == "DeadlineExceeded"
    assert late["message"] == "Pod was active on the node longer than the specified deadline"
    assert "reason" not in world.pod("quick", "Succeeded")["status"]


# --------------------------------------------------------------------------- when the process ends


def test_a_stop_lets_pods_save_and_the_next_start_goes_on(
    make: Callable[..., World], pipe: Pipe
) -> None:
    before = make()
    before.create(pytorchjob("job", polite(pipe)))
    pipe.hear()
    first = before.running("job-master-0")
    before.controllers.stop()
    pod = before.pod("job-master-0", "Failed")
    assert (pod["status"]["reason"], terminated(pod)["exitCode"]) == ("Terminated", 143)
    before.store.close()
    after = make()
    pipe.hear()
    second = after.running("job-master-0")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]


def test_pods_that_ran_when_the_process_died_are_lost(make: Callable[..., World]) -> None:
    before = make()
    before.create(pod("p", shell(FOREVER)))
    found = before.running("p")
    before.controllers.stop(grace=0)
    as_it_ran = {"status": found["status"]}  # nobody wrote down how it ended
    before.store.change("pods", "default", "p", lambda found: found.update(as_it_ran))
    before.store.close()
    lost = make().pod("p", "Failed")
    assert lost["status"]["reason"] == "NodeLost"
    assert terminated(lost)["reason"] == "ContainerStatusUnknown"


SERVER = """
import sys, threading
from pathlib import Path
from hydra_trainer.embedded.operators import Controllers
from hydra_trainer.embedded.store import Store
store = Store()
store.create("namespaces", "", {"metadata": {"name": "default"}})
container = {"name": "pytorch", "image": "image:1", "command": ["sh", "-c", sys.argv[2]]}
store.create("pods", "default", {"metadata": {"name": "p"}, "spec": {"containers": [container]}})
Controllers(store, Path(sys.argv[1])).start()
threading.Event().wait()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that do not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **more: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(words, **more))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_processes_of_pods_die_with_the_servers(
    tmp_path: Path, pipe: Pipe, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    script = f"exec 9> {pipe.path}; echo up >&9; exec sleep 600"
    server = start(sys.executable, "-c", SERVER, str(tmp_path / "home"), script, cwd=REPOSITORY)
    pipe.hear()
    server.kill()
    assert not pipe.is_held()


def test_a_start_ends_what_an_earlier_process_left(
    make: Callable[..., World], tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    home = tmp_path / "home"
    left = start("sleep", "600", env={MARK: f"{home}|uid|pytorch|"})
    others = start("sleep", "600", env={MARK: f"{home}-other|uid|pytorch|"})
    make()
    assert left.wait(PATIENCE) == -signal.SIGKILL
    assert others.poll() is None
