"""A small Kubernetes cluster on this machine, on which pods are local processes.

    from hydra_trainer import embedded
    kubeconfig = embedded.start(Path("~/.cache/hydra-trainer/embedded").expanduser())

It needs nothing but Python. `kubectl` and the official client work against it, jobs of the Kubeflow
operators run in it, and it is what the tests of launcher=eks run against. Its process ends by
itself when no pod runs and nobody has asked for anything for five minutes; the objects stay.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import kubeconfig
from .background import Background
from .home import KUBECONFIG

if TYPE_CHECKING:
    from .cluster import Embedded

__all__ = ["Embedded", "start", "stop"]


def __getattr__(name: str) -> Any:
    """Import the cluster when somebody has it in his own process: a start does not need it."""
    if name != "Embedded":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from .cluster import Embedded

    return Embedded


def _url(home: Path) -> str | None:
    entry = kubeconfig.read(home / KUBECONFIG)
    return None if entry is None else entry.server


_CLUSTERS = Background(__name__, "cluster", _url, "/readyz")


def start(home: Path) -> Path:
    """Return the kubeconfig of the cluster in a folder, whose process is started if none runs.

    Its context is named `embedded`, with the namespace `default`. Raises LaunchError when the
    process does not come up.
    """
    _CLUSTERS.start(home)
    return home / KUBECONFIG


def stop(home: Path) -> None:
    """End the process of the cluster in a folder, and its pods.

    Returns when it has ended; nothing happens when there is none. Raises LaunchError when it had to
    be killed.
    """
    _CLUSTERS.stop(home)
