"""A cluster with a thousand jobs, who waits for them, and a client that is as short as one can be.

    python -m benchmarks.crowd serve HOME
    python -m benchmarks.crowd wait KUBECONFIG NAME ...

Each is a process of its own, so that the memory of the one is not taken for that of the other, and
imports nothing but what it is there for.
"""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).parent.parent
NAMESPACE = "default"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"


class Crowded:
    """A cluster whose jobs nobody runs: they are what the benchmark makes of them."""

    def __init__(self, home: str) -> None:
        self._process = _start("serve", home)
        self.kubeconfig = Path(self._read())

    def asked(self) -> dict[str, int]:
        """Return how often the package's client has asked so far, by verb."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self._read()))

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def crowded() -> Iterator[Crowded]:
    with tempfile.TemporaryDirectory() as home:
        cluster = Crowded(home)
        try:
            yield cluster
        finally:
            cluster.stop()


class Bare:
    """http.client and one connection: no retries, and no look at what comes back."""

    def __init__(self, kubeconfig: Path) -> None:
        from hydra_trainer.embedded import kubeconfig as kubeconfigs

        entry = kubeconfigs.read(kubeconfig)
        assert entry
        url = urlsplit(entry.server)
        self._connection = http.client.HTTPConnection(url.hostname or "", url.port)
        self._root = url.path

    def send(self, method: str, path: str, body: bytes, kind: str = "application/json") -> bytes:
        self._connection.request(method, self._root + path, body, {"Content-Type": kind})
        return self._connection.getresponse().read()

    def post(self, item: dict[str, Any], body: bytes, query: str = "") -> bytes:
        return self.send("POST", _path(item) + query, body)

    def patch(self, item: dict[str, Any], body: dict[str, Any], kind: str, part: str = "") -> None:
        path = f"{_path(item)}/{item['metadata']['name']}{part}"
        self.send("PATCH", path, json.dumps(body).encode(), kind)


@contextlib.contextmanager
def waiting(kubeconfig: Path, names: list[str]) -> "Iterator[subprocess.Popen[str]]":
    """A process that waits for jobs, and then prints how they ended, and its peak in MiB."""
    process = _start("wait", str(kubeconfig), *names)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", __name__, *words],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _path(item: dict[str, Any]) -> str:
    version = item["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{NAMESPACE}/{item['kind'].lower()}s"


# --------------------------------------------------------------------------- in their own processes


def serve(home: str) -> None:
    """Be a server that counts, until the standard input ends; a line there asks for the counts."""
    from hydra_trainer.embedded import Embedded
    from hydra_trainer.embedded.routes import verb

    asked: Counter[str] = Counter()
    with Embedded(Path(home), controllers=False) as cluster:
        api = cluster.server._api
        do = api._do

        def counted(wanted: Any, request: Any, *others: Any) -> Any:
            if request.headers.get("user-agent", "").startswith("hydra-trainer/"):
                asked[verb(request, wanted)] += 1
            return do(wanted, request, *others)

        api._do = counted  # type: ignore[method-assign, assignment]
        print(cluster.kubeconfig, flush=True)
        for _ in sys.stdin:
            print(json.dumps(asked), flush=True)


def wait(kubeconfig: str, *names: str) -> None:
    os.environ["KUBECONFIG"] = kubeconfig
    from hydra_trainer.job import JobHandle
    from hydra_trainer.launchers.eks import EksLauncher

    handles = [JobHandle("eks", f"embedded/{NAMESPACE}/{name}") for name in names]
    ended = EksLauncher(context="embedded", namespace=NAMESPACE).wait_all(handles)
    states = Counter(str(status.state) for status in ended.values())
    results = sum(status.result is not None for status in ended.values())
    # Not ru_maxrss, in which a new process has the peak of the one that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(json.dumps({"states": states, "results": results, "peak": int(peak[1]) / 1024}))


if __name__ == "__main__":
    (serve if sys.argv[1] == "serve" else wait)(*sys.argv[2:])
