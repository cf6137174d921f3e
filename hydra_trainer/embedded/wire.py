"""HTTP/1.1 over a socket, as far as API clients speak it: persistent connections, JSON bodies.

Written by hand for speed: the standard library's server takes longer to read the headers of a
request than this cluster takes to create a job.
"""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

HEAD_LIMIT = 64 << 10
BODY_LIMIT = 3 << 20
"""Bytes. The body: 3 MiB, as `--max-request-body-bytes` of a real API server."""


HEAR_OUT = 0.5  # seconds


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


DECODE = json.JSONDecoder(parse_constant=_no_number).decode
PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Malformed(Exception):
    """What came is no HTTP that can be answered with more than a status code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Broken(Exception):
    """The connection is to be broken off."""


@dataclass(frozen=True)
class Request:
    """`path` is decoded, `headers` are in lower case, `query` has the last value of each key."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_persistent(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"

    def json(self) -> Any:
        """Raises ValueError."""
        return DECODE(self.body.decode())


@dataclass(frozen=True)
class Response:
    """A whole answer, or one in pieces that come in time (`stream`)."""

    body: bytes = b""
    code: int = 200
    type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Iterator[bytes] | None = None


class Wire:
    """One connection of a client."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def read(self) -> Request | None:
        """Return the next request, None when the client has gone. Raises Malformed, OSError."""
        head = self._head()
        if head is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, target = first.partition(" ")
        target, _, protocol = target.rpartition(" ")
        if not protocol.startswith("HTTP/1."):
            raise Malformed(400, "not HTTP/1.1")
        headers = dict(_header(line) for line in lines)
        if protocol == "HTTP/1.0":
            headers["connection"] = "close"
        path, _, query = target.partition("?")
        fields = dict(parse_qsl(query, keep_blank_values=True))
        return Request(method, unquote(path), fields, headers, self._body(headers))

    def write(self, response: Response, *, keep: bool = True) -> int:
        """Send an answer; return how many bytes of a stream went out."""
        head = [f"HTTP/1.1 {response.code} {PHRASES.get(response.code, '')}"]
        head += [f"Content-Type: {response.type}", f"Date: {formatdate(usegmt=True)}"]
        head += [f"{name}: {value}" for name, value in response.headers.items()]
        if not keep:
            head.append("Connection: close")
        if response.stream is None:
            head.append(f"Content-Length: {len(response.body)}")
            self._socket.sendall(_encoded(head) + response.body)
            return 0
        head.append("Transfer-Encoding: chunked")
        self._socket.sendall(_encoded(head))
        return self._send_chunks(response.stream)

    def is_alive(self) -> bool:
        """Whether the client is still there, as far as one can tell without asking it."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def reset(self) -> None:
        """Break the connection off, as a proxy or a network does: the client gets no answer."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def hear_out(self) -> None:
        """Take in what a client still sends: with that unread, the answer may be lost."""
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.settimeout(HEAR_OUT)
        left = 4 * BODY_LIMIT
        while left > 0 and (part := self._socket.recv(1 << 18)):
            left -= len(part)

    def end(self) -> None:
        """Let the thread that reads or writes here come to an end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _send_chunks(self, pieces: Iterator[bytes]) -> int:
        sent = 0
        for piece in pieces:
            if piece:
                self._socket.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        self._socket.sendall(b"0\r\n\r\n")
        return sent

    def _head(self) -> bytes | None:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            if len(self._rest) > HEAD_LIMIT:
                raise Malformed(431, "the headers are too long")
            if not self._receive():
                return None
        head, self._rest = self._rest[:end], self._rest[end + 4 :]
        return head

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunked()
        try:
            size = int(headers.get("content-length", 0))
        except ValueError:
            raise Malformed(400, "Content-Length is no number") from None
        if size and headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self._take(size)

    def _chunked(self) -> bytes:
        body = b""
        while True:
            try:
                size = int(self._line().partition(b";")[0], 16)
            except ValueError:
                raise Malformed(400, "the size of a chunk is no number") from None
            body += self._take(size, len(body))
            self._line()
            if size == 0:
                return body

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            if len(self._rest) > HEAD_LIMIT or not self._receive():
                raise Malformed(400, "a chunk without an end")
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _take(self, size: int, before: int = 0) -> bytes:
        if not 0 <= size <= BODY_LIMIT - before:
            raise Malformed(413, f"Request entity too large: limit is {BODY_LIMIT}")
        parts, have = [self._rest], len(self._rest)
        while have < size:
            part = self._socket.recv(1 << 18)
            if not part:
                raise ConnectionResetError
            parts.append(part)
            have += len(part)
        everything = b"".join(parts)
        self._rest = everything[size:]
        return everything[:size]

    def _receive(self) -> bool:
        part = self._socket.recv(1 << 16)
        self._rest += part
        return bool(part)


def _header(line: str) -> tuple[str, str]:
    name, separator, value = line.partition(":")
    if not separator or not name or name != name.strip():
        raise Malformed(400, "a header without a name")
    return name.lower(), value.strip()


def _encoded(head: list[str]) -> bytes:
    return "\r\n".join([*head, "", ""]).encode("latin-1")
