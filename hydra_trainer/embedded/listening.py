"""Connections on loopback, one thread for each: what the servers of cluster and service share."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from .wire import Broken, Malformed, Request, Response, Wire

LOOPBACK = "127.0.0.1"


class Listening:
    """Reads requests and writes what `_answer` returns. `start` before use, `stop` after.

    Args:
        port: one that was used before, to be used again if it is free; 0 for any.
    """

    wire: type[Wire] = Wire

    def __init__(self, port: int = 0) -> None:
        self.on_stop: Callable[[], None] = lambda: None
        """What to do when somebody asks for the end of the process."""
        self._ending = threading.Event()
        self._listener = _listener(port)
        self._lock = threading.Lock()
        self._wires: set[Wire] = set()
        self._busy = 0
        self._last = time.monotonic()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        threading.Thread(target=self._accept, name="embedded-accept", daemon=True).start()

    def stop(self) -> None:
        """Stop listening and break off what is going on."""
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

    def _answer(self, wire: Wire, request: Request) -> Response:
        """Raises Broken where there is to be no answer."""
        raise NotImplementedError

    def _refusal(self, error: Malformed) -> Response:
        """Return the answer to what could not be read."""
        return Response(str(error).encode(), error.code, "text/plain")

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # stopped, or too many open files for now
                self._ending.wait(0.05)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        wire = self.wire(connection)
        with self._lock:
            self._wires.add(wire)
        try:
            while not self._ending.is_set() and self._exchange(wire):
                pass
        except Broken:
            wire.reset()
        except Malformed as error:
            with contextlib.suppress(OSError):
                wire.write(self._refusal(error), keep=False)
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
            wire.write(self._answer(wire, request), keep=request.is_persistent)
        finally:
            with self._lock:
                self._busy -= 1
                self._last = time.monotonic()
        return request.is_persistent


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port), backlog=512)
    except OSError:
        if not port:
            raise
        return socket.create_server((LOOPBACK, 0), backlog=512)
