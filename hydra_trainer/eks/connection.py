"""One API server: credentials, connections, tries; JSON in and out.

The official client reads the kubeconfig, runs credential plugins and renews tokens. Its generated
methods and models are left alone: they changed between 30 and 37, and cost more than the request.
"""

import contextlib
import json
import logging
import ssl
import threading
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakSet

from hydra_trainer import __version__
from hydra_trainer.errors import LaunchError
from hydra_trainer.retry import TRANSIENT, Attempts, Retry, Trouble

from . import kubeconfig
from .channel import Broken, Reply, Route, Silent, Unreachable
from .kubeconfig import Context
from .refusals import Call, is_anonymous, refusal, status_of

SILENCE = 60.0
"""Seconds without a byte of an answer: an API server gives up on a request after 60."""

FIRST_CONTACT = 3  # tries for a server that never answered: a wrong address shows at once

HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": f"hydra-trainer/{__version__}",
}


class Request(NamedTuple):
    """What goes over the wire. `path` holds the query; `silence` is in seconds."""

    call: Call
    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})
    silence: float = SILENCE
    stream: bool = False


class Answer(NamedTuple):
    """What came back. The body of a good answer to a streaming request is in `reply`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reply: Reply


class Connection:
    """Sends requests to the API server of one context. May be shared by threads.

    Nothing is imported, read or sent before the first request.
    """

    def __init__(
        self, context: str | None, namespace: str | None, file: str | None, retry: Retry
    ) -> None:
        self.retry = retry
        self._wanted = (context, file)
        self._namespace = namespace
        self._client: _Client | None = None
        self._lock = threading.Lock()
        self._routes: WeakSet[Route] = WeakSet()
        self._closed = False
        self._date: tuple[str, float] | None = None

    @cached_property
    def context(self) -> Context:
        """The entry of the kubeconfig. Raises LaunchError with what to type when there is none."""
        return kubeconfig.find(*self._wanted)

    @cached_property
    def namespace(self) -> str:
        """The namespace that was given, else the context's. Raises LaunchError without one."""
        if namespace := self._namespace or self.context.namespace:
            return namespace
        raise LaunchError(
            f"The context {self.context.name!r} names no namespace, and none was given. Type "
            "launcher.namespace=NAME; `kubectl get namespaces` lists them."
        )

    def attempts(self, call: Call) -> Attempts:
        return Attempts(self.retry, f"`{call}`")

    def ask(self, request: Request, attempts: Attempts | None = None) -> dict[str, Any]:
        """Return the answer, after as many tries as the budget holds.

        Raises ApiError when the server refuses, LaunchError when it cannot be reached or does not
        accept the credentials.
        """
        attempts = attempts or self.attempts(request.call)
        while True:
            try:
                return self.answer(request)
            except Trouble as trouble:
                self.pause(attempts, trouble)

    def pause(self, attempts: Attempts, trouble: Trouble) -> None:
        """Wait before another try. Raises LaunchError when there is none left."""
        is_new = self._date is None and not trouble.reached
        attempts.pause(trouble, tries=FIRST_CONTACT if is_new else None)

    def answer(self, request: Request) -> dict[str, Any]:
        """Send once and return the JSON of the answer. Raises Trouble where `ask` tries again."""
        body = self.send(request).body
        try:
            return dict(json.loads(body))
        except (ValueError, TypeError) as error:
            raise Trouble(f"the answer is not JSON: {body[:80]!r}.") from error

    def send(self, request: Request) -> Answer:
        """Send once, twice when the credentials have to be renewed; return a good answer.

        Raises Trouble, ApiError or LaunchError.
        """
        client = self._connected()
        response = client.exchange(request)
        if _is_unknown(response):
            client = self._connected(instead_of=client)
            response = client.exchange(request)
        self._date = (response.headers.get("date", ""), self.retry.clock())
        if response.status < 300:
            return response
        status = {**status_of(response.status, response.body), "code": response.status}
        if _is_unknown(response):
            raise LaunchError(self._not_accepted(str(status.get("message"))))
        if response.status in TRANSIENT:
            words = f"{response.status} {status.get('message')}".rstrip(".")
            raise Trouble(f"{words}.", after=_retry_after(response))
        raise refusal(request.call, self.context, status)

    def close(self) -> None:
        """Break off whatever other threads are asking. What they ask from now on is an error."""
        self._closed = True
        for route in [*self._routes]:
            route.close()

    def server_time(self) -> float | None:
        """Seconds since 1970 by the server's clock; None before it answered."""
        try:
            date, when = self._date or ("", 0.0)
            return parsedate_to_datetime(date).timestamp() + self.retry.clock() - when
        except ValueError:
            return None

    def _connected(self, instead_of: "_Client | None" = None) -> "_Client":
        """Return the client; with `instead_of`, one that has read its credentials after that."""
        with self._lock:
            if self._client is None or self._client is instead_of:
                self._client = _Client(self.context)
                self._routes.add(self._client._route)
            if self._closed:
                raise LaunchError("Nobody waits for an answer of the cluster any more.")
            return self._client

    def _not_accepted(self, message: str) -> str:
        return (
            f"The cluster {self.context.name!r} does not accept your credentials: {message}. "
            f"{kubeconfig.login(self.context)} Jobs that run are not touched by this."
        )


class _Client:
    """The official client's settings for one context, and the way to its server."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = _settings(context)
        try:
            self._route = Route(context.server, self.settings)
        except OSError as error:  # ssl.SSLError is one: a certificate that cannot be read
            raise LaunchError(_no_credentials(context, [str(error)])) from error

    def exchange(self, request: Request) -> Answer:
        """Send and return whatever comes back. Raises Trouble, or Silent, when nothing does."""
        headers = {**HEADERS, **request.headers, **self._authorization()}
        body = None if request.body is None else json.dumps(request.body).encode()
        try:
            reply = self._route.send(
                request.method, request.path, body, headers, silence=request.silence
            )
            is_whole = not request.stream or reply.status >= 300
            return Answer(reply.status, reply.headers, reply.read() if is_whole else b"", reply)
        except Unreachable as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise LaunchError(self._untrusted(error.__cause__)) from error
            words = f"{self.context.address} cannot be reached: {error}."
            raise Trouble(words, reached=False) from error
        except (Broken, Silent) as error:
            if request.stream and isinstance(error, Silent):
                raise  # a kubelet answers with the first line of a log
            raise broken(error, self.context.address) from error

    def _authorization(self) -> dict[str, str]:
        """The header, from a token that the client renews before it expires.

        The key has had both names, and 36.0.0 writes the one and reads the other.
        """
        if self.settings.refresh_api_key_hook:
            self.settings.refresh_api_key_hook(self.settings)
        keys = self.settings.api_key
        token = keys.get("BearerToken") or keys.get("authorization")
        return {"Authorization": " ".join(token.split())} if token else {}

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> str:
        return (
            f"{self.context.address} has a certificate that the kubeconfig does not trust: "
            f"{error.verify_message}. Type `{kubeconfig.WRITE_ONE}` to write the cluster's "
            "certificate authority again, or find out who answers there."
        )


def _settings(context: Context) -> Any:
    """Return the client's Configuration. Raises LaunchError when there are no credentials."""
    try:  # 0.4 s of CPU time with kubernetes 37, up to 2 s before
        from kubernetes.client import Configuration
        from kubernetes.config import ConfigException
    except ImportError as error:
        raise LaunchError(
            "launcher=eks needs the Kubernetes client: pip install 'hydra-trainer[eks]'"
        ) from error

    settings = Configuration()
    with _root_log() as said:
        try:
            _load(context, settings)
        except (ConfigException, OSError, ValueError) as error:
            raise LaunchError(_no_credentials(context, [str(error)])) from error
    if "exec" in context.user and not settings.api_key and not settings.cert_file:
        raise LaunchError(_no_credentials(context, said))
    if context.is_loopback or "proxy-url" in context.cluster:  # as kubectl does, whatever the
        settings.proxy = context.cluster.get("proxy-url")  # environment says of proxies
    return settings


def _load(context: Context, settings: Any) -> None:
    if context.files is not None:
        from kubernetes.config import load_kube_config

        load_kube_config(context.files, context.name, client_configuration=settings)
        return
    from kubernetes.config.incluster_config import InClusterConfigLoader

    token, authority = (str(kubeconfig.SERVICE_ACCOUNT / name) for name in ("token", "ca.crt"))
    InClusterConfigLoader(token, authority).load_and_set(settings)


@contextlib.contextmanager
def _root_log() -> Iterator[list[str]]:
    """Collect what is said to the root logger: all that the client does when a plugin fails."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    root, quiet = logging.getLogger(), logging.NullHandler()
    root.addHandler(quiet)  # without any handler, logging.error() would install one
    root.addFilter(keep)
    try:
        yield said
    finally:
        root.removeFilter(keep)
        root.removeHandler(quiet)


def _no_credentials(context: Context, said: list[str]) -> str:
    words = " ".join(said).strip() or "it gave none"
    return (
        f"There are no credentials for the cluster {context.name!r}: {words.rstrip('.')}. "
        f"{kubeconfig.login(context)}"
    )


def _is_unknown(response: Answer) -> bool:
    """Whether the server does not know who asks: 401, or the refusal of an anonymous user."""
    if response.status != 403:
        return response.status == 401
    return is_anonymous(status_of(403, response.body))


def _retry_after(response: Answer) -> float:
    """Seconds to leave the server alone. An API server gives a number, never a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def broken(error: Exception, address: str) -> Trouble:
    """Return the Trouble for a connection that was lost."""
    return Trouble(f"the connection to {address} broke: {error}.")
