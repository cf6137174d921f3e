"""An API server that answers what the test says: for faults that a good server does not have."""

import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    client: tuple[str, int]


@dataclass(frozen=True)
class Reply:
    """One answer: an object is sent as JSON, bytes as they are."""

    code: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    closes: bool = False  # the connection, without having said so


CUT = "cut"
"""As a reply: the connection is reset. In a stream: at that place."""
HANG = "hang"
"""As a reply, or in a stream: nothing comes any more, until the client goes away."""


class Stream:
    """A chunked answer: objects are sent as lines of JSON, text as it is."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class Api(ThreadingHTTPServer):
    """An API server whose answers are the test's. `asked` is what came in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Any] = lambda asked: Reply()

    def replies(self, *replies: Any) -> None:
        """Give these answers, one after the other, and the last one from then on."""
        left = list(replies)
        self.answer = lambda asked: left.pop(0) if len(left) > 1 else left[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self, method: str) -> list[str]:
        return [asked.path for asked in self.asked if asked.method == method]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Api

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        parts = urlsplit(self.path)
        asked = Asked(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            dict(self.headers),
            json.loads(text) if text else None,
            self.client_address,
        )
        self.server.asked.append(asked)
        reply = self.server.answer(asked)
        if reply == CUT:
            self.reset()
        elif reply == HANG:
            self.connection.recv(1)
            self.close_connection = True
        elif isinstance(reply, Stream):
            self.stream(reply)
        else:
            self.give(reply)

    do_POST = do_PATCH = do_DELETE = do_GET

    def give(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.code)
        for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or reply.closes

    def stream(self, reply: Stream) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in reply.parts:
            if part == CUT:
                return self.reset()
            if part == HANG:
                self.connection.recv(1)
                self.close_connection = True
                return None
            data = part.encode() if isinstance(part, str) else json.dumps(part).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
        return None

    def reset(self) -> None:
        """Close the connection as a crash does: the client gets a reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""
