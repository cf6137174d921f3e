"""The server of a service."""

from hydra_trainer.embedded.listening import Listening
from hydra_trainer.embedded.wire import Request, Response, Wire

from .api import Api
from .wire import LargeWire


class Server(Listening):
    """Serves an API.

    Args:
        port: one that was used before, to be used again if it is free; 0 for any.
    """

    wire = LargeWire

    def __init__(self, api: Api, port: int = 0) -> None:
        super().__init__(port)
        self._api = api

    def _answer(self, wire: Wire, request: Request) -> Response:
        return self._api.answer(request)
