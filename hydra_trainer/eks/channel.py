"""Connections to one API server: HTTP/1.1 over sockets, TLS as the kubeconfig has it.

The official client's own connections are not used, for two reasons. With Python 3.13 they refuse
the certificates of EKS (https://github.com/kubernetes-client/python/issues/2394). And a create
through them takes 0.4 ms of processor time, as much as the server of the embedded cluster takes
for it; here it is 0.18 ms, most of it for JSON.
"""

import base64
import contextlib
import http.client
import re
import select
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Generator, Mapping
from io import BufferedReader
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from weakref import WeakSet

from hydra_trainer.errors import LaunchError

CONNECT = 10.0
"""Seconds for a connection to come about."""

IDLE = 64  # connections that are kept open, for callers with threads
CHUNK = 1 << 16
LINE = 1 << 16  # bytes that a line of a head may have
STATUS = re.compile(rb"HTTP/1\.\d (\d{3})")
PROXIES = ("http", "socks5", "socks5h")


class Unreachable(Exception):
    """No connection came about; `__cause__` says why. Nothing was sent."""


class Broken(Exception):
    """The connection was lost, or brought nonsense. The server may have acted."""


class Silent(Exception):
    """Nothing came for as long as it may. The server may have acted, or be about to."""


class Route:
    """The way to a server, and the connections that are open there. May be shared by threads.

    Args:
        server: https://host:port/prefix, or http.
        settings: the official client's Configuration: certificates, server name, proxy.

    Raises OSError for certificates that cannot be read, LaunchError for a proxy of another kind.
    """

    def __init__(self, server: str, settings: Any) -> None:
        self._parts = urlsplit(server)
        self._tls = tls(settings) if self._parts.scheme == "https" else None
        self._name = getattr(settings, "tls_server_name", None) or self._parts.hostname
        self._proxy = _proxy(server, settings)
        self._idle: deque[_Channel] = deque()
        self._all: WeakSet[_Channel] = WeakSet()
        self._closed = False

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        silence: float,
    ) -> "Reply":
        """Send a request and return the head of the reply; the rest is read from it.

        Raises Unreachable, Broken or, when nothing comes for so many seconds, Silent.
        """
        channel = self._free() or self._open()
        try:
            channel.sock.settimeout(silence)
            # One piece, for one packet: a server that gets two wakes up twice.
            channel.sock.sendall(self._head(method, path, headers, body) + (body or b""))
            return Reply(self, channel)
        except (OSError, ValueError, Broken) as error:
            channel.close()
            raise lost(error) from error

    def close(self) -> None:
        """End all connections, whatever thread is reading from them; new ones end at once."""
        self._closed = True
        for channel in [*self._all]:
            channel.end()

    def keep(self, channel: "_Channel") -> None:
        """Take back a connection whose reply was read to the end."""
        if len(self._idle) < IDLE:
            self._idle.append(channel)
        else:
            channel.close()

    def _head(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        lines = [f"{method} {self._parts.path}{path} HTTP/1.1", f"Host: {self._parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _free(self) -> "_Channel | None":
        """Return an idle connection that the server has not closed since."""
        while True:
            try:
                channel = self._idle.pop()
            except IndexError:
                return None
            if not channel.has_ended():
                return channel
            channel.close()

    def _open(self) -> "_Channel":
        host, port = self._parts.hostname or "", self._parts.port or (443 if self._tls else 80)
        try:
            sock = _connected(host, port, urlsplit(self._proxy or ""))
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_hostname=self._name)
            channel = _Channel(sock)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error)) from error
        self._all.add(channel)
        if self._closed:
            channel.end()
        return channel


class _Channel:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.stream = sock.makefile("rb")

    def has_ended(self) -> bool:
        """Whether the server closed it while it was idle, or says something nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def end(self) -> None:
        """Let whoever reads from it find its end; he closes it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.stream.close()
        self.sock.close()


class Reply:
    """A reply, of which the head has been read: read the body whole, or as it comes.

    The names of `headers` are in lower case.
    """

    def __init__(self, route: Route, channel: _Channel) -> None:
        self._route = route
        self._channel = channel
        self._stream = channel.stream
        self.status, self.headers = _head(self._stream)
        while self.status < 200:  # 100 Continue: the reply is yet to come
            self.status, self.headers = _head(self._stream)

    def read(self) -> bytes:
        """Return the whole body. Raises Broken or Silent."""
        length = self.headers.get("content-length")
        try:
            body = b"".join(self._pieces()) if length is None else self._exactly(int(length))
            if self.headers.get("content-encoding") == "gzip":
                body = zlib.decompress(body, wbits=zlib.MAX_WBITS | 16)
        except (OSError, ValueError, zlib.error, Broken) as error:
            self._channel.close()
            raise lost(error) from error
        has_end = length is not None or "transfer-encoding" in self.headers
        if has_end and self.headers.get("connection", "").lower() != "close":
            self._route.keep(self._channel)
        else:
            self._channel.close()
        return body

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the body as it comes, to its end. Raises Broken or Silent."""
        try:
            yield from self._pieces()
        except (OSError, ValueError, Broken) as error:
            raise lost(error) from error
        finally:
            self._channel.close()

    def _pieces(self) -> Generator[bytes, None, None]:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            while piece := self._stream.read1(CHUNK):
                yield piece
            return
        while left := int(_line(self._stream).partition(b";")[0], 16):
            while left:
                piece = self._stream.read1(min(left, CHUNK))
                if not piece:
                    raise Broken("it was closed in the middle of a reply")
                left -= len(piece)
                yield piece
            _line(self._stream)
        while _line(self._stream):
            pass  # trailers

    def _exactly(self, length: int) -> bytes:
        body = self._stream.read(length)
        if len(body) < length:
            raise Broken("it was closed in the middle of a reply")
        return body


def _head(stream: BufferedReader) -> tuple[int, dict[str, str]]:
    """Read the first line and the headers of a reply."""
    status = STATUS.match(_line(stream))
    if status is None:
        raise Broken("what answers there does not speak HTTP")
    headers = {}
    while line := _line(stream):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(status[1]), headers


def _line(stream: BufferedReader) -> bytes:
    line = stream.readline(LINE)
    if not line.endswith(b"\n"):
        raise Broken("it was closed without a reply" if len(line) < LINE else "a line has no end")
    return line.rstrip(b"\r\n")


def _connected(host: str, port: int, way: SplitResult) -> socket.socket:
    """Return a connection to a host: straight there, or by a proxy."""
    if way.scheme == "http":
        tunnel = http.client.HTTPConnection(way.hostname or "", way.port or 80, timeout=CONNECT)
        tunnel.set_tunnel(host, port, _credentials(way.username, way.password))
        tunnel.connect()
        return tunnel.sock
    if way.scheme:
        return _through_socks(host, port, way)
    return socket.create_connection((host, port), timeout=CONNECT)


def _through_socks(host: str, port: int, way: SplitResult) -> socket.socket:
    try:
        import socks
    except ImportError as error:
        raise OSError("a SOCKS proxy needs another package: pip install PySocks") from error
    opened: socket.socket = socks.create_connection(
        (host, port),
        timeout=CONNECT,
        proxy_type=socks.SOCKS5,
        proxy_addr=way.hostname,
        proxy_port=way.port or 1080,
        proxy_rdns=way.scheme == "socks5h",
        proxy_username=way.username,
        proxy_password=way.password,
    )
    return opened


def tls(settings: Any) -> ssl.SSLContext:
    """Return what decides whether a server is the right one. Raises OSError for bad files.

    The chain, the dates and the name are checked. What Python 3.13 checks besides is the form of
    certificates, which those that EKS makes for its clusters do not have.
    """
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def _proxy(server: str, settings: Any) -> str | None:
    from kubernetes.client.rest import should_bypass_proxies

    if not settings.proxy or should_bypass_proxies(server, settings.no_proxy or ""):
        return None
    way = urlsplit(str(settings.proxy))
    if way.scheme not in PROXIES:
        raise LaunchError(
            f"The way to the cluster is by the proxy {way.scheme}://{way.hostname}, but it has to "
            f"be one of {', '.join(PROXIES)}. Change proxy-url in the kubeconfig, or HTTPS_PROXY."
        )
    return way.geturl()


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def lost(error: Exception) -> Broken | Silent:
    """Return what it means that reading or writing failed."""
    if isinstance(error, TimeoutError):
        return Silent(str(error))
    return Broken(str(error) or type(error).__name__)
