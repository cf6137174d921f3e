"""The API server of the embedded cluster: what a client of a real one relies on."""

import gzip
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
import yaml

from hydra_trainer import embedded
from hydra_trainer.embedded import Embedded, kubeconfig, protobuf
from hydra_trainer.embedded.faults import Fault
from hydra_trainer.embedded.foreground import leave
from hydra_trainer.embedded.home import START_LOCK, hold
from hydra_trainer.embedded.podlogs import log_file
from hydra_trainer.embedded.store import Store
from hydra_trainer.embedded.tables import CELLS, duration
from hydra_trainer.errors import LaunchError

Object = dict[str, Any]

JOBS = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs"
CONFIGS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"


@dataclass
class Answer:
    code: int
    body: Any
    headers: dict[str, str]

    @property
    def message(self) -> str:
        return str(self.body["message"])


class Client:
    """A bare HTTP client of a cluster, with one connection."""

    def __init__(self, file: Path) -> None:
        entry = kubeconfig.read(file)
        assert entry
        self.url = urlsplit(entry.server)
        self.token = entry.token
        self.connection = self.connect()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=20)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str = "application/json",
        **headers: str,
    ) -> http.client.HTTPResponse:
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        known = {"Content-Type": kind, "Authorization": f"Bearer {self.token}"}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, data, known | more)
        return self.connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        try:
            response = self.send(method, path, body, **headers)
            data = response.read()
        except (http.client.HTTPException, OSError):
            self.connection.close()
            raise
        found = {name.lower(): value for name, value in response.getheaders()}
        if found.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        is_json = found["content-type"].startswith("application/json")
        return Answer(response.status, json.loads(data) if is_json else data.decode(), found)

    def get(self, path: str, **query: str) -> Answer:
        return self.ask("GET", f"{path}?{urlencode(query)}")

    def create(self, path: str, body: Object, **query: str) -> Answer:
        return self.ask("POST", f"{path}?{urlencode(query)}", body)

    def names(self, path: str, **query: str) -> list[str]:
        return [item["metadata"]["name"] for item in self.get(path, **query).body["items"]]

    @contextmanager
    def stream(self, path: str, **query: str) -> Iterator[Iterator[Any]]:
        """The lines of a watch or log, on a connection of its own."""
        other = Client.__new__(Client)
        other.url, other.token = self.url, self.token
        other.connection = self.connect()
        response = other.send("GET", f"{path}?{urlencode(query)}")
        try:
            yield iter(response)
        finally:
            response.close()
            other.connection.close()

    def watch(self, path: str, count: int | None = None, **query: str) -> list[tuple[str, Object]]:
        """The next events, or those until the watch ends."""
        found = []
        with self.stream(path, watch="true", **query) as lines:
            for line in lines:
                event = json.loads(line)
                found.append((event["type"], event["object"]))
                if len(found) == count:
                    break
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A cluster in which nothing happens by itself."""
    with Embedded(tmp_path_factory.mktemp("cluster"), controllers=False) as cluster:
        yield cluster


@pytest.fixture
def cluster(server: Embedded) -> Iterator[Embedded]:
    yield server
    server.faults.clear()
    for kind in (
        "pytorchjobs.kubeflow.org",
        "pods",
        "configmaps",
        "trainjobs.trainer.kubeflow.org",
    ):
        for record in server.store.records(kind)[0]:
            server.store.remove(*record.key)


@pytest.fixture
def client(cluster: Embedded) -> Iterator[Client]:
    client = Client(cluster.kubeconfig)
    yield client
    client.connection.close()


def job(name: str = "a", **spec: Any) -> Object:
    template = {"spec": {"containers": [{"name": "pytorch", "image": "i"}]}}
    roles = {"Master": {"replicas": 1, "template": template}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": roles, **spec},
    }


def config(name: str = "a", labels: Any = None, **data: str) -> Object:
    meta = {"name": name, **({"labels": labels} if labels else {})}
    return {"kind": "ConfigMap", "metadata": meta, "data": data}


def pod(name: str = "a", owners: Any = None, **spec: Any) -> Object:
    containers = [{"name": "main", "image": "i:1"}]
    meta = {"name": name, "ownerReferences": owners or []}
    return {"kind": "Pod", "metadata": meta, "spec": {"containers": containers, **spec}}


def owner(obj: Object) -> Object:
    keys = {key: obj[key] for key in ("apiVersion", "kind")}
    return keys | {key: obj["metadata"][key] for key in ("name", "uid")}


# --------------------------------------------------------------------------------- the real clients


def test_the_official_client_creates_watches_and_deletes(cluster: Embedded) -> None:
    kubernetes = pytest.importorskip("kubernetes")
    kubernetes.config.load_kube_config(str(cluster.kubeconfig), "embedded")
    jobs, core = kubernetes.client.CustomObjectsApi(), kubernetes.client.CoreV1Api()
    place = ("kubeflow.org", "v1", "default", "pytorchjobs")

    made = jobs.create_namespaced_custom_object(*place, job(), field_validation="Strict")
    assert made["metadata"]["generation"] == 1
    with pytest.raises(kubernetes.client.ApiException) as caught:
        jobs.create_namespaced_custom_object(*place, job())
    assert (caught.value.status, json.loads(caught.value.body)["reason"]) == (409, "AlreadyExists")

    core.create_namespaced_config_map("default", config(x="1"))
    assert core.read_namespaced_config_map("a", "default").data == {"x": "1"}
    assert [one.metadata.name for one in core.list_namespaced_config_map("default").items] == ["a"]

    since = jobs.list_namespaced_custom_object(*place)["metadata"]["resourceVersion"]
    patch = {"spec": {"nprocPerNode": "2"}}
    jobs.patch_namespaced_custom_object(*place, "a", patch, _content_type=MERGE)
    jobs.delete_namespaced_custom_object(*place, "a")
    stream = kubernetes.watch.Watch().stream(
        jobs.list_namespaced_custom_object, *place, resource_version=since, timeout_seconds=1
    )
    assert [event["type"] for event in stream] == ["MODIFIED", "DELETED"]


def kubectl(cluster: Embedded, *words: str, stdin: str = "") -> str:
    """What kubectl prints, on both outputs."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "HOME": str(cluster.home)}
    done = subprocess.run(
        ["kubectl", *words],
        input=stdin,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return done.stdout


def test_kubectl_applies_diffs_and_deletes(cluster: Embedded) -> None:
    both = [config(x="1") | {"apiVersion": "v1"}, job()]
    assert kubectl(cluster, "apply", "-f", "-", stdin=yaml.safe_dump_all(both)).splitlines() == [
        "configmap/a created",
        "pytorchjob.kubeflow.org/a created",
    ]
    as_list = {"apiVersion": "v1", "kind": "List", "items": both}  # as a dry run prints them
    assert kubectl(cluster, "apply", "-f", "-", stdin=yaml.safe_dump(as_list)).splitlines() == [
        "configmap/a unchanged",
        "pytorchjob.kubeflow.org/a unchanged",
    ]
    both[1]["spec"]["nprocPerNode"] = "4"
    changed = yaml.safe_dump_all(both)
    assert '+  nprocPerNode: "4"' in kubectl(cluster, "diff", "-f", "-", stdin=changed)
    assert kubectl(cluster, "apply", "-f", "-", stdin=changed).splitlines() == [
        "configmap/a unchanged",
        "pytorchjob.kubeflow.org/a configured",
    ]
    del both[1]["spec"]["nprocPerNode"]  # apply takes away what it set itself
    kubectl(cluster, "apply", "-f", "-", stdin=yaml.safe_dump_all(both))
    assert (
        "nprocPerNode" not in cluster.store.get("pytorchjobs.kubeflow.org", "default", "a")["spec"]
    )
    told = kubectl(cluster, "delete", "-f", "-", stdin=changed)
    assert 'pytorchjob.kubeflow.org "a" deleted' in told
    assert cluster.store.list("configmaps")[0] == []


def test_kubectl_is_told_of_unknown_fields(cluster: Embedded) -> None:
    told = kubectl(cluster, "apply", "-f", "-", stdin=yaml.safe_dump(job(replicaz=1)))
    assert 'strict decoding error: unknown field "spec.replicaz"' in told
    assert cluster.store.list("pytorchjobs.kubeflow.org")[0] == []
    text = yaml.safe_dump(job(replicaz=1, other=2))
    told = kubectl(cluster, "apply", "--validate=warn", "-f", "-", stdin=text)
    assert 'Warning: unknown field "spec.other"\n' in told
    assert 'Warning: unknown field "spec.replicaz"\n' in told


def test_kubectl_cordons_a_node(cluster: Embedded) -> None:
    node = {"metadata": {"name": "n"}, "status": {"nodeInfo": {"kernelVersion": "1"}}}
    cluster.store.create("nodes", "", node)
    assert kubectl(cluster, "cordon", "n") == "node/n cordoned\n"
    assert cluster.store.get("nodes", "", "n")["spec"] == {"unschedulable": True}
    cluster.store.remove("nodes", "", "n")


def test_kubectl_applies_on_the_server(cluster: Embedded) -> None:
    text = yaml.safe_dump(job())
    told = kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=text)
    assert told == "pytorchjob.kubeflow.org/a serverside-applied\n"
    text = yaml.safe_dump(job(nprocPerNode="2"))
    kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=text)
    found = cluster.store.get("pytorchjobs.kubeflow.org", "default", "a")
    assert found["spec"]["nprocPerNode"] == "2"


def test_kubectl_gets_tables_and_describes(cluster: Embedded) -> None:
    made = cluster.store.create("pytorchjobs.kubeflow.org", "default", job())
    states = [{"name": "main", "ready": True, "restartCount": 2, "state": {"running": {}}}]
    running = pod(owners=[owner(made) | {"controller": True}], nodeName="n")
    running["status"] = {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": states}
    found = cluster.store.create("pods", "default", running)
    about = owner(found) | {"namespace": "default"}
    event = {"metadata": {"name": "e"}, "involvedObject": about, "reason": "Odd", "message": "so"}
    cluster.store.create("events", "default", event)

    lines = kubectl(cluster, "get", "pytorchjobs,pods", "-o", "wide").splitlines()
    assert lines[1].split()[0] == "pytorchjob.kubeflow.org/a"
    titles = ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert lines[3].split() == titles
    assert lines[4].split()[:4] == ["pod/a", "1/1", "Running", "2"]
    described = kubectl(cluster, "describe", "pod", "a")
    assert "PyTorchJob/a" in described
    assert "Odd" in described


ENDED = {"terminated": {"exitCode": 0, "reason": "Completed"}}


@pytest.mark.parametrize(
    ("initial", "main", "status", "shown"),
    [
        ([], [], {"phase": "Pending"}, "Pending"),
        ([{"running": {}}], [{"waiting": {"reason": "PodInitializing"}}], {}, "Init:0/2"),
        ([ENDED, {"waiting": {"reason": "ErrImagePull"}}], [], {}, "Init:ErrImagePull"),
        ([ENDED, ENDED], [{"running": {}}], {"phase": "Running"}, "Running"),
        (
            [],
            [{"waiting": {"reason": "CrashLoopBackOff"}}],
            {"phase": "Running"},
            "CrashLoopBackOff",
        ),
        ([], [{"terminated": {"exitCode": 137, "reason": "OOMKilled"}}], {}, "OOMKilled"),
        ([], [{"terminated": {"exitCode": 3}}], {"phase": "Failed"}, "ExitCode:3"),
        ([], [{"terminated": {"exitCode": 137, "signal": 9}}], {"phase": "Failed"}, "Signal:9"),
        ([], [], {"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        ([], [{"running": {}}], {"phase": "Running", "deleted": True}, "Terminating"),
    ],
)
def test_what_a_table_says_of_a_pod(
    initial: list[Object], main: list[Object], status: Object, shown: str
) -> None:
    found = pod(initContainers=[{"name": "i"}] * 2 if initial else [])
    if "deleted" in status:
        found["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    found["status"] = status | {
        "initContainerStatuses": [{"name": "i", "state": state} for state in initial],
        "containerStatuses": [{"name": "main", "state": state} for state in main],
    }
    assert CELLS["pods"](found)["Status"] == shown


def test_kubectl_creates_by_flags_in_protobuf(cluster: Embedded) -> None:
    kubectl(cluster, "create", "configmap", "c", "--from-literal=x=1")
    assert cluster.store.get("configmaps", "default", "c")["data"] == {"x": "1"}
    kubectl(cluster, "create", "secret", "generic", "s", "--from-literal=x=1")
    assert cluster.store.get("secrets", "default", "s")["data"] == {"x": "MQ=="}
    assert kubectl(cluster, "auth", "can-i", "list", "secrets").endswith("no\n")
    assert kubectl(cluster, "auth", "can-i", "get", "secrets") == "yes\n"


@pytest.mark.parametrize("body", [b"", b"k8s", b"k8s\0\x0a\x7f", b"k8s\0\x0b", b"k8s\0\xff\xff"])
def test_what_is_no_protobuf_is_refused(client: Client, body: bytes) -> None:
    assert client.ask("POST", CONFIGS, body, kind=protobuf.MEDIA_TYPE).code == 400


# ---------------------------------------------------------------------------------------- discovery


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"]
)
def test_it_says_which_groups_it_has(client: Client, accept: str) -> None:
    body = client.ask("GET", "/apis", Accept=accept).body
    names = [
        one.get("name") or one["metadata"]["name"] for one in body.get("groups") or body["items"]
    ]
    assert {"kubeflow.org", "trainer.kubeflow.org", "batch", "kueue.x-k8s.io"} <= set(names)


def test_it_says_which_resources_a_group_has(client: Client) -> None:
    found = client.get("/apis/kubeflow.org/v1").body["resources"]
    assert [one["name"] for one in found] == ["pytorchjobs", "pytorchjobs/status"]
    assert {"create", "watch", "patch"} <= set(found[0]["verbs"])
    core = {one["name"]: one for one in client.get("/api/v1").body["resources"]}
    assert core["pods/log"]["verbs"] == ["get"]
    assert core["pods"]["shortNames"] == ["po"]


def test_a_group_that_nobody_installed_is_not_there(tmp_path: Path) -> None:
    absent = frozenset({"kubeflow.org"})
    with Embedded(tmp_path, controllers=False, absent=absent) as cluster:
        client = Client(cluster.kubeconfig)
        assert client.get(JOBS).code == 404
        assert client.get("/apis/kubeflow.org/v1").code == 404
        crds = client.names("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
        assert "pytorchjobs.kubeflow.org" not in crds
        assert "trainjobs.trainer.kubeflow.org" in crds


# ------------------------------------------------------------------------------------------ objects


def test_an_object_gets_what_only_the_server_writes(client: Client) -> None:
    forged = job() | {"status": {"conditions": []}}
    forged["metadata"] |= {"uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z"}
    made = client.create(JOBS, forged)
    assert made.code == 201
    meta = made.body["metadata"]
    assert len(meta["uid"]) == 36
    assert meta["creationTimestamp"] > "2026"
    assert "status" not in made.body
    assert client.get(f"{JOBS}/a").body == made.body


def test_lists_of_built_in_kinds_have_no_kind_in_their_items(client: Client) -> None:
    client.create(CONFIGS, config())
    client.create(JOBS, job())
    assert "kind" not in client.get(CONFIGS).body["items"][0]
    assert client.get(JOBS).body["items"][0]["kind"] == "PyTorchJob"


def test_the_version_guards_against_lost_changes(client: Client) -> None:
    first = client.create(CONFIGS, config(x="1")).body
    second = client.ask("PUT", f"{CONFIGS}/a", first | {"data": {"x": "2"}}).body
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    stale = client.ask("PUT", f"{CONFIGS}/a", first | {"data": {"x": "3"}})
    assert (stale.code, stale.body["reason"]) == (409, "Conflict")
    assert stale.message == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please '
        "apply your changes to the latest version and try again"
    )
    same = client.ask("PUT", f"{CONFIGS}/a", second)
    assert same.body == second  # nothing changed: no new version


def test_status_and_spec_are_written_apart(client: Client) -> None:
    made = client.create(JOBS, job()).body
    changed = job(nprocPerNode="2") | {"status": {"conditions": [{"type": "Running"}]}}
    refused = client.ask("PUT", f"{JOBS}/a", changed)
    assert "metadata.resourceVersion: Invalid value: 0: must be specified" in refused.message
    changed["metadata"] = made["metadata"]
    after = client.ask("PUT", f"{JOBS}/a", changed).body
    assert (after["spec"]["nprocPerNode"], "status" in after) == ("2", False)
    assert after["metadata"]["generation"] == 2
    patch = {"spec": {"nprocPerNode": "9"}, "status": {"conditions": [{"type": "Running"}]}}
    after = client.ask("PATCH", f"{JOBS}/a/status", patch, kind=MERGE).body
    assert (after["spec"]["nprocPerNode"], len(after["status"]["conditions"])) == ("2", 1)
    assert after["metadata"]["generation"] == 2


def test_a_dry_run_leaves_nothing(client: Client) -> None:
    tried = client.create(JOBS, job(), dryRun="All")
    assert (tried.code, tried.body["metadata"]["name"]) == (201, "a")
    assert client.names(JOBS) == []
    client.create(JOBS, job())
    assert client.create(JOBS, job(), dryRun="All").code == 409
    patch = {"spec": {"nprocPerNode": "2"}}
    tried = client.ask("PATCH", f"{JOBS}/a?dryRun=All", patch, kind=MERGE)
    assert tried.body["spec"]["nprocPerNode"] == "2"
    client.ask("DELETE", f"{JOBS}/a?dryRun=All")
    assert "nprocPerNode" not in client.get(f"{JOBS}/a").body["spec"]


@pytest.mark.parametrize(
    ("kind", "patch", "expected"),
    [
        (MERGE, {"data": {"x": None, "y": "2"}}, {"data": {"y": "2"}}),
        (STRATEGIC, {"data": {"y": "2"}}, {"data": {"x": "1", "y": "2"}}),
        (STRATEGIC, {"data": {"$patch": "replace", "y": "2"}}, {"data": {"y": "2"}}),
        (JSON_PATCH, [{"op": "add", "path": "/data/a~1b", "value": "c"}], 422),
        (JSON_PATCH, [{"op": "replace", "path": "/data/x", "value": "2"}], {"data": {"x": "2"}}),
        (JSON_PATCH, [{"op": "move", "from": "/data/x", "path": "/data/z"}], {"data": {"z": "1"}}),
        (JSON_PATCH, [{"op": "test", "path": "/data/x", "value": "9"}], 422),
        (JSON_PATCH, [{"op": "remove", "path": "/data/none"}], 422),
        (JSON_PATCH, {"op": "remove"}, 400),
        (MERGE, [], 400),
        ("text/plain", {}, 415),
    ],
)
def test_patches(client: Client, kind: str, patch: Any, expected: Any) -> None:
    client.create(CONFIGS, config(x="1"))
    done = client.ask("PATCH", f"{CONFIGS}/a", patch, kind=kind)
    if isinstance(expected, int):
        assert done.code == expected
        assert client.get(f"{CONFIGS}/a").body["data"] == {"x": "1"}
    else:
        assert done.body["data"] == expected["data"]


def test_strategic_patches_merge_owners_by_uid_and_take_away(client: Client) -> None:
    first, second = (client.create(JOBS, job(name)).body for name in "ab")
    client.create(CONFIGS, config())
    for one in (first, second, first):
        patch = {"metadata": {"ownerReferences": [owner(one)]}}
        after = client.ask("PATCH", f"{CONFIGS}/a", patch, kind=STRATEGIC).body
    owners = after["metadata"]["ownerReferences"]
    assert [one["name"] for one in owners] == ["a", "b"]
    gone = {"$patch": "delete", "uid": first["metadata"]["uid"]}
    patch = {"metadata": {"ownerReferences": [gone]}}
    after = client.ask("PATCH", f"{CONFIGS}/a", patch, kind=STRATEGIC).body
    assert [one["name"] for one in after["metadata"]["ownerReferences"]] == ["b"]
    refused = client.ask("PATCH", f"{JOBS}/a", {}, kind=STRATEGIC)
    assert refused.code == 415  # custom kinds know none


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        (CONFIGS, config("A_b"), 422, 'ConfigMap "A_b" is invalid: metadata.name: Invalid value'),
        (CONFIGS, config(""), 422, "metadata.name: Required value: name or generateName"),
        (CONFIGS, config("a" * 254), 422, "must be no more than 253 characters"),
        (CONFIGS, config(labels={"a": "b c"}), 422, "a valid label must be an empty string or"),
        (CONFIGS, config(labels={"a": 1}), 400, "cannot unmarshal Go struct field ConfigMap"),
        (CONFIGS, config(**{"a/b": "c"}), 422, "a valid config key must consist of"),
        (
            CONFIGS,
            config(x="y" * (1 << 20) + "y"),
            422,
            "Too long: may not be more than 1048576 bytes",
        ),
        (CONFIGS, config() | {"binaryData": {"x": "?"}}, 400, "illegal base64 data"),
        (CONFIGS, config() | {"kind": "Secret"}, 400, "cannot be handled as a ConfigMap"),
        (CONFIGS, {"metadata": {"name": "a", "namespace": "b"}}, 400, "does not match the names"),
        (CONFIGS, {"metadata": {"name": "a", "ownerReferences": [{}]}}, 400, "ownerReferences"),
        (CONFIGS, "{", 400, "cannot be decoded"),
        (CONFIGS, '{"data": NaN}', 400, "cannot be decoded"),
        (CONFIGS, "[]", 400, "unrecognized"),
        (CONFIGS.replace("default", "x"), config(), 404, 'namespaces "x" not found'),
        (JOBS, job("a" * 60 + ".b", spec=1) | {"spec": 1}, 400, "cannot unmarshal"),
        ("/apis/nobody.org/v1/things", {}, 404, "404 page not found"),
        (f"{CONFIGS}/a", config(), 405, "does not allow this method"),
    ],
)
def test_refusals(client: Client, path: str, body: Any, code: int, words: str) -> None:
    answer = client.ask("POST", path, body)
    assert answer.code == code
    assert words in (answer.body if isinstance(answer.body, str) else answer.message)
    if code != 404 or isinstance(answer.body, dict):
        assert answer.body["code"] == code
        assert answer.body["kind"] == "Status"


def test_a_form_is_no_object(client: Client) -> None:
    """Which is what curl -d says that it sends."""
    answer = client.ask("POST", CONFIGS, "{}", kind="application/x-www-form-urlencoded")
    assert (answer.code, answer.body["reason"]) == (415, "UnsupportedMediaType")


def test_refusals_say_what_they_are_about(client: Client) -> None:
    missing = client.get(f"{JOBS}/none").body
    assert missing["message"] == 'pytorchjobs.kubeflow.org "none" not found'
    assert missing["details"] == {"name": "none", "group": "kubeflow.org", "kind": "pytorchjobs"}
    invalid = client.create(CONFIGS, config("A")).body["details"]
    assert (invalid["kind"], invalid["causes"][0]["field"]) == ("ConfigMap", "metadata.name")


def test_immutable_config_cannot_be_changed(client: Client) -> None:
    client.create(CONFIGS, config(x="1") | {"immutable": True})
    answer = client.ask("PATCH", f"{CONFIGS}/a", {"data": {"x": "2"}}, kind=MERGE)
    assert (answer.code, "field is immutable when" in answer.message) == (422, True)
    assert (
        client.ask("PATCH", f"{CONFIGS}/a", {"metadata": {"labels": {"a": "b"}}}, kind=MERGE).code
        == 200
    )


def test_the_spec_of_a_pod_cannot_be_changed(client: Client) -> None:
    client.create(PODS, pod())
    answer = client.ask("PATCH", f"{PODS}/a", {"spec": {"nodeName": "n"}}, kind=MERGE)
    assert "pod updates may not change fields other than" in answer.message


def test_a_job_needs_its_runtime(client: Client) -> None:
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/"
    wanted = {"kind": "TrainingRuntime", "name": "r"}
    train = {"metadata": {"name": "a"}, "spec": {"runtimeRef": wanted}}
    refused = client.create(path + "trainjobs", train)
    assert refused.code == 403
    assert refused.message.startswith(
        'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.runti'
    )


def test_unknown_fields_are_refused_or_taken_away(client: Client) -> None:
    odd = job(replicaz=1)
    odd["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["hostnme"] = "x"
    strict = client.create(JOBS, odd, fieldValidation="Strict")
    assert (strict.code, strict.body["reason"]) == (400, "BadRequest")
    assert strict.message == (
        'PyTorchJob in version "v1" cannot be handled as a PyTorchJob: strict decoding error: '
        'unknown field "spec.pytorchReplicaSpecs.Master.template.spec.hostnme", '
        'unknown field "spec.replicaz"'
    )
    made = client.create(JOBS, odd)
    assert made.body["spec"] == job()["spec"]
    warnings = made.headers["warning"].split(", ")
    assert warnings[1] == r'299 - "unknown field \"spec.replicaz\""'
    patch = {"spec": {"replicaz": 1}}
    path = f"{JOBS}/a?fieldValidation="
    assert client.ask("PATCH", f"{path}Strict", patch, kind=MERGE).code == 400
    ignored = client.ask("PATCH", f"{path}Ignore", patch, kind=MERGE)
    assert (ignored.body, "warning" in ignored.headers) == (made.body, False)


def test_wrong_types(client: Client) -> None:
    answer = client.create(JOBS, job(nprocPerNode=8))
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    assert answer.message.startswith(
        'PyTorchJob.kubeflow.org "a" is invalid: spec.nprocPerNode: Invalid value: 8: must be a s'
    )
    answer = client.create(PODS, pod(hostNetwork="yes"))
    assert (answer.code, answer.body["reason"]) == (400, "BadRequest")
    assert answer.message.startswith('Pod in version "v1" cannot be handled as a Pod: json: spec')


def test_the_webhook_of_the_operator_denies(client: Client) -> None:
    odd = job()
    roles = odd["spec"]["pytorchReplicaSpecs"]
    roles["Master"]["replicas"] = 2
    answer = client.create(JOBS, odd, dryRun="All")
    assert (answer.code, answer.body["reason"]) == (403, "Forbidden")
    assert answer.message.startswith(
        'admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied the '
        "request: spec.pytorchReplicaSpecs[Master].replicas: "
    )


def test_the_number_of_workers_is_checked_for_scale_first(client: Client) -> None:
    odd = job()
    roles = odd["spec"]["pytorchReplicaSpecs"]
    roles["Worker"] = {**roles["Master"], "replicas": -1}
    answer = client.create(JOBS, odd)
    assert (answer.code, answer.message) == (
        422,
        'PyTorchJob.kubeflow.org "a" is invalid: .spec.pytorchReplicaSpecs.Worker.replicas: '
        "Invalid value: -1: should be a non-negative integer",
    )
    roles["Worker"]["replicas"] = 0
    assert client.create(JOBS, odd).code == 403


def test_the_webhook_of_the_operator_warns(client: Client) -> None:
    elastic = job(elasticPolicy={"nProcPerNode": 2})
    roles = elastic["spec"]["pytorchReplicaSpecs"]
    roles["Worker"] = roles.pop("Master")
    assert client.create(JOBS, elastic).headers["warning"] == (
        '299 - "spec.elasticPolicy.nProcPerNode is deprecated, use spec.nprocPerNode instead"'
    )


TRAIN = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/"


@pytest.fixture
def runtime(client: Client, cluster: Embedded) -> Iterator[str]:
    containers = {"containers": [{"name": "node", "image": "i"}]}
    node = {"name": "node", "template": {"spec": {"template": {"spec": containers}}}}
    spec = {"template": {"spec": {"replicatedJobs": [node]}}}
    client.create(TRAIN + "trainingruntimes", {"metadata": {"name": "r"}, "spec": spec})
    yield "r"
    cluster.store.remove("trainingruntimes.trainer.kubeflow.org", "default", "r")


def train(name: str = "a", **spec: Any) -> Object:
    reference = {"kind": "TrainingRuntime", "name": "r"}
    return {"metadata": {"name": name}, "spec": {"runtimeRef": reference, **spec}}


def patch_of(job: str, container: str, **pod: Any) -> list[Object]:
    """Return the runtimePatches for a container of a replicated job."""
    spec = {"containers": [{"name": container}], **pod}
    inner = {"name": job, "template": {"spec": {"template": {"spec": spec}}}}
    runtime = {"template": {"spec": {"replicatedJobs": [inner]}}}
    return [{"manager": "a.io/b", "trainingRuntimeSpec": runtime}]


INVALID = 'TrainJob.trainer.kubeflow.org "{}" is invalid: '
DENIED = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '


@pytest.mark.parametrize(
    ("body", "code", "head", "words"),
    [
        (train("1a"), 422, INVALID.format("1a") + "<nil>: Invalid value: ", "must match RFC 1035"),
        (train("a" * 64), 422, "", "<nil>: Invalid value: metadata.name must be no more than 63"),
        (train(managedBy="me"), 422, INVALID.format("a"), 'spec.managedBy: Invalid value: "me": M'),
        (train(activeDeadlineSeconds=0), 422, INVALID.format("a"), "spec.activeDeadlineSeconds"),
        (train(initializer={"model": {"storageUri": "x"}}), 422, "", "it must be a valid URI"),
        (train(trainer={"env": [{"name": "PET_NNODES"}]}), 403, DENIED, "must not have reserved"),
        (train(initializer={"dataset": {}}), 403, DENIED, "must have dataset-initializer job when"),
        (
            train(runtimePatches=patch_of("other", "node")),
            403,
            DENIED,
            "must not have replicated job that doesn't exist in the runtime job template",
        ),
        (
            train(runtimePatches=patch_of("node", "other")),
            403,
            DENIED + "spec.runtimePatches: Invalid value: ",
            "must not have container that doesn't exist in the runtime job node",
        ),
        (train(trainer={"numNodes": 0}), 201, "", ""),
    ],
)
def test_what_a_trainjob_may_be(
    client: Client, runtime: str, body: Object, code: int, head: str, words: str
) -> None:
    answer = client.create(TRAIN + "trainjobs", body, dryRun="All")
    assert answer.code == code
    if code != 201:
        assert answer.message.startswith(head)
        assert words in answer.message


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"activeDeadlineSeconds": 5}, 422, "Invalid value: 5: field is immutable"),
        ({"runtimeRef": {"name": "other"}}, 422, "spec.runtimeRef: Invalid value: field is immut"),
        ({"trainer": {"numNodes": 2}}, 200, ""),  # there was none: nothing to compare it with
        (
            {"runtimePatches": patch_of("node", "node")},
            403,
            "spec.runtimePatches: Forbidden: RuntimePatches can only be modified when the TrainJob "
            "is suspended before or after the update",
        ),
        ({"runtimePatches": patch_of("node", "node"), "suspend": True}, 200, ""),
    ],
)
def test_what_of_a_trainjob_may_be_changed(
    client: Client, runtime: str, spec: Object, code: int, words: str
) -> None:
    client.create(TRAIN + "trainjobs", train(activeDeadlineSeconds=9))
    answer = client.ask("PATCH", TRAIN + "trainjobs/a?dryRun=All", {"spec": spec}, kind=MERGE)
    assert answer.code == code
    assert words in str(answer.body.get("message", ""))


def test_the_pods_of_a_trainjob_are_not_changed_while_there_are_some(
    client: Client, runtime: str, cluster: Embedded
) -> None:
    client.create(TRAIN + "trainjobs", train(suspend=True))
    active = {"name": "node", "ready": 0, "succeeded": 0, "failed": 0, "active": 1, "suspended": 0}
    jobset = {"metadata": {"name": "a"}, "status": {"replicatedJobsStatus": [active]}}
    cluster.store.create("jobsets.jobset.x-k8s.io", "default", jobset)
    patch = {"spec": {"runtimePatches": patch_of("node", "node")}}
    answer = client.ask("PATCH", TRAIN + "trainjobs/a", patch, kind=MERGE)
    cluster.store.remove("jobsets.jobset.x-k8s.io", "default", "a")
    assert "JobSet's ReplicatedJob node is still active" in answer.message


def test_defaults_are_filled_in_again(client: Client, runtime: str) -> None:
    """So that who writes the same object twice changes nothing."""
    client.create(TRAIN + "trainjobs", train())
    again = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", **train()}
    first = client.get(TRAIN + "trainjobs/a").body
    again["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    second = client.ask("PUT", TRAIN + "trainjobs/a", again)
    assert (second.code, second.body) == (200, first)


def test_ports_are_of_tcp(client: Client) -> None:
    given = job()
    container = given["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"containerPort": 1}]
    spec = client.create(JOBS, given).body["spec"]["pytorchReplicaSpecs"]["Master"]
    ports = spec["template"]["spec"]["containers"][0]["ports"]
    assert ports == [{"containerPort": 1, "protocol": "TCP"}]


def test_the_queue_of_a_gang_scheduler_stays(client: Client) -> None:
    client.create(JOBS, job(runPolicy={"schedulingPolicy": {"queue": "a"}}))
    patch = {"spec": {"runPolicy": {"schedulingPolicy": {"queue": "b"}}}}
    answer = client.ask("PATCH", f"{JOBS}/a", patch, kind=MERGE)
    path = "spec.runPolicy.schedulingPolicy.queue"
    assert answer.code == 422
    assert answer.message.endswith(f'{path}: Invalid value: "b": {path} is immutable')


# --------------------------------------------------------------------------------- lists and pages


def test_selectors(client: Client) -> None:
    for name, labels in {"a": {"x": "1", "y": ""}, "b": {"x": "2"}, "c": None}.items():
        client.create(CONFIGS, config(name, labels))
    expected = {
        "x=1": "a",
        "x==2": "b",
        "x!=1": "bc",
        "x in (1, 2)": "ab",
        "x notin (1)": "bc",
        "x": "ab",
        "!x": "c",
        "x,!y": "b",
        "y=": "a",
    }
    found = {one: "".join(client.names(CONFIGS, labelSelector=one)) for one in expected}
    assert found == expected
    assert client.names(CONFIGS, fieldSelector="metadata.name!=b") == ["a", "c"]
    assert client.get(CONFIGS, labelSelector="x in 1").code == 400
    refused = client.get(CONFIGS, fieldSelector="data.x=1", watch="true")
    assert (refused.code, refused.message) == (400, "field label not supported: data.x")


def test_pods_are_selected_by_phase(client: Client, cluster: Embedded) -> None:
    for name in "ab":
        client.create(PODS, pod(name))
    cluster.store.change("pods", "default", "a", lambda it: it["status"].update(phase="Running"))
    assert client.names(PODS, fieldSelector="status.phase=Running") == ["a"]


def test_pages_are_of_one_moment(client: Client) -> None:
    for number in range(5):
        client.create(CONFIGS, config(f"c{number}"))
    first = client.get(CONFIGS, limit="2").body
    assert first["metadata"]["remainingItemCount"] == 3
    client.ask("DELETE", f"{CONFIGS}/c3")
    client.create(CONFIGS, config("c9"))
    second = client.get(CONFIGS, limit="2", **{"continue": first["metadata"]["continue"]}).body
    rest = client.get(CONFIGS, **{"continue": second["metadata"]["continue"]}).body
    names = [one["metadata"]["name"] for page in (first, second, rest) for one in page["items"]]
    assert names == ["c0", "c1", "c2", "c3", "c4"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in rest["metadata"]
    assert client.get(CONFIGS, **{"continue": "x"}).code == 410


def test_long_lists_are_compressed(client: Client) -> None:
    client.create(CONFIGS, config(x="y" * 200_000))
    answer = client.ask("GET", CONFIGS, Accept_Encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body["items"]) == 1


# ------------------------------------------------------------------------------------------ watches


def test_a_watch_goes_on_from_a_version(client: Client) -> None:
    since = client.create(CONFIGS, config()).body["metadata"]["resourceVersion"]
    client.ask("PATCH", f"{CONFIGS}/a", {"data": {"x": "1"}}, kind=MERGE)
    client.create(JOBS, job())  # of another kind
    client.ask("DELETE", f"{CONFIGS}/a")
    events = client.watch(CONFIGS, 2, resourceVersion=since)
    assert [kind for kind, _ in events] == ["MODIFIED", "DELETED"]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
    assert sorted(versions) == versions
    assert versions[0] > int(since)
    assert events[1][1]["data"] == {"x": "1"}


def test_a_watch_without_a_version_begins_with_what_is_there(client: Client) -> None:
    client.create(CONFIGS, config())
    assert client.watch(CONFIGS, 1)[0][0] == "ADDED"
    events = client.watch(CONFIGS, 2, sendInitialEvents="true", allowWatchBookmarks="true")
    assert events[1][1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_watch_ends_in_time_with_a_bookmark(client: Client) -> None:
    version = client.create(JOBS, job()).body["metadata"]["resourceVersion"]
    query: dict[str, Any] = {"timeoutSeconds": "1", "allowWatchBookmarks": "true"}
    events = client.watch(CONFIGS, resourceVersion=version, **query)
    assert [(kind, obj["metadata"]["resourceVersion"]) for kind, obj in events] == [
        ("BOOKMARK", version)
    ]


def test_selectors_of_a_watch_make_objects_come_and_go(client: Client) -> None:
    since = client.create(CONFIGS, config("other")).body["metadata"]["resourceVersion"]
    client.create(CONFIGS, config())
    for value in ("1", "1", None):
        patch = {"metadata": {"labels": {"x": value}}, "data": {"n": os.urandom(4).hex()}}
        client.ask("PATCH", f"{CONFIGS}/a", patch, kind=MERGE)
    events = client.watch(CONFIGS, 3, resourceVersion=since, labelSelector="x=1")
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_watch_from_forgotten_history_gets_410(client: Client, cluster: Embedded) -> None:
    since = client.create(CONFIGS, config()).body["metadata"]["resourceVersion"]
    client.ask("DELETE", f"{CONFIGS}/a")
    cluster.store.compact()
    ((kind, status),) = client.watch(CONFIGS, resourceVersion=since)
    assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
    assert status["message"].startswith(f"too old resource version: {since} ")


def test_no_change_is_lost_or_told_twice_while_a_watch_begins(cluster: Embedded) -> None:
    """Watches that begin at any moment of a stream of changes see all that follow, in order."""
    store = cluster.store
    first = store.create("configmaps", "default", config())["metadata"]["resourceVersion"]

    def change(number: int) -> None:
        store.change("configmaps", "default", "a", lambda it: it.update(data={"n": str(number)}))

    def see(_: int) -> list[int]:
        found = []
        for kind, text, version in store.watch("configmaps", "default", first):
            assert kind == "MODIFIED"
            found.append(version)
            if json.loads(text)["data"]["n"] == "199":
                break
        return found

    with ThreadPoolExecutor(6) as pool:
        seen = pool.map(see, range(5))
        for number in range(200):
            change(number)
        histories = list(seen)
    assert histories == [histories[0]] * 5
    assert len(histories[0]) == 200
    assert sorted(set(histories[0])) == histories[0]


# ----------------------------------------------------------------------------- owners and deletion


def test_what_is_owned_goes_with_its_last_owner(client: Client) -> None:
    first, second = (client.create(JOBS, job(name)).body for name in "ab")
    shared = config("shared")
    shared["metadata"]["ownerReferences"] = [owner(first), owner(second)]
    client.create(CONFIGS, shared)
    gone = client.ask("DELETE", f"{JOBS}/a").body
    assert (gone["status"], gone["details"]["uid"]) == ("Success", first["metadata"]["uid"])
    (left,) = client.get(f"{CONFIGS}/shared").body["metadata"]["ownerReferences"]
    assert left["name"] == "b"
    client.ask("DELETE", f"{JOBS}/b")
    assert client.get(f"{CONFIGS}/shared").code == 404
    client.create(CONFIGS, shared)  # whose owners are gone already
    assert client.get(f"{CONFIGS}/shared").code == 404


def test_a_pod_on_a_node_stays_until_the_kubelet_is_done(client: Client, cluster: Embedded) -> None:
    made = client.create(JOBS, job()).body
    client.create(PODS, pod("queued", [owner(made)]))
    client.create(
        PODS, pod("running", [owner(made)], nodeName="n", terminationGracePeriodSeconds=9)
    )
    client.ask("DELETE", f"{JOBS}/a")
    assert client.names(PODS) == ["running"]
    assert client.get(f"{PODS}/running").body["metadata"]["deletionGracePeriodSeconds"] == 9
    cluster.store.remove("pods", "default", "running")
    assert client.names(PODS) == []
    client.create(PODS, pod("running", nodeName="n"))
    client.ask("DELETE", f"{PODS}/running", {"gracePeriodSeconds": 0})
    assert client.names(PODS) == []


def test_foreground_waits_for_what_is_owned_and_orphan_leaves_it(
    client: Client, cluster: Embedded
) -> None:
    made = client.create(JOBS, job()).body
    client.create(PODS, pod("a", [owner(made)], nodeName="n"))
    client.ask("DELETE", f"{JOBS}/a", {"propagationPolicy": "Foreground"})
    assert client.get(f"{JOBS}/a").body["metadata"]["finalizers"] == ["foregroundDeletion"]
    cluster.store.remove("pods", "default", "a")
    assert client.get(f"{JOBS}/a").code == 404

    made = client.create(JOBS, job()).body
    client.create(PODS, pod("a", [owner(made)]))
    client.ask("DELETE", f"{JOBS}/a?propagationPolicy=Orphan")
    assert client.get(f"{PODS}/a").body["metadata"]["ownerReferences"] == []


def test_finalizers_hold_an_object(client: Client) -> None:
    held = config()
    held["metadata"]["finalizers"] = ["x.org/hold"]
    client.create(CONFIGS, held)
    assert "deletionTimestamp" in client.ask("DELETE", f"{CONFIGS}/a").body["metadata"]
    client.ask("PATCH", f"{CONFIGS}/a", {"metadata": {"finalizers": None}}, kind=MERGE)
    assert client.get(f"{CONFIGS}/a").code == 404


def test_a_delete_is_of_the_object_that_was_meant(client: Client) -> None:
    client.create(JOBS, job())
    other = {"preconditions": {"uid": "another"}}
    assert client.ask("DELETE", f"{JOBS}/a", other).code == 409
    assert client.names(JOBS) == ["a"]


def test_a_namespace_takes_its_content_along(client: Client, cluster: Embedded) -> None:
    client.create("/api/v1/namespaces", {"metadata": {"name": "n"}})
    inside = "/api/v1/namespaces/n"
    client.create(f"{inside}/configmaps", config())
    client.create(f"{inside}/pods", pod(nodeName="n"))
    assert client.ask("DELETE", inside).body["status"]["phase"] == "Terminating"
    refused = client.create(f"{inside}/configmaps", config("b"))
    assert (refused.code, "is being terminated" in refused.message) == (403, True)
    cluster.store.remove("pods", "n", "a")
    assert client.get(inside).code == 404


def test_a_collection_is_deleted_by_selector(client: Client) -> None:
    for name in "abc":
        client.create(CONFIGS, config(name, {"x": name}))
    client.ask("DELETE", f"{CONFIGS}?labelSelector={quote('x!=b')}")
    assert client.names(CONFIGS) == ["b"]


# ------------------------------------------------------------------------------------ who may what


def test_nobody_looks_through_secrets(client: Client) -> None:
    path = "/api/v1/namespaces/default/secrets"
    client.create(path, {"metadata": {"name": "k"}, "data": {"x": "MQ=="}})
    assert client.get(f"{path}/k").body["type"] == "Opaque"
    for query in ({}, {"watch": "true"}):
        assert client.get(path, **query).code == 403


@pytest.mark.parametrize(
    ("token", "code", "words"),
    [("wrong", 401, "Unauthorized"), (None, 403, 'User "system:anonymous" cannot list resource')],
)
def test_who_gives_no_good_token_is_refused(
    client: Client, token: str | None, code: int, words: str
) -> None:
    client.connection.request(
        "GET", PODS, headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    response = client.connection.getresponse()
    assert response.status == code
    assert words in json.load(response)["message"]


def test_kubectl_is_known_by_the_url_and_health_is_open(client: Client) -> None:
    client.connection.request("GET", f"/as/{client.token}{PODS}")
    response = client.connection.getresponse()
    assert (response.status, response.read()[:8]) == (200, b'{"kind":')
    client.connection.request("GET", "/readyz")
    assert client.connection.getresponse().read() == b"ok"


RULES: list[Object] = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["c"], "verbs": ["get"]},
    {"apiGroups": ["kubeflow.org"], "resources": ["*"], "verbs": ["create"]},
]


@pytest.fixture(scope="module")
def limited(server: Embedded) -> Client:
    """A user who has a Role in the default namespace, through a group."""
    rbac = "rbac.authorization.k8s.io"
    role = {"metadata": {"name": "r"}, "rules": RULES}
    server.store.create(f"roles.{rbac}", "default", role)
    subjects = [{"kind": "Group", "apiGroup": rbac, "name": "team"}]
    reference = {"kind": "Role", "name": "r", "apiGroup": rbac}
    binding = {"metadata": {"name": "b"}, "subjects": subjects, "roleRef": reference}
    server.store.create(f"rolebindings.{rbac}", "default", binding)
    return Client(server.kubeconfig_of("jane", "team"))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PODS, True),
        ("GET", f"{PODS}?watch=true&timeoutSeconds=1&resourceVersion=0", False),
        ("GET", f"{PODS}/a", True),
        ("GET", f"{PODS}/a/log", False),
        ("GET", "/api/v1/pods", False),
        ("GET", PODS.replace("default", "kube-system"), False),
        ("DELETE", f"{PODS}/a", False),
        ("GET", f"{CONFIGS}/c", True),
        ("GET", f"{CONFIGS}/d", False),
        ("POST", JOBS, True),
        ("GET", JOBS, False),
        ("GET", "/apis", True),
        ("GET", "/embedded/faults", False),
    ],
)
def test_a_role_gives_what_it_says(
    cluster: Embedded, limited: Client, method: str, path: str, allowed: bool
) -> None:
    answer = limited.ask(method, path, job() if method == "POST" else None)
    assert (answer.code != 403) is allowed


def test_a_refusal_names_the_right_that_is_missing(limited: Client) -> None:
    assert limited.ask("GET", f"{PODS}/a/log").message == (
        'pods "a" is forbidden: User "jane" cannot get resource "pods/log" in API group "" in the '
        'namespace "default"'
    )
    assert limited.ask("GET", "/apis/kubeflow.org/v1/pytorchjobs").message == (
        'pytorchjobs.kubeflow.org is forbidden: User "jane" cannot list resource "pytorchjobs" in '
        'API group "kubeflow.org" at the cluster scope'
    )


def test_a_review_says_what_a_user_may_do(limited: Client) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    wanted = {"verb": "get", "resource": "pods", "namespace": "default"}
    for part, allowed in (("", True), ("log", False)):
        attributes = wanted | {"subresource": part}
        review = limited.create(path, {"spec": {"resourceAttributes": attributes}})
        assert (review.code, review.body["status"]["allowed"]) == (201, allowed)


def test_a_service_account_gets_a_token(client: Client, cluster: Embedded) -> None:
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    token = client.create(path, {"spec": {}}).body["status"]["token"]
    account = Client(cluster.kubeconfig)
    account.token = token
    assert 'User "system:serviceaccount:default:default"' in account.get(PODS).message


# --------------------------------------------------------------------------------------------- logs


class Container:
    """A pod on a node, whose container's log the test writes."""

    def __init__(self, cluster: Embedded) -> None:
        self.cluster = cluster
        self.pod = cluster.store.create("pods", "default", pod(nodeName="n"))

    def write(self, *lines: str, restart: int = 0, second: int = 0) -> None:
        file = log_file(self.cluster.home, self.pod, "main", restart)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            for number, line in enumerate(lines, second):
                stream.write(f"2026-11-24T12:00:{number:02}.5Z stdout {line}\n")

    def state(self, restarts: int = 0, last: Object | None = None, **state: Any) -> None:
        status = {"name": "main", "restartCount": restarts, "state": state, "lastState": last or {}}

        def change(found: Object) -> None:
            found["status"]["containerStatuses"] = [status]

        self.cluster.store.change("pods", "default", "a", change)


@pytest.fixture
def container(cluster: Embedded) -> Container:
    return Container(cluster)


LOG = f"{PODS}/a/log"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "one\ntwo and more\nthree\n"),
        ({"tailLines": "2"}, "two and more\nthree\n"),
        ({"tailLines": "0"}, ""),
        ({"tailLines": "1", "timestamps": "true"}, "2026-11-24T12:00:03.5Z three\n"),
        ({"sinceTime": "2026-11-24T12:00:03Z"}, "three\n"),
        ({"sinceTime": "2026-11-24T13:00:01.5+01:00"}, "two and more\nthree\n"),
        ({"sinceSeconds": "1"}, ""),
        ({"limitBytes": "5"}, "one\nt"),
        ({"container": "main", "follow": "true"}, "one\ntwo and more\nthree\n"),
    ],
)
def test_parts_of_a_log(client: Client, container: Container, query: Any, expected: str) -> None:
    container.write("F one", "P two ", "F and more", "F three")
    container.state(terminated={"exitCode": 0})
    assert client.get(LOG, **query).body == expected


def test_a_log_is_followed_to_the_end_of_its_container(
    client: Client, container: Container
) -> None:
    container.write("F one")
    container.state(running={})
    with client.stream(LOG, follow="true") as lines:
        assert next(lines) == b"one\n"
        container.write("F two")
        assert next(lines) == b"two\n"
        container.write("F three")
        container.state(terminated={"exitCode": 0})
        assert list(lines) == [b"three\n"]


def test_kubectl_reads_logs(cluster: Embedded, container: Container) -> None:
    container.write("F one", "F two")
    container.state(terminated={"exitCode": 0})
    assert kubectl(cluster, "logs", "a", "-f", "--tail=1", "--timestamps") == (
        "2026-11-24T12:00:01.5Z two\n"
    )


def test_logs_of_a_container_that_was_started_again(client: Client, container: Container) -> None:
    container.write("F first")
    container.write("F second", restart=1)
    container.state(1, {"terminated": {"exitCode": 1}}, running={})
    assert client.get(LOG).body == "second\n"
    assert client.get(LOG, previous="true").body == "first\n"
    container.state(1, {"terminated": {"exitCode": 1}}, waiting={"reason": "CrashLoopBackOff"})
    assert client.get(LOG).body == "first\n"


def test_logs_that_there_are_not(client: Client, container: Container) -> None:
    waiting = 'container "main" in pod "a" is waiting to start: '
    container.state(waiting={"reason": "ContainerCreating"})
    assert client.get(LOG).message == waiting + "ContainerCreating"
    container.state(waiting={"reason": "ImagePullBackOff"})
    assert client.get(LOG).message == waiting + "trying and failing to pull image"
    refused = client.get(LOG, previous="true")
    assert refused.message == 'previous terminated container "main" in pod "a" not found'
    assert client.get(LOG, container="x").message == "container x is not valid for pod a"
    assert client.get(f"{PODS}/none/log").code == 404
    client.create(PODS, pod("b"))
    assert client.get(f"{PODS}/b/log").message == "pod b does not have a host assigned"
    for query in ({"sinceTime": "noon"}, {"tailLines": "x"}):
        assert client.get(LOG, **query).code == 400


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_a_status_comes_so_many_times(client: Client, cluster: Embedded, code: int) -> None:
    after = 7 if code == 429 else None
    fault = Fault(
        "status", code=code, method="POST", path="/pytorchjobs$", times=2, retry_after=after
    )
    cluster.faults.add(fault)
    answers = [client.create(JOBS, job(str(number))) for number in "abc"]
    assert [one.code for one in answers] == [code, code, 201]
    assert answers[0].headers.get("retry-after") == ("7" if after else None)
    assert client.names(JOBS) == ["c"]
    assert fault.came == 2


@pytest.mark.parametrize(("kind", "left"), [("reset", []), ("lost", ["a"])])
def test_a_connection_breaks_before_or_after(
    client: Client, cluster: Embedded, kind: str, left: list[str]
) -> None:
    cluster.faults.add(Fault(kind, method="POST"))
    with pytest.raises((http.client.HTTPException, OSError)):
        client.create(JOBS, job())
    assert client.names(JOBS) == left


def test_a_server_may_have_done_what_it_says_it_has_not(client: Client, cluster: Embedded) -> None:
    cluster.faults.add(Fault("late", code=504))
    assert client.create(JOBS, job()).code == 504
    assert client.names(JOBS) == ["a"]


def test_chance_is_the_same_in_each_run(client: Client, cluster: Embedded) -> None:
    def codes() -> list[int]:
        cluster.faults.clear()
        cluster.faults.add(Fault("status", path="none$", share=0.5, seed=3, times=None))
        return [client.get(f"{CONFIGS}/none").code for _ in range(20)]

    first = codes()
    assert codes() == first
    assert set(first) == {404, 500}


def test_a_watch_falls_silent(client: Client, cluster: Embedded) -> None:
    since = client.create(CONFIGS, config("a")).body["metadata"]["resourceVersion"]
    cluster.faults.add(Fault("silent", after=1))
    with client.stream(CONFIGS, watch="true", resourceVersion=since, timeoutSeconds="1") as lines:
        client.create(CONFIGS, config("b"))
        client.create(CONFIGS, config("c"))
        assert json.loads(next(lines))["object"]["metadata"]["name"] == "b"
        assert client.watch(CONFIGS, 1, resourceVersion=since)[0][0] == "ADDED"  # another one works
        end = lines.fp  # type: ignore[attr-defined]
        end.raw._sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            next(lines)


def test_history_is_forgotten_under_a_watch(client: Client, cluster: Embedded) -> None:
    since = client.create(CONFIGS, config("a")).body["metadata"]["resourceVersion"]
    for name in "bcd":
        client.create(CONFIGS, config(name))
    cluster.faults.add(Fault("compact", after=2))
    events = client.watch(CONFIGS, resourceVersion=since)
    assert [kind for kind, _ in events] == ["ADDED", "ADDED", "ERROR"]
    assert client.watch(CONFIGS, resourceVersion=since)[0][1]["code"] == 410


def test_a_log_is_cut_off(client: Client, cluster: Embedded, container: Container) -> None:
    container.write("F one", "F two")
    container.state(terminated={"exitCode": 0})
    cluster.faults.add(Fault("cut", after=6))
    with client.stream(LOG) as lines, pytest.raises((http.client.HTTPException, OSError)):
        assert next(lines) == b"one\n"
        list(lines)
    assert client.get(LOG).body == "one\ntwo\n"


def test_faults_are_set_over_http(client: Client, cluster: Embedded) -> None:
    path = "/embedded/faults"
    assert client.create(path, {"kind": "status", "code": 503}).body["faults"][0]["code"] == 503
    assert client.get(PODS).code == 503
    assert client.get(path).body["faults"][0]["came"] == 1
    assert client.ask("DELETE", path).body == {"faults": []}
    lost = {"kind": "lost"}
    bads: list[Any] = [{"kind": "flood"}, lost | {"size": 1}, lost | {"path": "("}, []]
    for bad in bads:
        assert client.ask("POST", path, bad).code == 400


# --------------------------------------------------------------------------------------------- wire


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET /readyz HTTP/1.1\r\n\r\n", 200),
        (b"GET /readyz HTTP/1.0\r\n\r\n", 200),
        (b"GET /readyz SPDY/3\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /readyz HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * (1 << 17) + b"\r\n\r\n", 431),
    ],
)
def test_requests_by_hand(client: Client, sent: bytes, code: int) -> None:
    with socket.create_connection((client.url.hostname or "", client.url.port or 0), 10) as raw:
        raw.sendall(sent)
        assert raw.recv(100).startswith(f"HTTP/1.1 {code} ".encode())


@pytest.mark.parametrize(
    ("mebibytes", "code", "reason", "words"),
    [
        (2, 500, None, "etcdserver: request is too large"),
        (4, 413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"),
    ],
)
def test_objects_that_are_too_large(
    client: Client, mebibytes: int, code: int, reason: str | None, words: str
) -> None:
    answer = client.create(JOBS, job(nprocPerNode="x" * (mebibytes << 20)))
    assert (answer.code, answer.body.get("reason"), answer.message) == (code, reason, words)


def test_chunked_bodies_and_requests_in_one_packet(client: Client) -> None:
    body = json.dumps(config()).encode()
    head = f"POST {CONFIGS} HTTP/1.1\r\nAuthorization: Bearer {client.token}\r\n".encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:]))
    sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    sent += b"GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n"
    with socket.create_connection((client.url.hostname or "", client.url.port or 0), 10) as raw:
        raw.sendall(sent)
        answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 201 Created")
    assert answer.endswith(b"ok")


def test_only_this_machine_is_answered(cluster: Embedded) -> None:
    host = cluster.server._listener.getsockname()[0]
    assert host == "127.0.0.1"
    assert oct((cluster.home / "tokens.json").stat().st_mode)[-3:] == "600"
    assert oct(cluster.kubeconfig.stat().st_mode)[-3:] == "600"


# ---------------------------------------------------------------------------------- what stays


def test_objects_versions_and_tokens_stay(tmp_path: Path) -> None:
    with Embedded(tmp_path, controllers=False) as cluster:
        client = Client(cluster.kubeconfig)
        made = client.create(JOBS, job()).body
        owned = config()
        owned["metadata"]["ownerReferences"] = [owner(made)]
        client.create(CONFIGS, owned)
        client.create(CONFIGS, config("gone"))
        client.ask("DELETE", f"{CONFIGS}/gone")
        version = client.get(CONFIGS).body["metadata"]["resourceVersion"]
    with Embedded(tmp_path, controllers=False) as cluster:
        same = Client(cluster.kubeconfig)
        assert (same.url, same.token) == (client.url, client.token)
        client = same
        assert client.get(f"{JOBS}/a").body == made
        assert client.names(CONFIGS) == ["a"]
        after = client.create(CONFIGS, config("b")).body["metadata"]["resourceVersion"]
        assert int(after) > int(version)
        assert client.watch(CONFIGS, 1, resourceVersion="2")[0][1]["code"] == 410
        client.ask("DELETE", f"{JOBS}/a")
        assert client.names(CONFIGS) == ["b"]


@pytest.mark.parametrize("torn", [b"9 put configmaps {", b"9 put\n", b"9 put x {}\n", b"\0\0\0\0"])
def test_a_torn_line_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    store = Store(tmp_path)
    store.create("configmaps", "default", config())
    store.close()
    with (tmp_path / "objects.journal").open("ab") as file:
        file.write(torn)
    store = Store(tmp_path)
    store.create("configmaps", "default", config("b"))
    store.close()
    assert [one["metadata"]["name"] for one in Store(tmp_path).list("configmaps")[0]] == ["a", "b"]


def test_the_file_is_written_anew_when_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydra_trainer.embedded.journal.COMPACT_FROM", 4096)
    store = Store(tmp_path)
    for number in range(200):
        name = f"c{number % 3}"
        if number >= 3:
            store.remove("configmaps", "default", name)
        store.create("configmaps", "default", config(name, x=str(number)))
    store.close()
    assert (tmp_path / "objects.journal").stat().st_size < 8192
    again = Store(tmp_path)
    assert [one["data"]["x"] for one in again.list("configmaps")[0]] == ["198", "199", "197"]
    assert again.version == store.version


def test_a_full_disk_refuses_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.create("configmaps", "default", config())
    true = os.write
    monkeypatch.setattr(os, "write", _short_of_space(true))
    with pytest.raises(OSError, match="No space"):
        store.create("configmaps", "default", config("b"))
    monkeypatch.setattr(os, "write", true)
    store.create("configmaps", "default", config("c"))
    store.close()
    names = [one["metadata"]["name"] for one in Store(tmp_path).list("configmaps")[0]]
    assert names == ["a", "c"]


def _short_of_space(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    written: list[int] = []

    def short(file: int, data: bytes) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(write(file, data[:10]))
        return written[0]

    return short


# ------------------------------------------------------------------------------------ its process


def test_two_who_start_get_one_process_which_stops(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(embedded.start, [home, home])
    try:
        assert first == second
        content = yaml.safe_load(first.read_text())
        assert content["current-context"] == "embedded"
        assert content["contexts"][0]["context"]["namespace"] == "default"
        client = Client(first)
        client.create(CONFIGS, config())
        with pytest.raises(BlockingIOError):
            Embedded(home).__enter__()
        pid = int((home / "lock").read_text())
        assert embedded.start(home) == first
        assert int((home / "lock").read_text()) == pid
    finally:
        embedded.stop(home)
    with pytest.raises(OSError, match="No such process"):
        os.kill(pid, 0)
    embedded.stop(home)  # again: nothing happens


def test_it_ends_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hydra_trainer.embedded", "--home", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--idle", "0.2"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == f"export KUBECONFIG={tmp_path}/kubeconfig\n"
        assert process.wait(30) == 0


def test_it_does_not_leave_while_somebody_starts_it(tmp_path: Path) -> None:
    with Embedded(tmp_path, controllers=False) as cluster:
        with hold(tmp_path / START_LOCK, wait=True):
            assert not leave(cluster, -1)
            assert Client(cluster.kubeconfig).get(PODS).code == 200
        assert leave(cluster, -1)
        with pytest.raises(ConnectionRefusedError):
            Client(cluster.kubeconfig).get(PODS)


def test_a_pod_that_runs_keeps_it(cluster: Embedded, container: Container) -> None:
    assert not cluster.is_working
    container.state(running={})
    assert cluster.is_working
    container.state(terminated={"exitCode": 0})
    assert not cluster.is_working


def test_a_start_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objects.journal").mkdir()
    with pytest.raises(LaunchError, match=r"(?s)did not start; .*objects.journal"):
        embedded.start(tmp_path)


def test_old_events_and_logs_are_forgotten(cluster: Embedded, container: Container) -> None:
    container.write("F one")
    cluster.tidy()
    folder = log_file(cluster.home, container.pod, "main", 0).parent.parent
    assert folder.exists()
    cluster.store.remove("pods", "default", "a")
    for name, moment in (("old", "2026-01-01T00:00:00Z"), ("new", "2999-01-01T00:00:00Z")):
        event = {"metadata": {"name": name}, "lastTimestamp": moment}
        cluster.store.create("events", "default", event)
    cluster.tidy()
    names = [one["metadata"]["name"] for one in cluster.store.list("events")[0]]
    assert "new" in names
    assert "old" not in names
    assert not folder.exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "5s"),
        (119, "119s"),
        (200, "3m20s"),
        (1200, "20m"),
        (10900, "3h1m"),
        (90000, "25h"),
        (300000, "3d11h"),
    ],
)
def test_ages_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert duration(seconds) == text
