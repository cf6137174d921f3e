"""Connections to one API server: HTTP of the standard library, TLS as the kubeconfig has it.

The official client's own connections are not used, for two reasons. With Python 3.13 they refuse
the certificates of EKS (https://github.com/kubernetes-client/python/issues/2394). And they take
twice the processor time of these, as long as an API server on loopback takes to create an object.
"""

import base64
import http.client
import select
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from hydra_trainer.errors import LaunchError

CONNECT = 10.0
"""Seconds for a connection to come about."""

IDLE = 64  # connections that are kept open, for callers with threads
CHUNK = 1 << 16
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
    """

    def __init__(self, server: str, settings: Any) -> None:
        parts = urlsplit(server)
        self._host = parts.hostname or ""
        self._port = parts.port or {"https": 443}.get(parts.scheme, 80)
        self._address = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path
        self._name = getattr(settings, "tls_server_name", None) or self._host
        self._tls = tls(settings) if parts.scheme == "https" else None
        self._proxy = _proxy(server, settings)
        self._idle: deque[_Channel] = deque()

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
            # In one piece: http.client sends the body by itself, and lets the server wake up twice.
            channel.sock.sendall(self._head(method, path, headers, body) + (body or b""))
            response = http.client.HTTPResponse(channel.sock, method=method)
            response.begin()
            return Reply(self, channel, response)
        except (OSError, http.client.HTTPException) as error:
            channel.close()
            raise _lost(error) from error

    def _head(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"Host: {self._address}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def keep(self, channel: "_Channel") -> None:
        """Take back a connection whose reply was read to the end."""
        if len(self._idle) < IDLE:
            self._idle.append(channel)
        else:
            channel.close()

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
        channel = _Channel(self._host, self._port, self._tls, self._name, self._proxy)
        try:
            channel.connect()
        except (OSError, http.client.HTTPException) as error:
            channel.close()
            raise Unreachable(str(error)) from error
        return channel


class Reply:
    """A reply, of which the head is there: read it whole, or piece by piece as it comes."""

    def __init__(
        self, route: Route, channel: "_Channel", response: http.client.HTTPResponse
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self._route = route
        self._channel = channel
        self._response = response

    def read(self) -> bytes:
        """Return the whole body. Raises Broken or Silent."""
        try:
            body = self._response.read()
            if self.headers.get("Content-Encoding") == "gzip":
                body = zlib.decompress(body, wbits=zlib.MAX_WBITS | 16)
        except (OSError, http.client.HTTPException, zlib.error) as error:
            self._channel.close()
            raise _lost(error) from error
        if self._response.will_close:
            self._channel.close()
        else:
            self._route.keep(self._channel)
        return body

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the body as it comes, to its end. Raises Broken or Silent."""
        try:
            while piece := self._response.read1(CHUNK):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise _lost(error) from error
        finally:
            self._channel.close()


class _Channel(http.client.HTTPConnection):
    """One connection, through a proxy and TLS where they are."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, name: str, proxy: str | None
    ) -> None:
        self._way = urlsplit(proxy or "")
        self._there = (host, port)
        self._tls_context = tls
        self._tls_name = name
        if self._way.scheme == "http":
            super().__init__(self._way.hostname or "", self._way.port or 80, timeout=CONNECT)
            self.set_tunnel(host, port, _credentials(self._way.username, self._way.password))
        else:
            super().__init__(host, port, timeout=CONNECT)

    def connect(self) -> None:
        """Open the connection. Raises OSError, of which ssl.SSLError is a kind."""
        if self._way.scheme.startswith("socks"):
            self.sock = self._through_socks()
        else:
            super().connect()
        if self._tls_context:
            self.sock = self._tls_context.wrap_socket(self.sock, server_hostname=self._tls_name)

    def has_ended(self) -> bool:
        """Whether an idle connection was closed by the server, or has something nobody asked for"""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def _through_socks(self) -> socket.socket:
        """Return a connection through a SOCKS 5 proxy, which looks up the name where it is."""
        try:
            import socks
        except ImportError as error:
            raise OSError("a SOCKS proxy needs another package: pip install PySocks") from error
        way = self._way
        opened: socket.socket = socks.create_connection(
            self._there,
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
    proxy = str(settings.proxy)
    if urlsplit(proxy).scheme not in PROXIES:
        raise LaunchError(
            f"The way to the cluster is by the proxy {proxy}, but it has to be one of "
            f"{', '.join(PROXIES)}. Change proxy-url in the kubeconfig, or HTTPS_PROXY."
        )
    return proxy


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _lost(error: Exception) -> Broken | Silent:
    if isinstance(error, TimeoutError):
        return Silent(str(error))
    return Broken(str(error) or type(error).__name__)
