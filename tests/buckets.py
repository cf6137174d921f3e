"""A bucket of the embedded service, for the tests of what reads and writes S3."""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.objects import Objects, Settings
from hydra_trainer.retry import Retry

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine"}


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def retry(self) -> Retry:
        """Pauses at their bounds, which take no time."""
        return Retry(longest=5.0, sleep=self.sleep, clock=lambda: self.now, spread=lambda _, b: b)


class Bucket:
    """The bucket `bucket` of a service, and the objects below `run` in it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.endpoint = service.endpoint
        self.clock = Clock()
        service.objects.make("bucket")

    def objects(self, uri: str = "s3://bucket/run", **settings: Any) -> Objects:
        return Objects(uri, Settings(self.endpoint, **settings), retry=self.clock.retry())

    def names(self) -> list[str]:
        return [one.key for one in self.service.objects.list("bucket")]

    def count(self, operation: str) -> int:
        return self.service.calls["s3", operation]

    @property
    def unfinished(self) -> list[Path]:
        """The uploads in parts that have neither been completed nor aborted."""
        return list((self.service.home / "uploads").iterdir())


@contextlib.contextmanager
def bucket(home: Path) -> Iterator[Bucket]:
    with Service(home, limits=False) as service:
        yield Bucket(service)


class Script:
    """A server that sends what it is told to, one list of pieces for each request."""

    def __init__(self, *answers: bytes) -> None:
        self.asked: list[bytes] = []
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            for answer in self._answers:
                connection, _ = self._listener.accept()
                with connection:
                    self.asked.append(_request(connection))
                    connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()


def _request(connection: socket.socket) -> bytes:
    """Return a request with its body."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(1 << 16)
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def answer(status: str, body: str = "", *headers: str) -> bytes:
    """Return an answer, after which the connection ends."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", body]).encode()


def error(status: str, code: str, *more: str, message: str = "") -> bytes:
    """Return a refusal as S3 writes it."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{''.join(more)}</Error>"
    return answer(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}')


def without_aws(environ: Sequence[str] = tuple(os.environ)) -> list[str]:
    """Return the variables that say who one is at AWS, and where that is."""
    return [name for name in environ if name.startswith("AWS_")]


def in_a_fork(function: Callable[[], object]) -> bool:
    """Call a function in a child of fork(); return whether it returned something true in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import signal

            signal.alarm(20)  # where the child would wait for threads that it does not have
            code = 0 if function() else 2
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0
