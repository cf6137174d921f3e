"""The server of a cluster."""

import json
import sys
import traceback
import zlib
from pathlib import Path

from .access import Access
from .api import TOKEN_PREFIX, Api
from .faults import Faults
from .kubeconfig import Entry
from .listening import LOOPBACK, Listening
from .refusals import ApiError
from .store import Store
from .wire import Broken, Malformed, Request, Response, Wire

COMPRESS_FROM = 128 << 10
"""Bytes of an answer that is compressed for clients that accept it, as a real API server does."""


class Server(Listening):
    """Serves a store, which stays open when it stops.

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
        super().__init__(port)
        self.store = store
        self.faults = Faults()
        self.access = Access(store, home / "tokens.json")
        self._api = Api(store, self.access, self.faults, home, absent, self._ending)

    def entry(self, token: str | None = None) -> Entry:
        """Return what a kubeconfig says of this server, for the owner or who has a token."""
        token = token or self.access.owner()
        return Entry(f"http://{LOOPBACK}:{self.port}{TOKEN_PREFIX}{token}", token)

    def _answer(self, wire: Wire, request: Request) -> Response:
        return _compressed(request, self._plain(wire, request))

    def _plain(self, wire: Wire, request: Request) -> Response:
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

    def _refusal(self, error: Malformed) -> Response:
        """Return a Status if it was HTTP, and only too long."""
        if error.code != 413:
            return super()._refusal(error)
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
