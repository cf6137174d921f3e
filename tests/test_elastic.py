"""What is added to torchrun's agent, where no job is needed to see it."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend as backend

from hydra_trainer import elastic


@pytest.fixture
def connecting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, int]]:
    """Connect to a first machine that cannot be reached some times; count the tries."""

    def connect(late: int, is_host: bool, patience: float = 100.0) -> tuple[Any, int]:
        tries = 0

        def make(params: RendezvousParameters) -> str:
            nonlocal tries
            tries += 1
            if tries <= late:
                raise RendezvousConnectionError("refused")
            return "store"

        seconds = iter(range(1000))
        monkeypatch.setattr(backend, "_create_tcp_store", make)
        monkeypatch.setattr(elastic.time, "sleep", lambda pause: None)
        monkeypatch.setattr(elastic.time, "monotonic", lambda: next(seconds))
        elastic._await_host(patience)
        config = {"is_host": str(is_host).lower()}
        params = RendezvousParameters("c10d", "algo-1:29500", "run", 1, 2, **config)
        try:
            return backend._create_tcp_store(params), tries
        except RendezvousConnectionError:
            return None, tries

    return connect


def test_a_machine_waits_for_a_first_one_that_comes_late(
    connecting: Callable[..., tuple[Any, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert connecting(late=30, is_host=False) == ("store", 31)
    assert "algo-1:29500 cannot be reached yet" in capsys.readouterr().err


def test_it_does_not_wait_for_ever(connecting: Callable[..., tuple[Any, int]]) -> None:
    assert connecting(late=900, is_host=False, patience=20) == (None, 21)


def test_the_first_machine_does_not_wait_for_itself(
    connecting: Callable[..., tuple[Any, int]],
) -> None:
    assert connecting(late=1, is_host=True) == (None, 1)
