"""HTTP as S3 needs it: large bodies, answers from files, and the head of an answer alone."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import BinaryIO

from hydra_trainer.embedded.wire import BODY_LIMIT, PHRASES, Malformed, Response, Wire

PUT_LIMIT = 5 << 30
"""Bytes of a PUT to S3, or of one part."""

PIECE = 1 << 20
DRIP = 0.02


@dataclass(frozen=True)
class Content(Response):
    """An answer from a file, whose `size` bytes go out from where it stands; without it, its head.

    The file is closed when they are sent. With a `limit`, no more than that many bytes are, and the
    connection breaks off; or, if it `stalls`, stays until the client has enough of it; or, if it
    `drips`, the rest comes at one byte each DRIP seconds.
    """

    file: BinaryIO | None = None
    size: int = 0
    limit: int | None = None
    stalls: bool = False
    drips: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class LargeWire(Wire):
    """A connection on which bodies may be large."""

    def write(self, response: Response, *, keep: bool = True) -> int:
        if not isinstance(response, Content):
            return super().write(response, keep=keep)
        head = [f"HTTP/1.1 {response.code} {PHRASES.get(response.code, '')}"]
        head += [f"Date: {formatdate(usegmt=True)}", f"Content-Length: {response.size}"]
        head += [f"Content-Type: {response.type}"]
        head += [f"{name}: {value}" for name, value in response.headers.items()]
        if not keep:
            head.append("Connection: close")
        self._socket.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
        if response.file is None:
            return 0
        with response.file as file:
            limit = response.size if response.limit is None else response.limit
            left = response.size - self._send(file, min(response.size, limit))
            if left and response.stalls:
                self._socket.recv(1)  # until the client has gone
            while left and response.drips and (piece := file.read(1)):
                self._socket.sendall(piece)
                time.sleep(DRIP)
                left -= 1
        if left:
            raise ConnectionResetError
        return response.size

    def _send(self, file: BinaryIO, size: int) -> int:
        """Send bytes of a file; return how many, which are fewer when it is shorter by now."""
        # Not sendfile(): it cannot send what is shorter, nor tell so.
        sent = 0
        while sent < size and (piece := file.read(min(PIECE, size - sent))):
            self._socket.sendall(piece)
            sent += len(piece)
        return sent

    def _take(self, size: int, before: int = 0) -> bytes:
        if not 0 <= size <= PUT_LIMIT - before:
            raise Malformed(413, "EntityTooLarge")
        pieces = [min(BODY_LIMIT, size - at) for at in range(0, size, BODY_LIMIT)]
        return b"".join([super(LargeWire, self)._take(piece) for piece in pieces])
