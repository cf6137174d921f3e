"""The server: connections on loopback, one thread for each."""

import contextlib
import socket
import threading
import time

from hydra_trainer.embedded.wire import Malformed, Response

from .api import Api, Broken
from .wire import LargeWire

LOOPBACK = "127.0.0.1"


class Server:
    """Serves an API. `start` before use, `stop` after.

    Args:
        port: one that was used before, to be used again if it is free; 0 for any.
    """

    def __init__(self, api: Api, port: int = 0) -> None:
        self._api = api
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._wires: set[LargeWire] = set()
        self._busy = 0
        self._last = time.monotonic()
        try:
            self._listener = socket.create_server((LOOPBACK, port), backlog=512)
        except OSError:
            self._listener = socket.create_server((LOOPBACK, 0), backlog=512)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        threading.Thread(target=self._accept, name="sagemaker-accept", daemon=True).start()

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

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # stopped, or too many open files for now
                self._ending.wait(0.05)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        wire = LargeWire(connection)
        with self._lock:
            self._wires.add(wire)
        try:
            while not self._ending.is_set() and self._exchange(wire):
                pass
        except Broken:
            wire.reset()
        except Malformed as error:
            with contextlib.suppress(OSError):
                wire.write(Response(str(error).encode(), error.code, "text/plain"), keep=False)
        except OSError:
            pass  # the client has gone
        finally:
            with self._lock:
                self._wires.discard(wire)
            wire.close()

    def _exchange(self, wire: LargeWire) -> bool:
        """Answer one request; return whether there may be another one."""
        request = wire.read()
        if request is None:
            return False
        with self._lock:
            self._busy += 1
        try:
            wire.write(self._api.answer(request), keep=request.is_persistent)
        finally:
            with self._lock:
                self._busy -= 1
                self._last = time.monotonic()
        return request.is_persistent
