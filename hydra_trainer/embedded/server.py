"""The server: connections on loopback, one thread for each."""

import contextlib
import json
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

from .access import Access
from .api import TOKEN_PREFIX, Api, Broken
from .faults import Faults
from .kubeconfig import Entry
from .refusals import ApiError
from .store import Store
from .wire import Malformed, Request, Response, Wire

LOOPBACK = "127.0.0.1"

COMPRESS_FROM = 128 << 10
"""Bytes of an answer that is compressed for clients that accept it, as a real API server does."""


class Server:
    """Serves a store. `start` before use, `stop` after.

    Args:
        home: the folder with the tokens and the logs.
        port: one that was used before, to be used again if it is free; 0 for any.
        absent: API groups that the cluster is to be without.
    """

    def __init__(
        self,
        store: Store,
        home: Path,
        *,
        port: int = 0,
        absent: frozenset[str] = frozenset(),
    ) -> None:
        self.store = store
        self.faults = Faults()
        self.access = Access(store, home / "tokens.json")
        self._ending = threading.Event()
        self._api = Api(store, self.access, self.faults, home, absent, self._ending)
        self._listener = _listener(port)
        self._lock = threading.Lock()
        self._wires: set[Wire] = set()
        self._busy = 0
        self.on_stop: Callable[[], None] = lambda: None
        """What to do when somebody asks for the end of the process."""
        self._last = time.monotonic()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def entry(self, token: str | None = None) -> Entry:
        """Return what a kubeconfig says of this server, for the owner or who has a token."""
        token = token or self.access.owner()
        return Entry(f"http://{LOOPBACK}:{self.port}{TOKEN_PREFIX}{token}", token)

    def start(self) -> None:
        threading.Thread(target=self._accept, name="embedded-accept", daemon=True).start()

    def stop(self) -> None:
        """Stop listening and break off what is going on. The store stays open."""
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for wire in self._wires:
                wire.end()

    def idle(self) -> float:
        """Return the seconds since somebody asked for something; 0 while a request is served."""
        with self._lock:
            return 0.0 if self._busy else time.monotonic() - self._last

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # stopped, or too many open files for now
                self._ending.wait(0.05)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        wire = Wire(connection)
        with self._lock:
            self._wires.add(wire)
        try:
            while not self._ending.is_set() and self._exchange(wire):
                pass
        except Broken:
            wire.reset()
        except Malformed as error:
            with contextlib.suppress(OSError):
                wire.write(_refusal(error), keep=False)
                wire.hear_out()
        except OSError:
            pass  # the client has gone
        finally:
            with self._lock:
                self._wires.discard(wire)
            wire.close()

    def _exchange(self, wire: Wire) -> bool:
        """Answer one request; return whether there may be another one."""
        request = wire.read()
        if request is None:
            return False
        with self._lock:
            self._busy += 1
        try:
            response = self._answer(wire, request)
            wire.write(_compressed(request, response), keep=request.is_persistent)
        finally:
            with self._lock:
                self._busy -= 1
                self._last = time.monotonic()
        return request.is_persistent

    def _answer(self, wire: Wire, request: Request) -> Response:
        try:
            response = self._api.answer(request, wire.is_alive)
            if request.path.endswith("/embedded/stop") and response.code == 200:
                self.on_stop()
            return response
        except (Broken, OSError):
            raise
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"Internal error occurred: {type(error).__name__}: {error}"
            status = ApiError(500, "InternalError", text).status()
            return Response(json.dumps(status).encode(), 500)


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port), backlog=512)
    except OSError:
        if not port:
            raise
        return socket.create_server((LOOPBACK, 0), backlog=512)


def _refusal(error: Malformed) -> Response:
    """Return the answer to what could not be read: a Status if it was HTTP, and only too long."""
    if error.code != 413:
        return Response(str(error).encode(), error.code, "text/plain")
    status = ApiError(413, "RequestEntityTooLarge", str(error)).status()
    return Response(json.dumps(status).encode(), 413)


def _compressed(request: Request, response: Response) -> Response:
    wanted = "gzip" in request.headers.get("accept-encoding", "")
    if not wanted or len(response.body) < COMPRESS_FROM:
        return response
    squeeze = zlib.compressobj(level=1, wbits=31)
    body = squeeze.compress(response.body) + squeeze.flush()
    headers = {**response.headers, "Content-Encoding": "gzip"}
    return Response(body, response.code, response.type, headers)
