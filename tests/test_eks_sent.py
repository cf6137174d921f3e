"""What launcher.dry_run=true prints is what is sent: the same objects, in the same order."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydra_trainer import app, launcher
from hydra_trainer.embedded import Embedded
from hydra_trainer.embedded.routes import Target
from hydra_trainer.embedded.wire import Request
from hydra_trainer.embedded.writing import Writing

from .conftest import REPOSITORY
from .test_eks_render import WORDS
from .world import runtime

Object = dict[str, Any]


class Sent:
    """The bodies of the requests that came to a server."""

    def __init__(self) -> None:
        self.created: list[Object] = []
        self.tried: list[Object] = []
        self.patches: list[Object] = []

    def note(self, target: Target, request: Request) -> None:
        body = request.json()
        if request.method == "PATCH":
            self.patches.append(body)
        elif "dryRun" in request.query:
            self.tried.append(body)
        else:
            self.created.append(body)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """What comes to a cluster that the kubeconfig names."""
    found = Sent()
    for name in ("create", "patch"):
        monkeypatch.setattr(Writing, name, noted(found, getattr(Writing, name)))
    with Embedded(tmp_path / "home", controllers=False) as cluster:
        cluster.store.create("namespaces", "", {"metadata": {"name": "team"}})
        theirs = runtime("true") | {"kind": "ClusterTrainingRuntime"}
        theirs["metadata"] = {"name": "torch-distributed"}
        cluster.store.create("clustertrainingruntimes.trainer.kubeflow.org", "", theirs)
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.chdir(REPOSITORY)
        yield found


def noted(sent: Sent, do: Callable[..., Any]) -> Callable[..., Any]:
    def noting(self: Writing, target: Target, request: Request, *more: Any) -> Any:
        sent.note(target, request)
        return do(self, target, request, *more)

    return noting


@pytest.mark.parametrize("case", WORDS)
def test_a_dry_run_prints_what_is_sent(
    case: str,
    sent: Sent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["launcher=eks", *WORDS[case], "launcher.image=registry/train:1"]
    words.append(f"hydra.run.dir={tmp_path}/run")
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "launcher.dry_run=true"])
    app.main()
    printed = capsys.readouterr().out
    assert (sent.created, sent.tried) == ([], [])

    monkeypatch.setattr(sys, "argv", ["train.py", *words, "launcher.detach=true"])
    app.main()
    items = {"apiVersion": "v1", "kind": "List", "items": sent.created}
    assert launcher.text(items) == printed
    assert sent.tried == ([] if "trainjob" in case else sent.created[-1:])
    assert len(sent.patches) == len(sent.created) - 1  # the job owns what it brought
    for patch in sent.patches:
        assert patch.keys() == {"metadata"}
        assert patch["metadata"].keys() <= {"ownerReferences", "resourceVersion"}


def test_a_dry_run_of_a_sweep_is_one_stream_for_kubectl(tmp_path: Path) -> None:
    words = ["-m", "launcher=eks", "launcher.dry_run=true", "optim.lr=1e-3,1e-4"]
    done = subprocess.run(
        [sys.executable, "train.py", *words, f"hydra.sweep.dir={tmp_path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [one["items"][-1]["kind"] for one in yaml.safe_load_all(done.stdout)]
    assert found == ["PyTorchJob", "PyTorchJob"]
