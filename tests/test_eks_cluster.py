"""The client of an API server, against one that does what the test says, and the embedded one."""

import contextlib
import gzip
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydra_trainer.eks import kubeconfig as kubeconfigs
from hydra_trainer.eks import refusals
from hydra_trainer.eks.cluster import AlreadyExists, ApiError, Cluster, Retry, resource_of
from hydra_trainer.eks.logs import Told
from hydra_trainer.embedded import Embedded
from hydra_trainer.embedded.faults import Fault
from hydra_trainer.embedded.podlogs import log_file
from hydra_trainer.errors import LaunchError

from .scripted import CUT, HANG, Api, Asked, Reply, Stream

JOBS = "pytorchjobs.kubeflow.org/v1"
PATH = "/apis/kubeflow.org/v1/namespaces/ml/pytorchjobs"


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@dataclass
class Clock:
    """Time that passes only where somebody waits for it."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def retry(self, **changes: Any) -> Retry:
        """The product's budget by this clock, with the longest pauses that the jitter can give."""
        return Retry(sleep=self.wait, clock=self.read, spread=longest, **changes)

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def longest(low: float, high: float) -> float:
    return high


@pytest.fixture
def clock() -> Clock:
    return Clock()


def config(server: str, user: dict[str, Any] | None = None, **context: Any) -> dict[str, Any]:
    """A kubeconfig with one context, `lab`."""
    entry = {"cluster": "c", "user": "u", "namespace": "ml", **context}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": entry}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret"} if user is None else user}],
    }


Connect = Callable[..., Cluster]


@pytest.fixture
def connect(tmp_path: Path, api: Api, clock: Clock) -> Connect:
    """Make a Cluster of the scripted server, or of another kubeconfig."""

    def make(content: dict[str, Any] | None = None, **retry: Any) -> Cluster:
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(content or config(api.url)))
        return Cluster(kubeconfig=str(file), retry=clock.retry(**retry))

    return make


@pytest.fixture
def cluster(connect: Connect) -> Cluster:
    return connect()


def job(name: str = "demo", digest: str = "d1") -> dict[str, Any]:
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "annotations": {"hydra-trainer.dev/spec-digest": digest}},
        "spec": {"nprocPerNode": "2"},
    }


def stored(name: str = "demo", version: int = 1, **changes: Any) -> dict[str, Any]:
    """An object as the server has it."""
    made = job(name)
    made["metadata"] |= {"namespace": "ml", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return made | changes


def status(code: int, reason: str = "", message: str = "", **details: Any) -> Reply:
    """The Status object with which a server refuses."""
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason}
    return Reply(code, body | {"message": message, "details": details})


ABSENT = status(404, "NotFound", 'pytorchjobs.kubeflow.org "demo" not found', name="demo")
TAKEN = status(409, "AlreadyExists", 'pytorchjobs.kubeflow.org "demo" already exists', name="demo")
HALF = Reply(201, b'{"apiVer', {"Content-Length": "999", "Connection": "close"})
BUSY = Reply(429, {}, {"Retry-After": "7"})

# --------------------------------------------------------------------------- what is tried again


@pytest.mark.parametrize(
    "trouble", [CUT, *(Reply(code) for code in (429, 500, 502, 503, 504)), Reply(200, b"<html>")]
)
def test_a_server_in_trouble_is_asked_again(
    trouble: Any, api: Api, cluster: Cluster, clock: Clock
) -> None:
    api.replies(trouble, trouble, Reply(200, stored()))
    assert cluster.get(JOBS, "demo") == stored()
    assert clock.waits == [0.25, 0.5]


def test_pauses_are_drawn_from_all_of_a_bound_that_doubles_to_20_s(
    api: Api, connect: Connect, clock: Clock
) -> None:
    bounds: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    api.replies(*[Reply(503)] * 9, Reply(200, stored()))
    cluster = connect()
    cluster._connection.retry = Retry(sleep=clock.wait, clock=clock.read, spread=draw)
    cluster.get(JOBS, "demo")
    assert bounds == [(0, min(20, 0.25 * 2**n)) for n in range(9)]


def test_retry_after_is_waited_for_and_told(
    api: Api, cluster: Cluster, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    api.replies(BUSY, Reply(200, stored()))
    cluster.get(JOBS, "demo")
    assert clock.waits == [7.25]
    assert caplog.messages == [
        "`get pytorchjobs demo in namespace ml`: 429 {}. Trying again in 7 s."
    ]


def test_the_budget_of_tries_ends(api: Api, connect: Connect) -> None:
    api.replies(status(503, message="etcd has no leader"))
    with pytest.raises(LaunchError, match=r"tried 4 times in 2 s.*503 etcd has no leader\."):
        connect(tries=4).get(JOBS, "demo")
    assert len(api.asked) == 4


def test_the_budget_of_seconds_ends_before_a_pause_that_would_exceed_it(
    api: Api, cluster: Cluster, clock: Clock
) -> None:
    api.replies(Reply(429, {}, {"Retry-After": "3600"}))
    with pytest.raises(LaunchError, match=r"tried once .* asks to be left alone for 3600 s"):
        cluster.get(JOBS, "demo")
    assert clock.waits == []


def test_a_wrong_address_shows_after_three_tries(connect: Connect, clock: Clock) -> None:
    with pytest.raises(LaunchError, match=r"http://127.0.0.1:9 cannot be reached: .*refused"):
        connect(config("http://127.0.0.1:9")).get(JOBS, "demo")
    assert len(clock.waits) == 2


@pytest.mark.parametrize("code", [400, 403, 404, 405, 409, 410, 413, 415, 422])
def test_a_refusal_is_not_asked_again(code: int, api: Api, cluster: Cluster, clock: Clock) -> None:
    api.replies(status(code, "Reason", "words of the server"))
    with pytest.raises(ApiError) as caught:
        cluster.create(job())
    error = caught.value
    assert (error.code, error.reason, error.message) == (code, "Reason", "words of the server")
    assert len(api.asked) == 1


BODY = b'{"a": "b"}'


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + BODY,
        b"HTTP/1.0 200\nContent-Length:10\n\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'4\r\n{"a"\r\n6;x=y\r\n: "b"}\r\n0\r\nTrailer: z\r\n\r\n',
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(BODY),
    ],
    ids=["length", "to the end", "1.0", "100", "chunked", "gzip"],
)
def test_a_reply_may_have_any_form_of_http(reply: bytes, connect: Connect) -> None:
    with listening(reply) as url:
        assert connect(config(url)).get(JOBS, "demo") == {"a": "b"}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "closed without a reply"),
        (b"SSH-2.0-OpenSSH_9.6 \n\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 17), "a line has no end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + BODY, "in the middle of a reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{", "in the middle of a rep"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", "invalid literal"),
    ],
)
def test_nonsense_is_trouble(reply: bytes, words: str, connect: Connect) -> None:
    with listening(reply) as url, pytest.raises(LaunchError, match=f"to {url} broke: .*{words}"):
        connect(config(f"{url}/token"), tries=1).get(JOBS, "demo")


@contextlib.contextmanager
def listening(reply: bytes) -> Iterator[str]:
    """Be a server that gives this reply to one request, and closes the connection."""

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(1 << 16)
            client.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_connection_is_used_again_until_the_server_closes_it(
    api: Api, cluster: Cluster, clock: Clock
) -> None:
    api.replies(Reply(), Stream({}), Reply(), Reply(200, {}, {"Connection": "close"}))
    for _ in range(4):
        cluster.get(JOBS, "demo")
    assert len({asked.client for asked in api.asked}) == 1
    assert idle(cluster) == []
    cluster.get(JOBS, "demo")
    assert len({asked.client for asked in api.asked}) == 2
    assert clock.waits == []


def idle(cluster: Cluster) -> list[Any]:
    client = cluster._connection._client
    return [] if client is None else list(client._route._idle)


def test_a_connection_that_was_closed_while_idle_is_no_trouble(
    api: Api, cluster: Cluster, clock: Clock
) -> None:
    api.replies(Reply(closes=True), Reply(201, stored()))
    cluster.get(JOBS, "other")
    (channel,) = idle(cluster)
    while not channel.has_ended():
        pass  # until the end of the connection has come through
    cluster.create(job())
    assert clock.waits == []


# ------------------------------------------------------------------------------ one job, ever


class Objects:
    """A server that creates, and may do something else than answer."""

    def __init__(self, api: Api, fault: Callable[[int], Any] = lambda number: None) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.creations = 0
        self.posts = 0
        self.fault = fault
        api.answer = self.answer

    def answer(self, asked: Asked) -> Any:
        if asked.method == "GET":
            found = self.there.get(asked.path.rpartition("/")[2])
            return Reply(200, found) if found else ABSENT
        name = asked.body["metadata"]["name"]
        reply = TAKEN
        if name not in self.there:
            self.there[name] = asked.body | {"status": {}}
            self.creations += 1
            reply = Reply(201, self.there[name])
        self.posts += 1
        return self.fault(self.posts) or reply


@pytest.mark.parametrize("lost", [CUT, Reply(500), Reply(504), HALF])
def test_a_lost_reply_is_found_by_looking(lost: Any, api: Api, cluster: Cluster) -> None:
    objects = Objects(api, lambda number: lost)
    assert cluster.create(job()) == job() | {"status": {}}
    assert objects.creations == 1
    assert [asked.method for asked in api.asked] == ["POST", "GET"]


def test_a_request_that_was_lost_is_sent_again(api: Api, cluster: Cluster) -> None:
    objects = Objects(api)
    healthy = api.answer
    left = [CUT]  # before the server could act
    api.answer = lambda asked: left.pop() if left else healthy(asked)
    assert cluster.create(job()) == job() | {"status": {}}
    assert objects.creations == 1


def test_a_creation_that_arrives_late_is_taken_for_ours(api: Api, cluster: Cluster) -> None:
    """The first POST is still under way when we look, and done when we send the second."""
    api.replies(CUT, ABSENT, TAKEN, Reply(200, stored()))
    assert cluster.create(job()) == stored()
    assert [asked.method for asked in api.asked] == ["POST", "GET", "POST", "GET"]


@pytest.mark.parametrize(
    "theirs",
    [stored() | {"metadata": job(digest="d2")["metadata"]}, stored() | {"metadata": {}}],
    ids=["another digest", "no digest"],
)
def test_what_somebody_else_created_is_not_ours(
    theirs: dict[str, Any], api: Api, cluster: Cluster
) -> None:
    api.replies(CUT, Reply(200, theirs))
    with pytest.raises(AlreadyExists):
        cluster.create(job())


@pytest.mark.parametrize(("data", "is_ours"), [({"a": "1"}, True), ({"a": "2"}, False)])
def test_without_a_digest_all_that_was_sent_is_compared(
    data: dict[str, str], is_ours: bool, api: Api, cluster: Cluster
) -> None:
    sent = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    there = sent | {"data": data, "metadata": {"name": "c", "uid": "u"}}
    api.replies(CUT, Reply(200, there))
    if is_ours:
        assert cluster.create(sent) == there
    else:
        with pytest.raises(AlreadyExists):
            cluster.create(sent)


def test_a_name_that_was_taken_before_is_an_error_of_its_own(api: Api, cluster: Cluster) -> None:
    api.replies(TAKEN)
    with pytest.raises(AlreadyExists, match="pytorchjobs demo in namespace ml exists already"):
        cluster.create(job())
    assert len(api.asked) == 1


def test_a_quota_that_others_count_at_the_same_time_is_tried_again(
    api: Api, cluster: Cluster
) -> None:
    api.replies(status(409, "Conflict", "resourcequotas has been modified"), Reply(201, stored()))
    assert cluster.create(job()) == stored()


def test_only_what_was_not_done_is_sent_again(api: Api, cluster: Cluster) -> None:
    faults = (None, CUT, Reply(500), Reply(503), BUSY)
    objects = Objects(api, lambda number: faults[number % len(faults)])
    for number in range(100):
        cluster.create(job(f"job-{number}"))
    assert objects.creations == len(objects.there) == 100
    assert objects.posts < 130  # one for each job, and again for those that found it busy


def test_many_threads_may_create(
    api: Api, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    objects = Objects(api)
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(cluster.create, [job(f"job-{number}") for number in range(200)]))
    assert len(objects.there) == 200
    assert caplog.messages == []  # urllib3 warns when its pool is too small


def test_a_dry_run_is_strict_and_looks_for_nothing(api: Api, cluster: Cluster) -> None:
    api.replies(CUT, Reply(201, stored()))
    assert cluster.create(job(), dry_run=True) == stored()
    assert [asked.method for asked in api.asked] == ["POST", "POST"]
    assert api.asked[0].path == PATH
    assert api.asked[0].query == {
        "dryRun": "All",
        "fieldValidation": "Strict",
        "fieldManager": "hydra-trainer",
    }


# ---------------------------------------------------------------------------------- credentials


def plugin(folder: Path, *tokens: str) -> dict[str, Any]:
    """A credential plugin that gives these tokens, one a call, and then fails as `aws` does."""
    (folder / "tokens").write_text("\n".join(tokens))
    script = folder / "aws"
    script.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
file = pathlib.Path({str(folder / "tokens")!r})
first, *rest = file.read_text().split("\\n")
file.write_text("\\n".join(rest))
if not first:
    sys.exit("The SSO session associated with this profile has expired")
status = {{"token": first}}
version = "client.authentication.k8s.io/v1beta1"
print(json.dumps({{"apiVersion": version, "kind": "ExecCredential", "status": status}}))
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    arguments = ["--region", "eu-west-1", "eks", "get-token", "--cluster-name", "big one"]
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": str(script),
            "args": arguments,
            "env": [{"name": "AWS_PROFILE", "value": "team"}],
        }
    }


def accepts(api: Api, token: str, refusal: Reply) -> None:
    """Let the server know one token only."""

    def answer(asked: Asked) -> Reply:
        return Reply(200, stored()) if asked.headers["Authorization"].endswith(token) else refusal

    api.answer = answer


UNKNOWN = [
    status(401, "Unauthorized", "Unauthorized"),
    status(403, "Forbidden", 'pods is forbidden: User "system:anonymous" cannot list'),
]


@pytest.mark.parametrize("refusal", UNKNOWN, ids=["401", "anonymous"])
def test_a_refused_token_is_renewed_once(
    refusal: Reply, api: Api, connect: Connect, tmp_path: Path
) -> None:
    accepts(api, "new", refusal)
    cluster = connect(config(api.url, plugin(tmp_path, "old", "new")))
    assert cluster.get(JOBS, "demo") == stored()
    assert [asked.headers["Authorization"] for asked in api.asked] == ["Bearer old", "Bearer new"]


def test_a_token_file_is_read_again(api: Api, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old")
    cluster = connect(config(api.url, {"tokenFile": str(tmp_path / "token")}))
    accepts(api, "old", UNKNOWN[0])
    cluster.get(JOBS, "demo")
    (tmp_path / "token").write_text("new")
    accepts(api, "new", UNKNOWN[0])
    assert cluster.get(JOBS, "demo") == stored()


def test_a_login_that_does_not_help_says_what_to_type(
    api: Api, connect: Connect, tmp_path: Path
) -> None:
    api.replies(UNKNOWN[0])
    cluster = connect(config(api.url, plugin(tmp_path, "old", "as old")))
    with pytest.raises(LaunchError) as caught:
        cluster.get(JOBS, "demo")
    assert "`aws sso login --profile team`" in str(caught.value)
    assert (
        "`aws eks update-kubeconfig --name 'big one' --region eu-west-1 --profile team "
        "--alias lab`" in str(caught.value)
    )
    assert len(api.asked) == 2


def test_a_plugin_that_fails_is_quoted_and_nothing_is_sent(
    api: Api, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = connect(config(api.url, plugin(tmp_path)))
    with pytest.raises(LaunchError, match=r"SSO session .* has expired\. Type `aws sso login"):
        cluster.get(JOBS, "demo")
    assert api.asked == []
    assert caplog.records == []  # told once, by us


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"token": "t"}, r"aws eks update-kubeconfig --name CLUSTER --region REGION"),
        ({"exec": {"command": "get-it", "args": ["a b"]}}, r"come from `get-it 'a b'`: type that"),
        ({"tokenFile": "/run/token"}, r"/run/token: have that file written again"),
        (
            {"exec": {"command": "/bin/aws-iam-authenticator", "args": ["token", "-i", "big"]}},
            r"--name big --region us-east-2 --alias lab",
        ),
        (
            {"exec": {"command": "aws", "args": ["--cluster-name=big", "--role", "arn:r"]}},
            r"--name big --region us-east-2 --role-arn arn:r --alias lab",
        ),
    ],
)
def test_what_to_type_depends_on_where_the_credentials_come_from(
    user: dict[str, Any], words: str
) -> None:
    server = "https://ABC.gr7.us-east-2.eks.amazonaws.com"
    context = kubeconfigs.Context("lab", "ml", server, "/home/me/.kube/config", {}, user)
    assert words in kubeconfigs.login(context)


def test_a_missing_right_names_verb_resource_namespace_and_the_file_with_the_rights(
    api: Api, cluster: Cluster
) -> None:
    user = 'User "ann" cannot create resource "pytorchjobs" in API group "kubeflow.org"'
    api.replies(status(403, "Forbidden", f"pytorchjobs.kubeflow.org is forbidden: {user}"))
    with pytest.raises(ApiError) as caught:
        cluster.create(job())
    assert str(caught.value).startswith(
        "ann may not create pytorchjobs (API group kubeflow.org) in namespace ml of the cluster "
        "'lab'. deploy/rbac.yaml holds the rights that suffice"
    )
    assert "kubectl auth can-i create pytorchjobs.kubeflow.org --namespace ml" in str(caught.value)


def test_a_missing_right_to_logs_is_one_of_a_subresource(api: Api, cluster: Cluster) -> None:
    api.replies(status(403, "Forbidden", 'User "ann" cannot get resource "pods/log"'))
    with pytest.raises(ApiError, match=r"get pods/log in namespace ml .* --subresource=log"):
        list(cluster.logs("demo-master-0", container="pytorch"))


# --------------------------------------------------------------------- refusals, in useful words


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            Reply(404, b"404 page not found"),
            r"does not know pytorchjobs.kubeflow.org/v1. Install the Kubeflow training operator "
            r".*docs/eks.md",
        ),
        (
            status(404, "NotFound", 'namespaces "ml" not found', name="ml", kind="namespaces"),
            r"no namespace 'ml' in the cluster 'lab'. Type launcher.namespace=NAME, or `kubectl "
            r"create namespace ml`",
        ),
        (
            status(403, "Forbidden", "exceeded quota: gpus, requested: 8, used: 8, limited: 8"),
            r"refused to create pytorchjobs demo in namespace ml: exceeded quota: gpus",
        ),
        (
            status(400, "BadRequest", 'strict decoding error: unknown field "spec.replicaz"'),
            r'unknown field "spec.replicaz"$',
        ),
        (
            status(
                422,
                "Invalid",
                "PyTorchJob is invalid",
                causes=[{"field": "spec.pytorchReplicaSpecs.Worker.replicas", "message": "no"}],
            ),
            r"PyTorchJob is invalid\n  spec.pytorchReplicaSpecs.Worker.replicas: resources.nodes",
        ),
        (
            status(
                400,
                "BadRequest",
                'admission webhook "validator" denied the request: '
                "spec.pytorchReplicaSpecs[Master].template.spec.containers[0].image: Required",
            ),
            r"denied the request: .*Required\n  .*containers\[0\].image: launcher.image in the con",
        ),
        (Reply(413, b"too large"), r"too large.*code.delivery=s3, code.delivery=volume or"),
        (Reply(301, b"", {"Location": "http://elsewhere/"}), r"refused to create .*HTTP 301"),
    ],
)
def test_a_refusal_says_what_to_do(reply: Reply, words: str, api: Api, cluster: Cluster) -> None:
    api.replies(reply)
    with pytest.raises(ApiError) as caught:
        cluster.create(job())
    assert re.search(words, str(caught.value), re.DOTALL)


def test_a_kind_that_is_not_served_is_not_an_object_that_is_not_there(
    api: Api, cluster: Cluster
) -> None:
    api.replies(ABSENT, Reply(404, b"404 page not found"))
    assert cluster.get(JOBS, "demo") is None
    for ask in (cluster.get, cluster.delete):
        with pytest.raises(ApiError, match="does not know pytorchjobs"):
            ask(JOBS, "demo")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("spec.template.spec.containers[0].resources.limits[nvidia.com/gpu]", "gpus_per_node"),
        ("spec.template.spec.containers[0].resources.limits[vpc.amazonaws.com/efa]", "efa"),
        ("spec.template.spec.containers[0].env[3].name", "launcher.env"),
        ("spec.template.spec.containers[0].imagePullPolicy", "launcher.image_pull_policy"),
        ("spec.trainer.numNodes", "resources.nodes"),
        ("spec.elasticPolicy.minReplicas", "resources.min_nodes"),
        ("metadata.labels[kueue.x-k8s.io/queue-name]", "launcher.queue"),
        ("spec.template.spec.volumes[0].persistentVolumeClaim", "storage.mounts"),
    ],
)
def test_a_path_in_an_object_has_a_key_in_the_configuration(path: str, key: str) -> None:
    assert (refusals.config_key(path) or "").endswith(key)


# ----------------------------------------------------------------------------- which cluster


def test_without_a_kubeconfig_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(LaunchError) as caught:
        _ = Cluster().context
    assert f"{tmp_path / 'none'} does not exist" in str(caught.value)
    assert "aws eks update-kubeconfig --name CLUSTER" in str(caught.value)
    assert "launcher.embedded=true" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"current-context": ""}, r"no current context. Type launcher.context=NAME, .*: lab\."),
        ({"current-context": "lap"}, r"no context 'lap' in .*Did you mean 'lab'\? There are: lab"),
        ({"clusters": []}, r"no cluster 'c' in .* There are: none"),
        ({"clusters": [{"name": "c"}]}, r"gives no server for the context 'lab'"),
        (
            {"clusters": [{"name": "c", "cluster": {"server": "http://k8s.example.com"}}]},
            r"http://k8s.example.com, which is not https",
        ),
        (
            {
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {"server": "https://k", "insecure-skip-tls-verify": True},
                    }
                ]
            },
            r"insecure-skip-tls-verify.*certificate-authority-data",
        ),
    ],
)
def test_a_kubeconfig_that_does_not_do_says_what_to_type(
    change: dict[str, Any], words: str, connect: Connect
) -> None:
    with pytest.raises(LaunchError, match=words):
        _ = connect(config("https://k8s.example.com") | change).context


def test_a_namespace_has_to_come_from_somewhere(api: Api, connect: Connect) -> None:
    cluster = connect(config(api.url, namespace=None))
    with pytest.raises(LaunchError, match=r"'lab' names no namespace.*launcher.namespace=NAME"):
        cluster.get(JOBS, "demo")
    assert api.asked == []


@pytest.mark.parametrize("text", ["a: [", "just words", "- a list"])
def test_a_file_that_is_no_kubeconfig_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(LaunchError, match=str(file)):
        _ = Cluster(kubeconfig=str(file)).context


def test_the_context_and_the_namespace_may_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several files count as for kubectl: of two entries with one name, the first."""
    first, second = config("https://first"), config("https://second", namespace="other")
    second["current-context"] = "far"
    second["contexts"].append({"name": "far", "context": {"cluster": "far", "user": "u"}})
    second["clusters"].append({"name": "far", "cluster": {"server": "https://far"}})
    for name, content in (("a", first), ("b", second)):
        (tmp_path / name).write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'a'}:{tmp_path / 'b'}:{tmp_path / 'none'}")
    assert (Cluster().context, Cluster().namespace) == ("lab", "ml")
    assert Cluster("far", "team").namespace == "team"
    assert kubeconfigs.find("lab").server == "https://first"


def test_a_server_on_this_machine_is_not_asked_for_through_a_proxy(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    cluster.get(JOBS, "demo")
    assert len(api.asked) == 1


def test_nothing_is_imported_or_read_before_the_first_use() -> None:
    script = (
        "import sys; from hydra_trainer.eks.cluster import Cluster; Cluster('no', 'such');"
        "print([m for m in ('kubernetes', 'urllib3', 'requests', 'torch', 'hydra')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def openssl(folder: Path, *words: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl makes the certificates")
    subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, as bare as those that EKS makes: `ours`, and `theirs`; a server of ours."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "authority").write_text("basicConstraints=critical,CA:TRUE\n")
    (folder / "address").write_text("subjectAltName=IP:127.0.0.1\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for name in ("ours", "theirs", "server"):
        request = f"req -new {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        openssl(folder, *request.split())
        signed = "-signkey {0}.key -extfile authority"
        if name == "server":
            signed = "-CA ours.crt -CAkey ours.key -CAcreateserial -extfile address"
        sign = f"x509 -req -in {name}.csr -days 2 -out {name}.crt {signed.format(name)}"
        openssl(folder, *sign.split())
    return folder


@pytest.fixture
def tls(api: Api, certificates: Path) -> str:
    """Put the scripted server behind TLS; return its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    address = api.url.replace("http:", "https:")
    api.socket = context.wrap_socket(api.socket, server_side=True)
    return address


def trusting(server: str, authority: Path, **cluster: str) -> dict[str, Any]:
    """A kubeconfig for a server with a certificate of that authority."""
    content = config(server)
    content["clusters"][0]["cluster"] |= {"certificate-authority": str(authority), **cluster}
    return content


def as_python_3_13(**arguments: Any) -> ssl.SSLContext:
    context = CREATE(**arguments)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


CREATE = ssl.create_default_context


@pytest.mark.parametrize("create", [CREATE, as_python_3_13])
def test_a_certificate_that_the_kubeconfig_trusts_is_needed(
    create: Any,
    tls: str,
    api: Api,
    connect: Connect,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ssl, "create_default_context", create)
    api.replies(Reply(200, stored()))
    assert connect(trusting(tls, certificates / "ours.crt")).get(JOBS, "demo") == stored()
    with pytest.raises(LaunchError, match=r"does not trust: .*\. Type `aws eks update-kubeconfig"):
        connect(trusting(tls, certificates / "theirs.crt")).get(JOBS, "demo")
    elsewhere = tls.replace("127.0.0.1", "localhost")  # which the certificate does not name
    with pytest.raises(LaunchError, match=r"Hostname mismatch, .* 'localhost'"):
        connect(trusting(elsewhere, certificates / "ours.crt")).get(JOBS, "demo")
    assert len(api.asked) == 1
    named = trusting(elsewhere, certificates / "ours.crt", **{"tls-server-name": "127.0.0.1"})
    assert connect(named).get(JOBS, "demo") == stored()


def test_a_client_certificate_is_shown(tls: str, connect: Connect, certificates: Path) -> None:
    user = {"client-certificate": "server.crt", "client-key": "server.key"}
    content = trusting(tls, certificates / "ours.crt")
    content["users"][0]["user"] = {key: str(certificates / name) for key, name in user.items()}
    assert connect(content).get(JOBS, "demo") == {}
    content["users"][0]["user"]["client-key"] = str(certificates / "theirs.key")
    with pytest.raises(LaunchError, match=r"no credentials for the cluster 'lab': .*mismatch"):
        connect(content).get(JOBS, "demo")


def test_a_proxy_of_the_kubeconfig_is_used(
    tls: str, api: Api, connect: Connect, certificates: Path
) -> None:
    lines: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=relay, args=(listener, api, lines), daemon=True).start()
        way = f"http://ann:a%20b@127.0.0.1:{listener.getsockname()[1]}"
        content = trusting(tls, certificates / "ours.crt", **{"proxy-url": way})
        assert connect(content).get(JOBS, "demo") == {}
    assert lines[0].startswith(f"CONNECT {tls.removeprefix('https://')} HTTP/1.".encode())
    assert b"Proxy-Authorization: Basic YW5uOmEgYg==\r\n" in lines


def relay(listener: socket.socket, api: Api, lines: list[bytes]) -> None:
    """Be a proxy for one connection."""
    client, _ = listener.accept()
    with client, client.makefile("rb", buffering=0) as asked:
        while (line := asked.readline()) != b"\r\n":
            lines.append(line)
        client.sendall(b"HTTP/1.1 200 Go on\r\n\r\n")
        with socket.create_connection(api.server_address) as server:  # type: ignore[arg-type]
            pairs = [(client, server), (server, client)]
            threads = [threading.Thread(target=pass_on, args=pair, daemon=True) for pair in pairs]
            for thread in threads:
                thread.start()
            threads[1].join()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    while piece := source.recv(1 << 16):
        target.sendall(piece)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("ftp://proxy", r"by the proxy ftp://proxy, but it has to be one of http, socks5, socks5h"),
        ("socks5://127.0.0.1:9", r"a SOCKS proxy needs another package: pip install PySocks"),
    ],
)
def test_a_proxy_that_cannot_be_used_says_why(
    way: str,
    words: str,
    tls: str,
    connect: Connect,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "socks", None)
    with pytest.raises(LaunchError, match=words):
        connect(trusting(tls, certificates / "ours.crt", **{"proxy-url": way})).get(JOBS, "demo")


def test_a_pod_uses_its_service_account(
    tls: str, api: Api, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    shutil.copy(certificates / "ours.crt", folder / "ca.crt")
    (folder / "token").write_text("old")
    (folder / "namespace").write_text("ml")
    monkeypatch.setattr(kubeconfigs, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", tls.rpartition(":")[2])
    cluster = Cluster()
    assert (cluster.context, cluster.namespace) == ("in-cluster", "ml")
    accepts(api, "old", UNKNOWN[0])
    assert cluster.get(JOBS, "demo") == stored()
    (folder / "token").write_text("new")  # the kubelet renews it every hour
    accepts(api, "new", UNKNOWN[0])
    assert cluster.get(JOBS, "demo") == stored()


# ------------------------------------------------------------------------- the smaller verbs


@pytest.mark.parametrize(
    ("kind", "version", "resource"),
    [
        ("PyTorchJob", "kubeflow.org/v1", "pytorchjobs.kubeflow.org/v1"),
        ("ConfigMap", "v1", "configmaps"),
        ("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses.scheduling.k8s.io/v1"),
        ("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies.networking.k8s.io/v1"),
    ],
)
def test_a_kind_has_a_resource(kind: str, version: str, resource: str) -> None:
    assert resource_of({"kind": kind, "apiVersion": version}) == resource


def test_a_list_is_read_page_by_page(api: Api, cluster: Cluster) -> None:
    bare = {"metadata": {"name": "a", "managedFields": [{}]}}
    head = {"apiVersion": "v1", "kind": "PodList"}
    api.replies(
        Reply(200, head | {"items": [bare], "metadata": {"resourceVersion": "7", "continue": "x"}}),
        Reply(200, head | {"items": [bare], "metadata": {"resourceVersion": "8"}}),
    )
    items, version = cluster.list("pods", labels="a in (b,c)", fields="metadata.name=a")
    assert items == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}] * 2
    assert version == "7"
    query = {"labelSelector": "a in (b,c)", "fieldSelector": "metadata.name=a", "limit": "500"}
    assert [asked.query for asked in api.asked] == [query, query | {"continue": "x"}]


def test_a_list_whose_first_page_grew_too_old_is_read_in_one_piece(
    api: Api, cluster: Cluster
) -> None:
    page = {"apiVersion": "v1", "kind": "PodList", "items": []}
    api.replies(
        Reply(200, page | {"metadata": {"resourceVersion": "7", "continue": "x"}}),
        status(410, "Expired", "The provided continue parameter is too old"),
        Reply(200, page | {"metadata": {"resourceVersion": "9"}}),
    )
    assert cluster.list("pods") == ([], "9")
    assert "limit" not in api.asked[2].query


def test_deleting_takes_what_the_object_owns_and_may_be_repeated(
    api: Api, cluster: Cluster
) -> None:
    api.replies(Reply(200), ABSENT)
    cluster.delete(JOBS, "demo")
    cluster.delete(JOBS, "demo")
    assert [(asked.method, asked.path) for asked in api.asked] == [("DELETE", f"{PATH}/demo")] * 2
    assert api.asked[0].query == {"propagationPolicy": "Background"}


def test_a_configmap_is_owned_with_one_request(api: Api, cluster: Cluster) -> None:
    cluster.own({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}, stored())
    (asked,) = api.asked
    assert (asked.method, asked.path) == ("PATCH", "/api/v1/namespaces/ml/configmaps/c")
    assert asked.headers["Content-Type"] == "application/strategic-merge-patch+json"
    owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "demo"}
    assert asked.body == {"metadata": {"ownerReferences": [owner | {"uid": "uid-demo"}]}}


def test_a_custom_resource_keeps_its_other_owners(api: Api, cluster: Cluster) -> None:
    other = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}
    runtime = stored("runtime")
    runtime["metadata"]["ownerReferences"] = [other]
    conflict = status(409, "Conflict", "the object has been modified")
    api.replies(Reply(200, runtime), conflict, Reply(200, runtime), Reply(200))
    cluster.own(runtime, stored())
    owners = api.asked[-1].body["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == ["u", "uid-demo"]
    assert api.asked[-1].body["metadata"]["resourceVersion"] == "1"
    runtime["metadata"]["ownerReferences"] = owners
    api.replies(Reply(200, runtime))
    cluster.own(runtime, stored())
    assert api.paths("PATCH") == [f"{PATH}/runtime"] * 2  # none for the one that is owned already


@pytest.mark.parametrize("answer", [True, False])
def test_a_permission_is_asked_for(answer: bool, api: Api, cluster: Cluster) -> None:
    api.replies(Reply(201, {"status": {"allowed": answer}}))
    assert cluster.allowed("get", "pods", "log") is answer
    assert cluster.allowed("list", "nodes") is answer
    assert cluster.allowed("create", JOBS) is answer
    assert {asked.path for asked in api.asked} == {
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    }
    assert [asked.body["spec"]["resourceAttributes"] for asked in api.asked] == [
        {"namespace": "ml", "verb": "get", "resource": "pods", "subresource": "log"},
        {"verb": "list", "resource": "nodes"},
        {"namespace": "ml", "verb": "create", "group": "kubeflow.org", "resource": "pytorchjobs"},
    ]


def test_what_a_cluster_serves_is_told(api: Api, cluster: Cluster) -> None:
    served = {"kind": "APIResourceList", "resources": [{"name": "pytorchjobs"}, {"name": "x"}]}
    api.replies(Reply(200, {"gitVersion": "v1.36.2"}), Reply(200, served), Reply(404, b"no page"))
    assert cluster.version() == "v1.36.2"
    assert cluster.served("kubeflow.org/v1") == {"pytorchjobs", "x"}
    assert cluster.served("kubeflow.org/v1") == set()
    assert api.paths("GET") == ["/version", *["/apis/kubeflow.org/v1"] * 2]


def test_whether_a_secret_exists_is_asked_without_its_content(api: Api, cluster: Cluster) -> None:
    api.replies(Reply(200, {"metadata": {"name": "s"}}), status(404, "NotFound", "no", name="s"))
    assert cluster.exists("secrets", "s")
    assert not cluster.exists("secrets", "s")
    assert "as=PartialObjectMetadata" in api.asked[0].headers["Accept"]


def test_the_servers_clock_is_told(api: Api, cluster: Cluster, clock: Clock) -> None:
    assert cluster.server_time() is None
    cluster.get(JOBS, "demo")
    told = cluster.server_time()
    assert told is not None
    clock.wait(60)
    assert cluster.server_time() == told + 60


# ------------------------------------------------------------------------------------- watches


def change(kind: str, name: str, version: int) -> dict[str, Any]:
    return {"type": kind, "object": stored(name, version)}


def bookmark(version: int) -> dict[str, Any]:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}


def listing(version: int, *objects: dict[str, Any]) -> Reply:
    head = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJobList"}
    meta = {"resourceVersion": str(version)}
    return Reply(200, head | {"items": list(objects), "metadata": meta})


GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}

Changes = list[tuple[str, str, str]]


def told(cluster: Cluster, count: int, **more: Any) -> Changes:
    """The first so many changes: type, name, version."""
    events = islice(cluster.watch(JOBS, since="10", **more), count)
    return [
        (kind, obj["metadata"]["name"], obj["metadata"]["resourceVersion"]) for kind, obj in events
    ]


def test_a_watch_tells_changes_and_keeps_bookmarks_to_itself(api: Api, cluster: Cluster) -> None:
    first = Stream(change("ADDED", "a", 11), change("MODIFIED", "a", 12), bookmark(20))
    api.replies(first, Stream(change("DELETED", "a", 21), HANG))
    assert told(cluster, 3, labels="x=y") == [
        ("ADDED", "a", "11"),
        ("MODIFIED", "a", "12"),
        ("DELETED", "a", "21"),
    ]
    assert [asked.query["resourceVersion"] for asked in api.asked] == ["10", "20"]
    assert api.asked[0].query == {
        "watch": "true",
        "labelSelector": "x=y",
        "resourceVersion": "10",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "120",
    }


@pytest.mark.parametrize("end", [CUT, '{"type": "ADD', HANG])
def test_a_watch_goes_on_after_it_broke_ended_or_fell_silent(
    end: Any, api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydra_trainer.eks.cluster.MARGIN", 0.1)  # what the silent one is given
    api.replies(Stream(change("ADDED", "a", 11), end), Stream(change("ADDED", "b", 12), HANG))
    assert told(cluster, 2, timeout=0.1) == [("ADDED", "a", "11"), ("ADDED", "b", "12")]
    assert api.asked[-1].query["resourceVersion"] == "11"


def test_a_change_that_is_sent_again_is_told_once(api: Api, cluster: Cluster) -> None:
    again = change("ADDED", "a", 11)
    api.replies(Stream(again, CUT), Stream(again, change("ADDED", "b", 12), HANG))
    assert told(cluster, 2) == [("ADDED", "a", "11"), ("ADDED", "b", "12")]


@pytest.mark.parametrize("gone", [Stream(GONE), status(410, "Expired", "too old")])
def test_what_a_watch_has_missed_is_told_from_a_list(gone: Any, api: Api, cluster: Cluster) -> None:
    """A stayed, B changed, C went, D came, and E went and came back."""
    new = stored("e", 29)
    new["metadata"]["uid"] = "another"
    seen = Stream(change("ADDED", "c", 11), change("ADDED", "b", 12))
    now = listing(30, stored("a", 3), stored("b", 25), stored("d", 26), new)
    api.replies(seen, gone, now, Stream(change("MODIFIED", "d", 31), HANG))
    assert sorted(told(cluster, 8, known=[stored("a", 3), stored("e", 4)])) == sorted(
        [
            ("ADDED", "c", "11"),
            ("ADDED", "b", "12"),
            ("MODIFIED", "b", "25"),
            ("DELETED", "c", "11"),
            ("ADDED", "d", "26"),
            ("DELETED", "e", "4"),
            ("ADDED", "e", "29"),
            ("MODIFIED", "d", "31"),
        ]
    )
    assert api.asked[-1].query["resourceVersion"] == "30"


def test_a_watch_that_is_compacted_every_few_changes_misses_and_repeats_nothing(
    api: Api, cluster: Cluster
) -> None:
    """Every connection brings three changes, and the version after them is already forgotten."""
    versions = iter(range(11, 10**6))
    current: dict[str, int] = {}

    def answer(asked: Asked) -> Any:
        names = ("a", "b", "c", "d", "e", "f", "g")
        if "watch" not in asked.query:
            for _ in range(2):  # changes that only the list can tell
                version = next(versions)
                current[names[version % 7]] = version
            return listing(version, *(stored(name, v) for name, v in current.items()))
        changes = []
        for _ in range(3):
            version = next(versions)
            kind = "MODIFIED" if names[version % 7] in current else "ADDED"
            current[names[version % 7]] = version
            changes.append(change(kind, names[version % 7], version))
        return Stream(*changes, GONE)

    api.answer = answer
    seen = told(cluster, 400)
    versions_told = [int(version) for _, _, version in seen]
    assert sorted(versions_told) == list(range(11, 411))
    assert len({name for kind, name, _ in seen if kind == "ADDED"}) == 7
    assert sum(kind == "ADDED" for kind, _, _ in seen) == 7


@pytest.mark.parametrize(
    "end",
    [
        Stream(),
        Reply(503),
        CUT,
        Stream({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "x"}}),
        Stream("no JSON\n"),
    ],
)
def test_a_watch_that_brings_nothing_is_given_up_within_the_budget(
    end: Any, api: Api, connect: Connect, clock: Clock
) -> None:
    api.replies(end)
    with pytest.raises(LaunchError, match=r"`watch pytorchjobs in namespace ml` was tried 5 times"):
        told(connect(tries=5), 1)
    assert clock.waits == [0.25, 0.5, 1, 2]


def test_the_budget_of_a_watch_begins_anew_with_every_change(api: Api, connect: Connect) -> None:
    changes = [Stream(change("MODIFIED", "a", version)) for version in range(11, 21)]
    api.replies(*[reply for pair in zip([Reply(503)] * 10, changes, strict=True) for reply in pair])
    assert len(told(connect(tries=3), 10)) == 10


def test_a_watch_that_may_not_go_on_says_why(api: Api, cluster: Cluster) -> None:
    denied = {"kind": "Status", "code": 403, "message": 'User "ann" cannot watch resource'}
    api.replies(Stream({"type": "ERROR", "object": denied}))
    with pytest.raises(ApiError, match="ann may not watch pytorchjobs"):
        told(cluster, 1)


# ---------------------------------------------------------------------------------------- logs


def pod(phase: str = "Running", uid: str = "u", **state: Any) -> dict[str, Any]:
    """A pod whose container `pytorch` is in a state: running={} or waiting={} or terminated={}."""
    statuses = [{"name": "pytorch", "state": state}] if state else []
    return {
        "metadata": {"name": "p", "uid": uid, "resourceVersion": str(len(str(state)))},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


RUNNING = pod(running={})
ENDED = pod("Succeeded", terminated={})
NO_POD = status(404, "NotFound", 'pods "p" not found', name="p", kind="pods")


class Kubelet:
    """A server with one pod: `pods` are its states as it is asked for, `logs` its answers."""

    def __init__(self, api: Api, logs: list[Any], pods: list[Any], changes: Any = ()) -> None:
        self.logs, self.pods, self.changes = logs, pods, changes
        self.asked: list[dict[str, str]] = []
        api.answer = self.answer

    def answer(self, asked: Asked) -> Any:
        if asked.path.endswith("/log"):
            self.asked.append(asked.query)
            return self.logs.pop(0)
        if "watch" in asked.query:
            return Stream(*self.changes, HANG)
        state = self.pods.pop(0) if len(self.pods) > 1 else self.pods[0]
        if not asked.path.endswith("/pods"):
            return state if isinstance(state, Reply) else Reply(200, state)
        there = [] if isinstance(state, Reply) else [state]
        head = {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}}
        return Reply(200, head | {"items": there})


def stamped(second: int, *texts: str) -> str:
    """Log lines that were written in the same nanosecond."""
    return "".join(f"2026-11-24T12:00:{second:02}.000000007Z {text}\n" for text in texts)


def follow(cluster: Cluster, **more: Any) -> list[str]:
    return list(cluster.logs("p", container="pytorch", follow=True, **more))


def test_a_log_is_read(api: Api, cluster: Cluster) -> None:
    text = stamped(1, "one", "", "zwei: ü\r 3%") + "without a time\nunfinished"
    kubelet = Kubelet(api, [Stream(text)], [RUNNING])
    lines = cluster.logs("p", container="pytorch", tail=5, since="2026-11-24T00:00:00Z")
    assert list(lines) == ["one", "", "zwei: ü\r 3%", "without a time", "unfinished"]
    assert kubelet.asked == [
        {
            "container": "pytorch",
            "timestamps": "true",
            "tailLines": "5",
            "sinceTime": "2026-11-24T00:00:00Z",
        }
    ]


@pytest.mark.parametrize("drop", [CUT, "2026-11-24T12:00:02.0000"])
def test_a_log_that_broke_goes_on_without_a_gap_or_a_repeat(
    drop: str, api: Api, cluster: Cluster
) -> None:
    """Several lines have one time stamp, two of them the same text, and one was out of order."""
    start = stamped(1, "early") + stamped(9, "a", "same", "same") + stamped(8, "late")
    rest = stamped(9, "same", "b") + stamped(10, "c")
    resumed = start.partition("\n")[2] + rest
    parts = [Stream(start, drop), Stream(resumed), Stream(stamped(9, "b") + stamped(10, "c"))]
    kubelet = Kubelet(api, parts, [RUNNING, RUNNING, ENDED])
    expected = ["early", "a", "same", "same", "late", "same", "b", "c"]
    assert follow(cluster, tail=9) == expected
    assert [(asked.get("sinceTime"), asked.get("tailLines")) for asked in kubelet.asked] == [
        (None, "9"),
        ("2026-11-24T12:00:08Z", None),
        ("2026-11-24T12:00:09Z", None),
    ]


def test_what_a_log_cannot_bring_again_is_forgotten() -> None:
    told = Told()
    for second in range(1000):
        told.add(f"line {second}", second)
    assert set(told.again()) == {"line 998", "line 999"}


def test_a_log_that_breaks_at_every_line_is_complete(api: Api, cluster: Cluster) -> None:
    """The server sends what was written since a second, and breaks after one line more."""
    lines = [(5 + number // 4, f"line {number}") for number in range(40)]
    read = 0

    def answer(asked: Asked) -> Any:
        nonlocal read
        if not asked.path.endswith("/log"):
            state = RUNNING if read < len(lines) else ENDED
            listed = {"kind": "PodList", "apiVersion": "v1", "items": [state]}
            return Reply(200, listed | state)
        read = min(read + 1, len(lines))
        second = int(asked.query.get("sinceTime", "2026-11-24T12:00:00Z")[-3:-1])
        text = "".join(stamped(s, text) for s, text in lines[:read] if s >= second)
        return Stream(text, CUT) if asked.query.get("follow") else Stream(text)

    api.answer = answer
    assert follow(cluster) == [text for _, text in lines]


def test_a_pod_that_does_not_run_yet_is_waited_for_with_a_watch(api: Api, cluster: Cluster) -> None:
    waiting = {"type": "MODIFIED", "object": pod("Pending", waiting={"reason": "Creating"})}
    changes = [{"type": "ADDED", "object": pod("Pending")}, waiting]
    changes += [{"type": "MODIFIED", "object": RUNNING}]
    Kubelet(api, [Stream(stamped(1, "hello")), Stream()], [NO_POD, ENDED], changes)
    assert follow(cluster) == ["hello"]
    watched = [asked.query for asked in api.asked if "watch" in asked.query]
    assert [query["fieldSelector"] for query in watched] == ["metadata.name=p"]
    assert len(api.paths("GET")) == 5  # list, watch, log, pod, log


OTHERS = [NO_POD, pod(uid="another", running={}), pod("Succeeded", "another", terminated={})]


@pytest.mark.parametrize("state", OTHERS, ids=["gone", "another", "another that has ended"])
def test_following_ends_when_the_pod_is_gone(state: Any, api: Api, cluster: Cluster) -> None:
    Kubelet(api, [Stream(stamped(1, "hello"), CUT)], [RUNNING, state])
    assert follow(cluster) == ["hello"]


CRASHED = pod(waiting={"reason": "CrashLoopBackOff"})


@pytest.mark.parametrize(
    ("answers", "pods"),
    [([NO_POD], [RUNNING, RUNNING, NO_POD]), ([], [RUNNING, CRASHED, NO_POD])],
    ids=["running", "between two starts"],
)
def test_following_ends_when_the_pod_goes_between_two_requests(
    answers: list[Any], pods: list[Any], api: Api, cluster: Cluster
) -> None:
    Kubelet(api, [Stream(stamped(1, "hello"), CUT), *answers], pods, [CUT])
    assert follow(cluster) == ["hello"]


def test_following_goes_on_when_the_container_is_started_again(api: Api, cluster: Cluster) -> None:
    parts = [Stream(stamped(1, "one")), Stream(stamped(5, "two")), Stream()]
    changes = [{"type": "MODIFIED", "object": RUNNING}]
    Kubelet(api, parts, [RUNNING, CRASHED, CRASHED, ENDED], changes)
    assert follow(cluster) == ["one", "two"]


def test_a_silent_log_is_taken_up_anew_for_as_long_as_the_pod_runs(
    api: Api, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet may be silent from the start: it answers with the first line."""
    monkeypatch.setattr("hydra_trainer.eks.cluster.QUIET", 0.1)
    kubelet = Kubelet(api, [HANG] * 3 + [Stream(HANG)] * 3, [RUNNING])
    kubelet.logs += [Stream(stamped(1, "one"), HANG), Stream(stamped(1, "one", "two"))]
    lines = connect(tries=3).logs("p", container="pytorch", follow=True)
    assert [next(lines), next(lines)] == ["one", "two"]


@pytest.mark.parametrize(
    "message",
    [
        'container "pytorch" in pod "p" is waiting to start: ContainerCreating',
        "pod p does not have a host assigned",
        'previous terminated container "pytorch" in pod "p" not found',
    ],
)
def test_a_container_without_a_log_has_no_lines(message: str, api: Api, cluster: Cluster) -> None:
    api.replies(status(400, "BadRequest", message))
    assert list(cluster.logs("p", container="pytorch", previous=True)) == []
    assert api.asked[0].query["previous"] == "true"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (NO_POD, r"There is no pods p \(log\) in namespace ml"),
        (
            status(400, "BadRequest", "container x is not valid for pod p, choose one of: [a b]"),
            r"choose one of: \[a b\]",
        ),
    ],
)
def test_a_log_of_nothing_is_an_error(reply: Reply, words: str, api: Api, cluster: Cluster) -> None:
    api.replies(reply)
    with pytest.raises(ApiError, match=words):
        list(cluster.logs("p", container="x"))


# ------------------------------------------------------------------- against the embedded cluster


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    """Objects and an API server; what an operator or a kubelet does, the test does."""
    with Embedded(tmp_path / "home", controllers=False) as running:
        yield running


@pytest.fixture
def real(embedded: Embedded, clock: Clock) -> Cluster:
    return Cluster(kubeconfig=str(embedded.kubeconfig), retry=clock.retry())


def pytorchjob(name: str = "demo", digest: str = "d1", **labels: str) -> dict[str, Any]:
    """A job that the webhook lets pass."""
    template = {"spec": {"containers": [{"name": "pytorch", "image": "train:1"}]}}
    master = {"replicas": 1, "restartPolicy": "Never", "template": template}
    made = job(name, digest)
    made["metadata"]["labels"] = labels
    return made | {"spec": {"nprocPerNode": "1", "pytorchReplicaSpecs": {"Master": master}}}


CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "config"},
    "data": {"config.yaml": "a: 1"},
}


def test_the_life_of_a_job(real: Cluster) -> None:
    """Created, found, owning its configuration, watched, and gone with what it owns."""
    _, since = real.list(JOBS)
    assert real.create(pytorchjob(), dry_run=True)["metadata"]["uid"]
    assert real.get(JOBS, "demo") is None
    real.create(CONFIG_MAP)
    made = real.create(pytorchjob(team="a"))
    with pytest.raises(AlreadyExists):
        real.create(pytorchjob())
    real.own(CONFIG_MAP, made)
    real.own(CONFIG_MAP, made)
    owned = real.get("configmaps", "config")
    assert owned is not None
    owners = [owner["uid"] for owner in owned["metadata"]["ownerReferences"]]
    assert owners == [made["metadata"]["uid"]]
    assert [item["metadata"]["name"] for item in real.list(JOBS, labels="team=a")[0]] == ["demo"]
    assert real.list(JOBS, labels="team=b")[0] == []
    assert real.list(JOBS, fields="metadata.name=demo")[0][0]["kind"] == "PyTorchJob"
    real.delete(JOBS, "demo")
    real.delete(JOBS, "demo")
    assert real.get("configmaps", "config") is None
    events = islice(real.watch(JOBS, since=since), 2)
    assert [kind for kind, _ in events] == ["ADDED", "DELETED"]
    assert real.allowed("create", JOBS)
    assert real.served("kubeflow.org/v1") >= {"pytorchjobs"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"replicaz": 1}}, r'unknown field "spec.replicaz"'),
        (
            {"spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 2}}}},
            r"denied the request: .*: resources.nodes in the",
        ),
        ({"metadata": {"name": "Demo"}}, r"metadata.name.*\n  metadata.name: name in the config"),
        ({"metadata": {"name": "demo", "namespace": "none"}}, r"kubectl create namespace none"),
    ],
)
def test_the_embedded_cluster_refuses_what_a_real_one_does(
    change: dict[str, Any], words: str, embedded: Embedded
) -> None:
    namespace = change.get("metadata", {}).get("namespace")
    real = Cluster(namespace=namespace, kubeconfig=str(embedded.kubeconfig))
    with pytest.raises(ApiError) as caught:
        real.create(pytorchjob() | change)
    assert re.search(words, str(caught.value), re.DOTALL), str(caught.value)


def test_a_cluster_without_the_operator_says_which_one(tmp_path: Path) -> None:
    absent = frozenset({"kubeflow.org"})
    with Embedded(tmp_path, controllers=False, absent=absent) as bare:
        real = Cluster(kubeconfig=str(bare.kubeconfig))
        for ask in (lambda: real.create(pytorchjob()), lambda: real.list(JOBS)):
            with pytest.raises(ApiError, match="Install the Kubeflow training operator"):
                ask()
        assert real.served("kubeflow.org/v1") == set()


def test_a_user_without_rights_is_told_which_are_missing(embedded: Embedded) -> None:
    nobody = Cluster(kubeconfig=str(embedded.kubeconfig_of("nobody")))
    assert not nobody.allowed("create", JOBS)
    with pytest.raises(ApiError, match=r"^nobody may not create pytorchjobs .* deploy/rbac.yaml"):
        nobody.create(pytorchjob())
    with pytest.raises(ApiError, match=r"^nobody may not get pods/log in namespace default"):
        list(nobody.logs("p", container="pytorch"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset"),
        Fault("status", code=429, retry_after=3),
        Fault("status", code=500),
        Fault("status", code=503),
    ],
    ids=["reset", "429", "500", "503"],
)
def test_every_verb_survives_a_bad_moment(
    fault: Fault, embedded: Embedded, real: Cluster, clock: Clock
) -> None:
    verbs: list[Callable[[], Any]] = [
        lambda: real.create(pytorchjob()),
        lambda: real.get(JOBS, "demo"),
        lambda: real.list(JOBS),
        lambda: real.create(CONFIG_MAP),
        lambda: real.own(CONFIG_MAP, real.get(JOBS, "demo") or {}),
        lambda: real.allowed("get", "pods"),
        lambda: real.delete(JOBS, "demo"),
    ]
    for number, verb in enumerate(verbs, 1):
        embedded.faults.add(replace(fault))
        verb()
        assert len(clock.waits) == number


def test_a_thousand_creates_in_trouble_make_one_job_each(embedded: Embedded, real: Cluster) -> None:
    """A third of the replies are lost, and some requests, and the server is busy at times."""
    _, since = real.list(JOBS)
    path = r"/pytorchjobs$"
    for share, seed, fault in [
        (0.3, 1, Fault("lost")),
        (0.1, 2, Fault("reset")),
        (0.1, 3, Fault("status", code=503)),
        (0.1, 4, Fault("status", code=429, retry_after=1)),
    ]:
        fault = replace(fault, method="POST", path=path, times=None, share=share, seed=seed)
        embedded.faults.add(fault)
    for number in range(1000):
        made = real.create(pytorchjob(f"job-{number}"))
        assert made["metadata"]["name"] == f"job-{number}"
    names = [item["metadata"]["name"] for item in real.list(JOBS)[0]]
    assert sorted(names) == sorted(f"job-{number}" for number in range(1000))
    events = list(islice(real.watch(JOBS, since=since), 1000))
    assert {kind for kind, _ in events} == {"ADDED"}  # none was ever there twice
    assert sum(fault["came"] for fault in embedded.faults.list()) > 500


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault("compact", after=3, times=None)],
        [Fault("silent", after=5, times=4)],
        [Fault("compact", after=2, times=None, share=0.5), Fault("silent", after=3, times=3)],
        [Fault("reset", path="/pytorchjobs$", times=None, share=0.4)],
    ],
    ids=["none", "compact", "silent", "compact and silent", "reset"],
)
def test_a_watch_in_trouble_misses_and_repeats_nothing(
    faults: list[Fault], embedded: Embedded, real: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens, applying the changes gives what is there, and each version comes once."""
    monkeypatch.setattr("hydra_trainer.eks.cluster.MARGIN", 0.1)
    for number in range(5):
        real.create(pytorchjob(f"old-{number}"))
    found, since = real.list(JOBS)
    there = {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}
    embedded.faults.clear()
    for fault in faults:
        embedded.faults.add(replace(fault))
    writer = threading.Thread(target=write_much, args=(embedded,), daemon=True)
    writer.start()
    seen: set[tuple[str, str, str]] = set()
    for kind, obj in real.watch(JOBS, since=since, known=found, timeout=0.3):
        meta = obj["metadata"]
        key = (kind, meta["uid"], meta["resourceVersion"])
        assert key not in seen
        seen.add(key)
        if kind == "DELETED":
            del there[meta["uid"]]
        else:
            assert (meta["uid"] in there) == (kind == "MODIFIED")
            there[meta["uid"]] = meta["resourceVersion"]
        if meta["name"] == "zz":
            break
    writer.join()
    embedded.faults.clear()
    items = real.list(JOBS)[0]
    now = {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in items}
    assert there == now


def write_much(embedded: Embedded) -> None:
    """Create, change and delete jobs, the same names again and again; `zz` is the last."""
    store, resource = embedded.store, "pytorchjobs.kubeflow.org"
    for turn in range(30):
        name = f"job-{turn % 4}"
        store.create(resource, "default", pytorchjob(name))
        for label in ("a", "b"):
            store.change(resource, "default", name, partial(mark, label=f"{label}-{turn}"))
        if turn % 3:
            store.change(resource, "default", f"old-{turn % 5}", partial(mark, label=str(turn)))
        store.delete(resource, "default", name)
    store.delete(resource, "default", "old-0")
    store.create(resource, "default", pytorchjob("zz"))


def mark(found: dict[str, Any], label: str) -> None:
    found["metadata"]["labels"] = {"mark": label}


class Node:
    """A kubelet with one pod, `p`, that does what the test says."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        spec = {"containers": [{"name": "pytorch", "image": "train:1"}], "nodeName": "n"}
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
        self.pod = embedded.store.create("pods", "default", made)

    def write(self, *lines: str) -> None:
        file = log_file(self.embedded.home, self.pod, "pytorch", 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.writelines(f"2026-11-24T12:00:{line}\n" for line in lines)

    def set(self, phase: str, **state: Any) -> None:
        def change(found: dict[str, Any]) -> None:
            status = {"name": "pytorch", "restartCount": 0, "state": state}
            found["status"] = {"phase": phase, "containerStatuses": [status]}

        self.embedded.store.change("pods", "default", "p", change)


def test_a_log_in_trouble_is_complete(embedded: Embedded, real: Cluster) -> None:
    """The pod starts while it is waited for; every stream is cut off."""
    node = Node(embedded)
    texts = [f"line {number}" for number in range(500)]
    lines = [f"{n // 10:02}.{n // 3:09}Z stdout F {text}" for n, text in enumerate(texts)]
    embedded.faults.add(Fault("cut", after=3_001, times=None, share=0.9))
    embedded.faults.add(Fault("reset", path="/log$", times=None, share=0.3, seed=1))

    def run() -> None:
        node.write(*lines[:100])
        node.set("Running", running={})
        for start in range(100, 500, 50):
            node.write(*lines[start : start + 50])
        node.set("Succeeded", terminated={"exitCode": 0})

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(run)
        told = list(real.logs("p", container="pytorch", follow=True))
        done.result()
    assert told == texts
