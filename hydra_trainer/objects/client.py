"""The library behind the door, its clients, and the credentials they sign with."""

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hydra_trainer.errors import ConfigError, StorageError

from .settings import Settings

LIBRARY = "obstore"
NATIVE = "obstore._obstore"

KEEP_KEYS = timedelta(minutes=6)
"""The library asks for credentials anew five minutes before this is over: about once a minute, so
that it never signs with some that botocore has renewed meanwhile."""

QUIETEST = 10.0  # seconds
CONNECTING = 5.0  # seconds

_lock = threading.Lock()
_is_parents = False
"""Whether the library that is imported is one that a parent of this process has used."""
_left: list[Any] = []
"""What a fork left behind. It is kept for ever: to take it down needs threads that are not here."""


def _forked() -> None:
    global _lock, _is_parents
    _lock = threading.Lock()  # whoever held it is not in this process
    _is_parents = NATIVE in sys.modules


os.register_at_fork(after_in_child=_forked)


def library() -> Any:
    """Return obstore, with threads of this process.

    A child of fork() has those of its parent in its memory, but they do not run: each call would
    wait for ever. So a child loads the library once more, beside the one it was born with.

    Raises ConfigError when it is not installed.
    """
    global _is_parents
    with _lock:
        try:
            import obstore
        except ImportError:
            raise ConfigError(
                "s3:// needs the package obstore. Type pip install 'hydra-trainer[s3]'."
            ) from None
        if _is_parents:
            obstore = _loaded_again()
            _is_parents = False
        return obstore


def _loaded_again() -> Any:
    names = [name for name in sys.modules if name == LIBRARY or name.startswith(f"{LIBRARY}.")]
    before = {name: sys.modules.pop(name) for name in names}
    _left.append(before)
    with _copied(Path(str(before[NATIVE].__file__))) as copy:
        # A library of another file is another library, with variables of its own.
        loader = importlib.machinery.ExtensionFileLoader(NATIVE, copy)
        spec = importlib.util.spec_from_file_location(NATIVE, copy, loader=loader)
        assert spec is not None
        sys.modules[NATIVE] = native = importlib.util.module_from_spec(spec)
        loader.exec_module(native)
        native.__file__ = before[NATIVE].__file__  # for a child of this child
        import obstore
    return obstore


@contextlib.contextmanager
def _copied(file: Path) -> Iterator[str]:
    """Yield the path of a copy that needs no folder where this system can do so."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create(LIBRARY, os.MFD_CLOEXEC)
        with open(number, "wb") as copy:  # noqa: PTH123 (a number, not a path)
            copy.write(file.read_bytes())
            copy.flush()
            yield f"/proc/self/fd/{number}"
        return
    with tempfile.NamedTemporaryFile(suffix=".so") as copy:
        copy.write(file.read_bytes())
        copy.flush()
        yield copy.name


class Client:
    """The stores of one bucket, in this process: one that tries once, one that tries again itself.

    Attributes:
        once: for all that is one request. Who calls it tries again.
        patient: for uploads in parts, whose requests only the library sees.
        keys: where the credentials come from.
    """

    def __init__(self, bucket: str, settings: Settings) -> None:
        self.library = library()
        self.process = os.getpid()
        self.keys = Keys()
        from obstore.store import S3Store

        address, deadline = settings.address, timedelta(seconds=settings.deadline_s)
        region = settings.place or self.keys.region or "us-east-1"
        given: dict[str, Any] = {"region": region}
        if address:
            # This name, because it comes before all others, also before those of the environment.
            given |= {"aws_endpoint_url_s3": address, "virtual_hosted_style_request": False}
        options: Any = {
            "allow_http": (address or "").startswith("http://"),
            "timeout": deadline,
            "read_timeout": timedelta(seconds=quiet(settings)),
            "connect_timeout": timedelta(seconds=min(CONNECTING, quiet(settings))),
        }
        longest = min(5.0, settings.deadline_s / 4)
        pauses: Any = {
            # The library panics where the first one is not below the longest.
            "init_backoff": timedelta(seconds=min(0.1, longest / 2)),
            "max_backoff": timedelta(seconds=longest),
            "base": 2,
        }

        def store(tries: int) -> Any:
            return S3Store(
                bucket,
                client_options=options,
                retry_config={
                    "max_retries": tries,
                    "retry_timeout": deadline,
                    "backoff": pauses,
                },
                credential_provider=self.keys.provider,
                **given,
            )

        self.region = region
        self.once, self.patient = store(0), store(100)

    def leave(self) -> None:
        """Keep what another process made from being taken down in this one."""
        _left.append(self)


def quiet(settings: Settings) -> float:
    """Return the seconds after which a server that sends nothing is given up, for this try."""
    return min(QUIETEST, settings.deadline_s / 4)


class Keys:
    """Credentials, as botocore finds them: environment, profile, web identity, container, machine.

    Without botocore, or with keys in the environment, the library finds them itself (all of these
    but profiles).

    Attributes:
        provider: what the library is to call; None: it finds them itself.
        region: of the AWS profile.
        found: what they are, in words.
        trouble: what botocore raised last.
    """

    def __init__(self) -> None:
        self.provider: Any = None
        self.region: str | None = None
        self.found = "AWS_ACCESS_KEY_ID of the environment"
        self.trouble: Exception | None = None
        if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
            return
        self.found = "what the environment or this machine gives"
        try:
            import botocore.session
            from botocore.exceptions import BotoCoreError
        except ImportError:
            return
        session = botocore.session.get_session()
        try:
            self.region = session.get_config_variable("region")
            self._credentials = session.get_credentials()
        except BotoCoreError as error:
            raise StorageError(
                f"The AWS credentials cannot be read: {error} Look at AWS_PROFILE and at "
                "~/.aws/config."
            ) from error
        if self._credentials is None:
            raise StorageError(
                "There are no AWS credentials: none in the environment, in ~/.aws, for a service "
                "account, or of this machine. Type aws configure (or aws sso login), set "
                "AWS_PROFILE, or give the job a role."
            )
        self.found = f"those of {self._credentials.method}"
        self.provider = self._current

    def _current(self) -> dict[str, Any]:
        try:
            keys = self._credentials.get_frozen_credentials()
        except Exception as error:
            self.trouble = error
            raise
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + KEEP_KEYS,
        }
